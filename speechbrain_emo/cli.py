"""The toolkit in a shell: ``python -m speechbrain_emo explain | align | annotate | doctor | train``."""

import argparse
import importlib.metadata
import json
import os
import sys
import warnings

OK, FILES_FAILED, USAGE = 0, 1, 2
_PROGRAM = "python -m speechbrain_emo"
# Written out: the registry would load numpy before --help is shown. A test holds the two together.
ALIGNER_NAMES = "pocketsphinx, espeak-dtw, ctc, mfa, textgrid"
# Of the mean over words. Right texts lie above, wrong ones below: docs/alignment.md.
LOW_CONFIDENCE = 0.5


def _version():
    try:
        return importlib.metadata.version("speechbrain_emo")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed: pip install -e .)"


def _positive(text):
    number = int(text) if text.lstrip("-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 and above")
    return number


def build_parser():
    """The parser of all commands.

    Returns
    -------
    argparse.ArgumentParser

    Example
    -------
    >>> build_parser().parse_args(["explain", "a.wav", "--model", "results/demo_ib/1986"]).files
    ['a.wav']
    """

    def example(text):
        return {"epilog": "examples:\n" + text, "formatter_class": argparse.RawDescriptionHelpFormatter}

    parser = argparse.ArgumentParser(
        _PROGRAM,
        description="Explainable speech emotion recognition on SpeechBrain.",
        **example(
            f"  {_PROGRAM} explain speech.wav --model results/demo_ib/1986\n"
            f"  {_PROGRAM} align speech.wav --text 'what is said'\n"
            f"  {_PROGRAM} annotate speech.wav --text 'what is said' --model results/demo_word_emotion/1986\n"
            f"  {_PROGRAM} doctor\n"
            f"  {_PROGRAM} train hparams/demo_ib.yaml"
        ),
    )
    parser.add_argument("--version", action="version", version=f"speechbrain_emo {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    explain = commands.add_parser(
        "explain",
        help="emotion, descriptors and transcript of recordings",
        description="Explain recordings of any format that libsndfile reads, at any rate and number of "
        "channels. A file that cannot be used is reported on stderr, and the others are finished.",
        **example(
            f"  {_PROGRAM} explain speech.wav --model results/demo_ib/1986\n"
            f"  {_PROGRAM} explain recordings/*.wav --model results/demo_ib/1986 --json > "
            "explanations.jsonl\n\n"
            "exit status: 0 all explained, 1 a file could not be used, 2 wrong arguments or no usable model"
        ),
    )
    explain.add_argument("files", nargs="+", metavar="FILE", help="audio file")
    explain.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="folder of a training or an exported model, or a name on the hub",
    )
    explain.add_argument(
        "--json", action="store_true", help="one JSON object a line, in the order of the files"
    )
    explain.add_argument(
        "--batch_size", type=_positive, default=8, metavar="N", help="files at a time (default: 8)"
    )
    explain.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    explain.add_argument(
        "--gender", choices=("female", "male"), help="of the speakers: what measured pitch is compared with"
    )

    _add_align(commands, example)
    _add_annotate(commands, example)

    doctor = commands.add_parser(
        "doctor",
        help="check GPU, packages, external programs and disk",
        description="Look at this machine and say what is missing and how to get it.",
        **example(f"  {_PROGRAM} doctor\n  {_PROGRAM} doctor --json"),
    )
    doctor.add_argument("--json", action="store_true", help="a JSON list")
    doctor.add_argument("--folder", default=".", help="whose disk is measured (default: here)")

    table = commands.add_parser(
        "table",
        help="a Markdown table of several runs side by side",
        description="Headline metrics, trainable parameters and training time of finished runs. Folders joined by "
        "commas are seeds of one system: mean and deviation.",
        **example(
            f"  {_PROGRAM} table results/demo_ib/1986,results/demo_ib/1987 results/demo_ib_no_bottleneck/1986"
        ),
    )
    table.add_argument("folders", nargs="+", metavar="FOLDER", help="holds results.json")

    train = commands.add_parser(
        "train",
        help="run an experiment, as train.py does",
        description="Run an experiment: a YAML, overrides --key=value, --overlay=FILE and SpeechBrain's run "
        "options.",
        **example(
            f"  {_PROGRAM} train hparams/demo_ib.yaml\n"
            f"  {_PROGRAM} train hparams/emodb_ib.yaml --data_folder=PATH --fold=03\n"
            f"  {_PROGRAM} train hparams/iemocap_ib.yaml --dry_run=True"
        ),
    )
    train.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="as of train.py")
    return parser


def _add_align(commands, example):
    align = commands.add_parser(
        "align",
        help="when each word of a known text is spoken",
        description="Find the words of a text in a recording: start, end and confidence of each. The default aligner "
        "is English and needs no model of yours; espeak-dtw knows every language of espeak-ng.",
        **example(
            f"  {_PROGRAM} align x.wav --text 'It is 5 pm.' --json\n"
            f"  {_PROGRAM} align x.wav --text_file x.txt --textgrid x.TextGrid --ctm x.ctm\n"
            f"  {_PROGRAM} align x.wav --text 'Der Lappen liegt auf dem Eisschrank.' --aligner espeak-dtw "
            "--language de\n"
            f"  {_PROGRAM} align x.wav --text 'so it is' --aligner ctc --option source=facebook/wav2vec2-base-960h\n"
            f"  {_PROGRAM} align x.wav --text '' --aligner textgrid --option folder=alignments\n"
            f"  {_PROGRAM} align --manifest test.json --data_root DATA --aligner mfa --textgrid alignments "
            "--json > test.jsonl\n\n"
            "exit status: 0 aligned, 1 a recording and its text could not be aligned, 2 wrong arguments or the aligner "
            "cannot be used"
        ),
    )
    align.add_argument("file", nargs="?", metavar="FILE", help="audio file")
    align.add_argument("--text", metavar="TEXT", help="what is said")
    align.add_argument("--text_file", metavar="FILE", help="holds what is said, in UTF-8")
    align.add_argument(
        "--manifest", metavar="FILE", help="align every record of a manifest instead, by its transcript"
    )
    align.add_argument("--data_root", metavar="DIR", help="what {data_root} stands for in the manifest")
    align.add_argument(
        "--aligner", default="pocketsphinx", metavar="NAME", help=f"{ALIGNER_NAMES} (default: %(default)s)"
    )
    align.add_argument("--language", metavar="CODE", help="en, de, fr, ... (default: en)")
    align.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the aligner; may be repeated",
    )
    align.add_argument(
        "--json",
        action="store_true",
        help="a list of {word, start, end, confidence}; one object a line for a manifest",
    )
    align.add_argument(
        "--textgrid", metavar="OUT", help="write a TextGrid here (a folder of them for a manifest)"
    )
    align.add_argument("--ctm", metavar="OUT", help="write a CTM file here")


def _add_annotate(commands, example):
    annotate = commands.add_parser(
        "annotate",
        help="emotion of every word of a known text",
        description="Emotion, intensity, valence, arousal and dominance of every word of a recording, with "
        "confidences. Over a manifest it writes JSON lines; the same command goes on where an interrupted one was, and "
        "what cannot be used is listed in OUT.rejected.jsonl.",
        **example(
            f"  {_PROGRAM} annotate x.wav --text 'So it is.' --model results/demo_word_emotion/1986\n"
            f"  {_PROGRAM} annotate x.wav --text 'So it is.' --model DIR --json --textgrid x.TextGrid --png x.png\n"
            f"  {_PROGRAM} annotate x.wav --text 'So it is.' --model DIR --markup\n"
            f"  {_PROGRAM} annotate --manifest train.json --data_root DATA --model DIR --output train.jsonl "
            "--num_workers 4\n"
            "a whole corpus with the Montreal Forced Aligner: align it first, then read its TextGrids:\n"
            f"  {_PROGRAM} align --manifest train.json --aligner mfa --textgrid alignments\n"
            f"  {_PROGRAM} annotate --manifest train.json --aligner textgrid --option folder=alignments --model DIR "
            "--output train.jsonl\n\n"
            "exit status: 0 annotated, 1 a recording could not be annotated, 2 wrong arguments, or no usable model or "
            "aligner"
        ),
    )
    annotate.add_argument("file", nargs="?", metavar="FILE", help="audio file")
    annotate.add_argument("--text", metavar="TEXT", help="what is said")
    annotate.add_argument("--text_file", metavar="FILE", help="holds what is said, in UTF-8")
    annotate.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="folder of a training or an exported model, or a hub name",
    )
    annotate.add_argument(
        "--manifest", metavar="FILE", help="annotate every record of a manifest instead, by its transcript"
    )
    annotate.add_argument("--data_root", metavar="DIR", help="what {data_root} stands for in the manifest")
    annotate.add_argument("--output", metavar="OUT", help="JSON lines of a manifest's annotations")
    annotate.add_argument(
        "--num_workers", type=_positive, default=1, metavar="N", help="processes over a manifest (default: 1)"
    )
    annotate.add_argument(
        "--aligner",
        default="pocketsphinx",
        metavar="NAME",
        help=f"{ALIGNER_NAMES}; for a manifest also `manifest`: the words that it holds (default: %(default)s)",
    )
    annotate.add_argument("--language", metavar="CODE", help="of the aligner: en, de, fr, ... (default: en)")
    annotate.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the aligner; may be repeated",
    )
    annotate.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    shown = annotate.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print one JSON object")
    shown.add_argument("--markup", action="store_true", help="print the text with <emotion> tags")
    annotate.add_argument(
        "--textgrid", metavar="OUT", help="write a TextGrid here (a folder of them for a manifest)"
    )
    annotate.add_argument("--png", metavar="OUT", help="draw the words over waveform and F0")


def main(arguments=None):
    """Run a command.

    Arguments
    ---------
    arguments : list of str, optional
        Default: those of the process.

    Returns
    -------
    int
        Exit status: 0 done, 1 some file failed (or the doctor found something that is needed), 2 wrong
        arguments or no usable model.

    Example
    -------
    >>> main(["explain", "a.wav", "--model", "no/such/folder"])
    2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"] and arguments[1:2] not in ([], ["-h"], ["--help"]):
            # Overrides are not known to this parser: they belong to the experiment's YAML.
            from speechbrain_emo.experiment import main as run

            return run(arguments[1:])
        parser = build_parser()
        options = parser.parse_args(arguments)
        if options.command == "train":
            parser.parse_args(["train", "--help"])
        if options.command == "doctor":
            from speechbrain_emo.doctor import print_doctor

            return print_doctor(options.folder, options.json)
        if options.command == "align":
            return _align(options)
        if options.command == "annotate":
            return _annotate(options)
        if options.command == "table":
            return _table(options.folders)
        return _explain(options)
    except SystemExit as finished:  # argparse ends the process; a caller in Python wants the status.
        return finished.code if isinstance(finished.code, int) else USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough, such as `head`; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _align(options):
    from pathlib import Path

    from speechbrain_emo.alignment import AlignmentError, AlignmentItem, make_aligner
    from speechbrain_emo.alignment.textgrid import to_ctm, write_textgrid
    from speechbrain_emo.dataio.manifest import ManifestError, read_manifest

    if (options.file is None) == (options.manifest is None):
        return _fail("give either FILE or --manifest")
    if options.manifest is None and (options.text is None) == (options.text_file is None):
        return _fail("give the text: either --text or --text_file")
    try:
        if options.manifest is not None:
            root = {"data_root": options.data_root} if options.data_root else None
            records = read_manifest(options.manifest, replacements=root)
            items = [
                AlignmentItem(
                    name,
                    record.get("transcript") or "",
                    record.get("wav"),
                    start=record.get("start"),
                    stop=record.get("stop"),
                )
                for name, record in records.items()
            ]
        else:
            text = options.text
            if text is None:
                text = Path(options.text_file).read_text(encoding="utf-8-sig")
            items = [AlignmentItem(Path(options.file).stem, text.strip(), options.file)]
        aligner = make_aligner(options.aligner, **_aligner_options(options))
    except (AlignmentError, ManifestError, OSError, UnicodeDecodeError) as error:
        return _fail(str(error))
    single, failed = options.manifest is None, 0
    if options.textgrid and not single:
        Path(options.textgrid).mkdir(parents=True, exist_ok=True)
    ctm = []
    try:
        for name, result in aligner.align_corpus(items):
            if isinstance(result, Exception):
                failed += 1
                print(f"error: {name}: {result}", file=sys.stderr)
                continue
            _print_alignment(name, result, options.json, single)
            if result.mean_confidence is not None and result.mean_confidence < LOW_CONFIDENCE:
                print(
                    f"warning: {name}: mean confidence {result.mean_confidence:.2f}: the text may not be what is said",
                    file=sys.stderr,
                )
            if options.textgrid:
                target = options.textgrid if single else Path(options.textgrid) / f"{name}.TextGrid"
                write_textgrid(target, result)
            if options.ctm:
                ctm.append(to_ctm(result, "_".join(name.split())))
        if options.ctm:
            Path(options.ctm).write_text("".join(ctm), encoding="utf-8")
    except (AlignmentError, OSError) as error:
        return _fail(str(error))
    if failed and not single:
        print(f"{failed} of {len(items)} recordings could not be aligned", file=sys.stderr)
    return FILES_FAILED if failed else OK


def _annotate(options):
    from pathlib import Path

    import transformers

    from speechbrain_emo.alignment import AlignmentError

    if (options.file is None) == (options.manifest is None):
        return _fail("give either FILE or --manifest")
    if options.manifest is not None:
        wrong = [
            f"--{name}" for name in ("text", "text_file", "json", "markup", "png") if getattr(options, name)
        ]
        if wrong:
            return _fail(f"{', '.join(wrong)}: for one file; a manifest gives JSON lines in --output")
        if options.output is None:
            return _fail("--manifest needs --output: the file of JSON lines")
    elif (options.text is None) == (options.text_file is None):
        return _fail("give the text: either --text or --text_file")
    elif options.output is not None:
        return _fail("--output is for --manifest; print one file with --json")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    run_opts, failure = _device(options.device)
    if failure:
        return _fail(failure)
    try:
        if options.manifest is not None:
            return _annotate_manifest(options, run_opts)
        text = options.text
        if text is None:
            text = Path(options.text_file).read_text(encoding="utf-8-sig")
        return _annotate_file(options, text.strip(), run_opts)
    except (AlignmentError, OSError, UnicodeDecodeError) as error:
        return _fail(str(error))


def _annotate_manifest(options, run_opts):
    from speechbrain_emo.dataio.manifest import ManifestError, read_manifest
    from speechbrain_emo.inference.annotate_corpus import AnnotationRunError, annotate_corpus
    from speechbrain_emo.inference.safe_loading import UnsafeModelError

    root = {"data_root": options.data_root} if options.data_root else None
    try:
        done = annotate_corpus(
            options.model,
            read_manifest(options.manifest, replacements=root),
            options.output,
            options.aligner,
            _aligner_options(options),
            options.num_workers,
            run_opts,
            options.textgrid,
        )
    except (ManifestError, AnnotationRunError, UnsafeModelError) as error:
        return _fail(str(error))
    kept = f" ({done.num_kept} were there already)" if done.num_kept else ""
    print(f"{done.num_annotated} annotated in {done.output}, {done.num_rejected} rejected{kept}")
    if done.num_rejected:
        print(f"{done.num_rejected} rejected, with reasons: {done.rejected_file}", file=sys.stderr)
    return FILES_FAILED if done.num_rejected else OK


def _annotate_file(options, text, run_opts):
    from speechbrain_emo.dataio.audio import load_audio
    from speechbrain_emo.inference import WordEmotionAnnotator

    try:
        annotator = WordEmotionAnnotator.from_hparams(source=options.model, run_opts=run_opts)
    except (ValueError, OSError, ImportError) as error:
        return _fail(f"cannot use the model of --model {options.model}: {error}")
    aligner = annotator.aligner(options.aligner, **_aligner_options(options))
    try:
        annotation = annotator.annotate_file(options.file, text, aligner)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return FILES_FAILED
    if options.json:
        print(annotation.to_json())
    elif options.markup:
        print(annotation.to_markup())
    else:
        print(annotation)
    for warning in annotation.warnings if options.json or options.markup else ():
        print(f"warning: {warning}", file=sys.stderr)
    if options.textgrid:
        annotation.write_textgrid(options.textgrid)
    if options.png:
        from speechbrain_emo.plots import plot_word_emotions

        samples = load_audio(options.file, annotator.sample_rate).numpy()
        words = annotation.to_dict()["words"]
        try:
            plot_word_emotions(
                samples, annotator.sample_rate, words, annotator.labels, options.png, options.file
            )
        except ValueError as error:
            return _fail(str(error))
    return OK


def _device(name):
    """(run_opts, None) for a device that can be used, else (None, message)."""
    import torch

    if name is None:
        return None, None
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return None, f"--device {name}: cannot be used here ({reason}); leave it out, or give cpu"
    return {"device": name}, None


def _aligner_options(options):
    from speechbrain_emo.alignment import AlignmentError

    chosen = {}
    for option in options.option:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise AlignmentError(f"--option {option!r} is not KEY=VALUE")
        chosen[key] = {"true": True, "false": False}.get(value.lower(), value)
    if options.language:
        chosen["language"] = options.language
    return chosen


def _print_alignment(name, alignment, as_json, single):
    if as_json:
        record = alignment.to_dict()
        print(json.dumps(record["words"] if single else {"id": name, **record}, ensure_ascii=False))
        return
    if not single:
        print(name)
    print(f"{'start':>9} {'end':>9}  conf.  word")
    for word in alignment.words:
        confidence = "    -" if word.confidence is None else f"{word.confidence:5.2f}"
        print(f"{word.start:9.3f} {word.end:9.3f}  {confidence}  {word.label}")


def _table(folders):
    from speechbrain_emo.results import comparison_rows, format_table

    try:
        print(format_table(comparison_rows(folders)))
    except (FileNotFoundError, ValueError) as error:
        return _fail(str(error))
    return OK


def _explain(options):
    import transformers

    from speechbrain_emo.inference import EmotionExplainer

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    run_opts, failure = _device(options.device)
    if failure:
        return _fail(failure)
    try:
        explainer = EmotionExplainer.from_hparams(source=options.model, run_opts=run_opts)
    except (ValueError, OSError) as error:
        return _fail(f"cannot use the model of --model {options.model}: {error}")
    genders = [options.gender] * len(options.files)
    results = explainer.explain_files(options.files, options.batch_size, genders=genders)
    failed = [result for result in results if not result.ok]
    for number, result in enumerate(results):
        if options.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False))
        elif result.ok:
            print(f"{result}\n" if number < len(results) - 1 else result)
    sys.stdout.flush()
    for result in failed:
        print(f"error: {result.error}", file=sys.stderr)
    if failed and len(results) > 1:
        print(f"{len(failed)} of {len(results)} files could not be explained", file=sys.stderr)
    return FILES_FAILED if failed else OK


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return USAGE
