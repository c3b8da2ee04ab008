"""Commands that check a model and show what it does: calibrate, timeline, verify, report, listen.

Heavy imports stand inside the functions, so that ``--help`` answers at once.
"""

import json
import sys
import warnings

from speechbrain_emo.cli_arguments import count, number, positive, usable_device

OK, FILES_FAILED, USAGE = 0, 1, 2
COMMANDS = ("calibrate", "timeline", "verify", "report", "listen")


_seconds = number(1e-3, 1e6, "a number of seconds above 0")
_cost = number(0.0, 1e6, "a number of 0 and above")
_share = number(1e-6, 1 - 1e-6, "a share between 0 and 1")


def add_commands(commands, example, program):
    """Add the commands of this file to the parser.

    Arguments
    ---------
    commands : argparse._SubParsersAction
        Of the program's parser.
    example : callable
        Text -> the keyword arguments that show it as examples.
    program : str
        How the program is called.

    Example
    -------
    >>> import argparse
    >>> commands = argparse.ArgumentParser().add_subparsers(dest="command")
    >>> add_commands(commands, lambda text: {"epilog": text}, "python -m speechbrain_emo")
    >>> sorted(commands.choices) == sorted(COMMANDS)
    True
    """
    _add_calibrate(commands, example, program)
    _add_timeline(commands, example, program)
    _add_verify(commands, example, program)
    _add_report(commands, example, program)
    _add_listen(commands, example, program)


def _add_device(parser):
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )


def _add_calibrate(commands, example, program):
    calibrate = commands.add_parser(
        "calibrate",
        help="temperature, abstention and measured quantiles of a finished run, without training",
        description="Fits temperatures and the probability below which the model says 'not sure' on the run's "
        "validation predictions, measures pitch, volume and speed of training recordings, writes all of it into the "
        "run's model/ and draws risk_coverage.png. A training does the same when it ends.",
        **example(
            f"  {program} calibrate results/demo_ib/1986\n"
            f"  {program} calibrate results/demo_ib/1986 --risk 0.05 --measure 0 --json\n\n"
            "exit status: 0 done, 1 the wanted risk was not reached on validation data (the best threshold is taken), "
            "2 wrong arguments or an unusable run"
        ),
    )
    calibrate.add_argument("folder", metavar="RUN", help="folder of a training with model/")
    calibrate.add_argument(
        "--risk", type=_share, default=0.1, metavar="SHARE", help="errors among the answers (default: 0.1)"
    )
    calibrate.add_argument(
        "--measure", type=count, default=600, metavar="N", help="training recordings; 0: none (default: 600)"
    )
    calibrate.add_argument("--manifest", metavar="JSON", help="training manifest (default: the run's own)")
    calibrate.add_argument(
        "--data_root", metavar="DIR", help="what {data_root} stands for (default: the run's)"
    )
    calibrate.add_argument("--json", action="store_true", help="one JSON object")


def _add_timeline(commands, example, program):
    timeline = commands.add_parser(
        "timeline",
        help="emotions with their times in recordings of minutes to hours",
        description="Scores windows of a long recording one after another, in bounded memory, and writes NAME.json, "
        "NAME.rttm and NAME.png. Scores are kept as they come (NAME.windows.jsonl): an interrupted run goes on.",
        **example(
            f"  {program} timeline long.wav --model results/demo_ib/1986 --out timelines\n"
            f"  {program} timeline long.flac --model results/demo_ib/1986 --out timelines --window 4 --hop 2 --json\n\n"
            "Take a window as long as the utterances that the model was trained on. Times are exact to half a hop.\n\n"
            "exit status: 0 all done, 1 a file could not be used, 2 wrong arguments or no usable model"
        ),
    )
    timeline.add_argument("files", nargs="+", metavar="FILE", help="audio file")
    timeline.add_argument(
        "--model", required=True, metavar="DIR", help="folder of a training or an exported model"
    )
    timeline.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    timeline.add_argument("--window", type=_seconds, default=3.0, metavar="S", help="seconds (default: 3)")
    timeline.add_argument("--hop", type=_seconds, default=1.0, metavar="S", help="seconds (default: 1)")
    timeline.add_argument(
        "--switch_cost", type=_cost, default=1.0, metavar="NATS", help="of a change; 0: none (default: 1)"
    )
    timeline.add_argument(
        "--batch_size", type=positive, default=16, metavar="N", help="windows (default: 16)"
    )
    timeline.add_argument("--json", action="store_true", help="one JSON object a file, a line each")
    _add_device(timeline)


def _add_verify(commands, example, program):
    verify = commands.add_parser(
        "verify",
        help="does the model do what it says: measured, shifted and disturbed audio, other descriptors",
        description="Faithfulness by measurement and by shifted audio (pitch, speed, gain), robustness (noise, "
        "reverberation, telephone, gain), and UA after gold, predicted, shuffled and exchanged descriptors, over "
        "recordings of a manifest. Writes results.json and predictions; a second run goes on.",
        **example(
            f"  {program} verify results/demo_corpus/manifests/test.json --data_root results/demo_corpus "
            "--model results/demo_ib/1986 --out verified\n"
            f"  {program} verify test.json --model DIR --out verified --parts shifts,prefix --limit 50 --json\n\n"
            "exit status: 0 done, 2 wrong arguments, or a part that the model or the manifest does not allow"
        ),
    )
    verify.add_argument("manifest", metavar="MANIFEST", help="JSON of records with their emotions")
    verify.add_argument(
        "--model", required=True, metavar="DIR", help="folder of a training or an exported model"
    )
    verify.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    verify.add_argument("--data_root", metavar="DIR", help="what {data_root} stands for in the manifest")
    verify.add_argument(
        "--parts",
        metavar="NAMES",
        help="some of faithfulness,shifts,robustness,prefix (default: what model and manifest allow)",
    )
    verify.add_argument(
        "--limit",
        type=count,
        default=100,
        metavar="N",
        help="recordings, evenly spread; 0: all (default: 100)",
    )
    verify.add_argument("--batch_size", type=positive, default=16, metavar="N", help="(default: 16)")
    verify.add_argument("--json", action="store_true", help="the metrics as one JSON object")
    _add_device(verify)


def _add_report(commands, example, program):
    report = commands.add_parser(
        "report",
        help="a run as one HTML file: settings, tables, pictures, worst mistakes to listen to",
        description="Reads the folder of a training or an evaluation and writes one self-contained HTML file that "
        "needs no network.",
        **example(
            f"  {program} report results/demo_ib/1986\n"
            f"  {program} report results/demo_ib/1986 --out demo.html --mistakes 20 --no_audio\n\n"
            "exit status: 0 written, 2 wrong arguments or no results.json"
        ),
    )
    report.add_argument("folder", metavar="RESULT_FOLDER", help="holds results.json")
    report.add_argument("--out", metavar="HTML", help="default: report.html in the folder")
    report.add_argument("--mistakes", type=count, default=12, metavar="N", help="most of them (default: 12)")
    report.add_argument(
        "--max_megabytes",
        type=number(0.1, 500, "a number of 0.1 to 500"),
        default=8.0,
        metavar="MB",
        help="of audio (default: 8)",
    )
    report.add_argument("--no_audio", action="store_true", help="no players")
    report.add_argument("--data_root", metavar="DIR", help="where the recordings are (default: the run's)")


def _add_listen(commands, example, program):
    listen = commands.add_parser(
        "listen",
        help="listening tests: make a self-contained page, score what raters send back",
        description="`make` builds one HTML file from a folder of recordings and a list of questions (MOS, DMOS, A/B, "
        "does this description match), `score` reads the JSON files that raters save.",
        **example(
            f"  {program} listen make stimuli questions.yaml --out test.html\n"
            f"  {program} listen score answers/*.json\n\n"
            "See docs/listening.md for the questions.\n\n"
            "exit status: 0 done, 1 a file of answers could not be used, 2 wrong arguments"
        ),
    )
    verbs = listen.add_subparsers(dest="verb", metavar="make|score", required=True)
    make = verbs.add_parser(
        "make",
        help="build the page",
        **example(f"  {program} listen make stimuli questions.yaml --out test.html --seed 1"),
    )
    make.add_argument("folder", metavar="FOLDER", help="SYSTEM/ITEM.wav")
    make.add_argument("questions", metavar="YAML", help="see docs/listening.md")
    make.add_argument("--out", required=True, metavar="HTML", help="page to write")
    make.add_argument(
        "--seed", type=count, default=0, metavar="N", help="of the choice of trials (default: 0)"
    )
    make.add_argument(
        "--max_megabytes",
        type=number(0.1, 500, "a number of 0.1 to 500"),
        default=60.0,
        metavar="MB",
        help="of the page (default: 60)",
    )
    score = verbs.add_parser(
        "score",
        help="means, intervals and agreement",
        **example(f"  {program} listen score answers/*.json --json > scores.json"),
    )
    score.add_argument("answers", nargs="+", metavar="JSON", help="saved by the page, one a rater")
    score.add_argument(
        "--allowed_misses",
        type=count,
        default=0,
        metavar="N",
        help="catch trials a rater may miss (default: 0)",
    )
    score.add_argument("--json", action="store_true", help="one JSON object")


def run(options):
    """Run the command that was parsed.

    Arguments
    ---------
    options : argparse.Namespace
        With ``command`` of :data:`COMMANDS`.

    Returns
    -------
    int
        Exit status.
    """
    if options.command == "listen":
        return _listen_make(options) if options.verb == "make" else _listen_score(options)
    return {"calibrate": _calibrate, "timeline": _timeline, "verify": _verify, "report": _report}[
        options.command
    ](options)


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return USAGE


def _load(options):
    """(EmotionExplainer, None), or (None, message)."""
    import transformers

    from speechbrain_emo.inference import EmotionExplainer

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    run_opts, failure = usable_device(options.device)
    if failure:
        return None, failure
    try:
        return EmotionExplainer.from_hparams(source=options.model, run_opts=run_opts), None
    except (ValueError, OSError) as error:
        return None, f"cannot use the model of --model {options.model}: {error}"


def _calibrate(options):
    from dataclasses import asdict

    from speechbrain_emo.inference.recalibrate import recalibrate

    try:
        done = recalibrate(
            options.folder,
            options.risk,
            options.measure,
            options.manifest,
            options.data_root,
            sys.stderr.isatty(),
        )
    except (ValueError, OSError, KeyError) as error:
        return _fail(f"{options.folder}: {error}")
    if options.json:
        print(json.dumps(asdict(done)))
    else:
        for condition, temperature in done.temperatures.items():
            print(f"temperature of {condition}: {temperature:.3f}")
        risk = "nothing" if done.risk is None else f"{done.risk:.1%} errors among it"
        print(
            f"abstains below {done.abstain_below:.3f}; on the test part: answers {done.coverage:.1%}, {risk}"
        )
        if done.num_measured is not None:
            print(f"{done.num_measured} training recordings measured")
    if not done.reached:
        print(f"warning: an error of {options.risk:.0%} was not reached on validation data", file=sys.stderr)
    return OK if done.reached else FILES_FAILED


def _timeline(options):
    from speechbrain_emo.dataio.audio import AudioError
    from speechbrain_emo.inference.timeline import make_timeline

    explainer, failure = _load(options)
    if failure:
        return _fail(failure)
    failed = 0
    for file in options.files:
        try:
            timeline = make_timeline(
                explainer,
                file,
                options.out,
                options.window,
                options.hop,
                options.switch_cost,
                options.batch_size,
            )
        except (AudioError, OSError) as error:
            failed += 1
            text = str(error)
            print(f"error: {text if file in text else f'{file}: {text}'}", file=sys.stderr)
            continue
        except ValueError as error:
            return _fail(str(error))
        if options.json:
            print(json.dumps(timeline.to_dict(), ensure_ascii=False))
        else:
            print(timeline)
        done = timeline.run
        if done["windows"]:
            print(
                f"{file}: {done['times_real_time']:.1f} times faster than real time, peak memory "
                f"{done['peak_memory_beyond_model_bytes'] / 1e6:.0f} MB beyond the model",
                file=sys.stderr,
            )
    return FILES_FAILED if failed else OK


def _verify(options):
    from speechbrain_emo import results
    from speechbrain_emo.brains.verification import PARTS, Verification, verification_tables
    from speechbrain_emo.dataio.audio import AudioError, load_audio
    from speechbrain_emo.dataio.manifest import read_manifest

    explainer, failure = _load(options)
    if failure:
        return _fail(failure)
    try:
        root = {"data_root": options.data_root} if options.data_root else None
        records = read_manifest(options.manifest, replacements=root)
        names = list(records)
        names = names[:: max(len(names) // options.limit, 1) if options.limit else 1]
        if options.parts:
            parts = [part.strip() for part in options.parts.split(",")]
        else:
            able = {
                "faithfulness": explainer.thresholds is not None
                and explainer.explainer.chain_task is not None,
                "shifts": explainer.explainer.chain_task is not None,
                "robustness": True,
                "prefix": explainer.explainer.chain_task is not None
                and any(records[name].get("descriptors") for name in names),
            }
            parts = [part for part in PARTS if able[part]]
            for part in PARTS:
                if not able[part]:
                    print(f"note: {part} is left out: model or manifest lacks what it needs", file=sys.stderr)

        def load(record):
            return load_audio(record["wav"], explainer.sample_rate, record.get("start"), record.get("stop"))

        evaluation = {
            "language": explainer.language,
            "temperature": {
                "own_chain": explainer.temperature,
                "gold_descriptors": explainer.temperature,
                "speech": explainer.speech_temperature,
            },
        }
        verification = Verification(
            explainer.explainer,
            [{**records[name], "id": name} for name in names],
            load,
            explainer.sample_rate,
            options.out,
            explainer.device,
            explainer.inference_ctx,
            explainer.thresholds,
            options.batch_size,
            evaluation,
        )
        metrics, lines = verification.run(parts)
    except (ValueError, AudioError, OSError) as error:
        return _fail(str(error))
    results.write_predictions(options.out, lines)
    context = results.run_context(
        command=f"python -m speechbrain_emo verify {options.manifest} --model {options.model}",
        model=str(options.model),
        manifest=str(options.manifest),
        data_root=options.data_root,
        parts=parts,
        evaluation={"labels": explainer.labels, **evaluation},
    )
    results.write_results(options.out, metrics, context)
    if options.json:
        print(json.dumps(metrics))
    else:
        for title, rows in verification_tables(metrics).items():
            print(f"{title} ({len(lines)} recordings)\n{results.format_table(rows)}\n")
    return OK


def _report(options):
    from speechbrain_emo.report import write_report

    try:
        path = write_report(
            options.folder,
            options.out,
            options.mistakes,
            0 if options.no_audio else options.max_megabytes * 1e6,
            options.data_root,
        )
    except (ValueError, OSError) as error:
        return _fail(str(error))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return OK


def _listen_make(options):
    from speechbrain_emo.listening import make_test

    try:
        made = make_test(
            options.folder, options.questions, options.out, options.seed, options.max_megabytes * 1e6
        )
    except (ValueError, OSError) as error:
        return _fail(str(error))
    print(
        f"{made.path}: {made.num_trials} trials, {made.num_recordings} recordings, {made.num_bytes / 1e6:.1f} MB"
    )
    return OK


def _listen_score(options):
    from speechbrain_emo.listening import format_scores, read_answers, score_answers

    answers, failed = [], 0
    for file in options.answers:
        try:
            answers.append(read_answers(file))
        except (ValueError, OSError) as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if not answers:
        return _fail("no file of answers could be used")
    try:
        scores = score_answers(answers, options.allowed_misses)
    except ValueError as error:
        return _fail(str(error))
    print(json.dumps(scores, ensure_ascii=False) if options.json else format_scores(scores))
    return FILES_FAILED if failed else OK
