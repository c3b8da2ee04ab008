"""Commands about corpora: ``check``, ``prepare``, ``evaluate``, ``compare``; ``cli.py`` adds them to its own."""

import inspect
import json
import sys
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from speechbrain_emo.cli_arguments import count, positive, usable_device

OK, FOUND, USAGE = 0, 1, 2
COMMANDS = ("check", "prepare", "evaluate", "compare")
_PROGRAM = "python -m speechbrain_emo"
# Of a preparation; a corpus may have thousands.
_MOST_NOTES = 10


def add_commands(commands, example):
    """Add the parsers of these commands.

    Arguments
    ---------
    commands : argparse._SubParsersAction
        Of the main parser.
    example : callable
        Text of examples -> keywords of a parser.
    """
    _add_check(commands, example)
    _add_prepare(commands, example)
    _add_evaluate(commands, example)
    _add_compare(commands, example)


def _add_source(parser):
    parser.add_argument(
        "--pattern",
        metavar="REGEX",
        help="for a folder: what the end of a path says, with groups (?P<emotion>...), (?P<speaker>...)",
    )
    parser.add_argument("--data_root", metavar="DIR", help="what {data_root} and relative paths start from")
    parser.add_argument(
        "--label_map", metavar="FILE", help="YAML or JSON: their label -> our label, null to leave out"
    )


def _add_check(commands, example):
    check = commands.add_parser(
        "check",
        help="faults of a corpus that spoil results: leaks, odd files, labels, confounding",
        description="Look at a folder of audio, a table (CSV, TSV, JSON lines, JSON with path, emotion, optionally "
        "speaker, split) or a manifest, or at several of them as splits of one corpus. Every preparation does the same "
        "and writes data_check.json.",
        **example(
            f"  {_PROGRAM} check recordings/\n"
            f"  {_PROGRAM} check corpus.csv --labels angry,happy,neutral,sad --strict\n"
            f"  {_PROGRAM} check results/emodb_ib/data/03 --data_root EMODB --json > check.json\n"
            f"  {_PROGRAM} check train.json test.json --audio off --ignore no_validation\n\n"
            "exit status: 0 looked at, 1 something was found and --strict is given, 2 wrong arguments or nothing to "
            "read"
        ),
    )
    check.add_argument("sources", nargs="+", metavar="FOLDER|TABLE|MANIFEST", help="several: a split each")
    _add_source(check)
    check.add_argument(
        "--labels", metavar="A,B,...", help="allowed emotions (default: compare spellings only)"
    )
    check.add_argument(
        "--audio",
        choices=("off", "headers", "full"),
        default="full",
        help="how much of the files is read (default: full, which finds silence and clipping)",
    )
    check.add_argument("--max_duration", type=float, metavar="S", help="seconds; longer files are findings")
    check.add_argument("--ignore", action="append", default=[], metavar="KIND", help="may be repeated")
    check.add_argument(
        "--most", type=positive, default=5, metavar="N", help="names shown of each finding (default: 5)"
    )
    check.add_argument("--strict", action="store_true", help="exit status 1 when anything is found")
    check.add_argument("--json", action="store_true", help="one JSON object with all names")


def _add_prepare(commands, example):
    prepare = commands.add_parser(
        "prepare",
        help="manifests of a corpus, by the name of its recipe",
        description="Run the preparation of a recipe: read the corpus, split it, measure descriptors, check the data, "
        "write train.json, valid.json, test.json. Further arguments --key=value are the preparation's own; `prepare "
        "RECIPE` alone lists them, `prepare` alone lists the recipes.",
        **example(
            f"  {_PROGRAM} prepare\n"
            f"  {_PROGRAM} prepare RAVDESS PATH prepared/ravdess --fold=2\n"
            f"  {_PROGRAM} prepare Generic my_corpus.csv prepared/mine --labels='[angry, happy, neutral, sad]'\n\n"
            "exit status: 0 prepared, 2 wrong arguments or a corpus that cannot be used"
        ),
    )
    prepare.add_argument("recipe", nargs="?", metavar="RECIPE", help="a folder of recipes/")
    prepare.add_argument("data_folder", nargs="?", metavar="DATA", help="the corpus")
    prepare.add_argument("save_folder", nargs="?", metavar="OUT", help="folder for the manifests")
    prepare.add_argument("--json", action="store_true", help="what was written and found as one JSON object")


def _add_evaluate(commands, example):
    evaluate = commands.add_parser(
        "evaluate",
        help="a trained model on a corpus: UA over the labels that both have",
        description="Score a trained model on any corpus: a table (path, emotion, optionally speaker, transcript, "
        "split), a folder or a manifest. Labels that differ in spelling only are mapped by themselves, others by "
        "--label_map. The model chooses among the mapped labels; what is left out is counted. Writes predictions.jsonl "
        "and results.json.",
        **example(
            f"  {_PROGRAM} evaluate results/demo_ib/1986 corpus.csv\n"
            f"  {_PROGRAM} evaluate results/demo_ib/1986 EMODB/wav --pattern '(?P<id>(?P<speaker>\\d\\d)[ab]\\d\\d"
            "(?P<emotion>[A-Z])[a-z])' --label_map hparams/label_maps/emodb_names.yaml\n"
            f"  {_PROGRAM} evaluate results/emodb_ib/1986/03 results/demo_corpus/manifests/test.json --data_root "
            "results/demo_corpus --direct --json\n"
            "  torchrun --nproc_per_node=4 -m speechbrain_emo evaluate DIR corpus.csv --num_workers 2\n\n"
            "Neither batch, order, workers nor the number of processes changes a score. "
            "Results: predictions.jsonl, results.json.\n\n"
            "exit status: 0 evaluated, 1 some recordings could not be used, 2 wrong arguments, no usable model, no "
            "common label"
        ),
    )
    evaluate.add_argument("model", metavar="MODEL", help="folder of a training or an exported model")
    evaluate.add_argument("source", metavar="FOLDER|TABLE|MANIFEST", help="the corpus")
    _add_source(evaluate)
    evaluate.add_argument("--corpus", metavar="NAME", help="entry of a label map of several corpora")
    evaluate.add_argument(
        "--split", metavar="NAME", help="train, valid or test (default: test where there are splits)"
    )
    evaluate.add_argument(
        "--out", metavar="DIR", help="default: evaluation/<name of the source> in the model's folder"
    )
    evaluate.add_argument(
        "--direct", action="store_true", help="ask for the label alone: fast, no text is generated"
    )
    evaluate.add_argument(
        "--level", type=float, metavar="DB", help="one gain that brings the median level to this"
    )
    evaluate.add_argument("--language", metavar="CODE", help="of the transcripts (default: the model's)")
    evaluate.add_argument(
        "--batch_size", type=positive, default=16, metavar="N", help="recordings at a time (default: 16)"
    )
    evaluate.add_argument(
        "--num_workers",
        type=count,
        default=0,
        metavar="N",
        help="processes that read audio meanwhile (default: 0)",
    )
    evaluate.add_argument(
        "--java", action="store_true", help="METEOR and SPICE of descriptions too: they start Java"
    )
    evaluate.add_argument("--device", metavar="DEVICE", help="cpu, cuda (default: a GPU where there is one)")
    evaluate.add_argument("--json", action="store_true", help="the metrics as one JSON object")


def _add_compare(commands, example):
    compare = commands.add_parser(
        "compare",
        help="run overlays over all folds and seeds; a table with paired significance",
        description="Train an experiment as it is and with each overlay, over all its folds and the given seeds, and "
        "print UA, WA and F1 with the difference to the first system: its interval over speakers, a paired "
        "bootstrap, McNemar's test. Differences within the spread over seeds are ties. Finished runs are not "
        "repeated, interrupted ones go on. Further arguments --key=value go to every run.",
        **example(
            f"  {_PROGRAM} compare hparams/demo_ib.yaml --overlays no_bottleneck,joint_branches --seeds "
            f"1986,1987,1988\n"
            f"  {_PROGRAM} compare hparams/emodb_ib.yaml --overlays beta_1,beta_annealed --folds 03,08,09 --split "
            "valid --data_folder=PATH\n"
            f"  {_PROGRAM} compare hparams/demo_ib.yaml --overlays no_bottleneck --table_only --latex\n\n"
            "exit status: 0 compared, 1 some runs failed (the table holds the others), 2 wrong arguments or nothing "
            "to compare"
        ),
    )
    compare.add_argument("experiment", metavar="YAML", help="as train.py takes it")
    compare.add_argument(
        "--overlays",
        required=True,
        metavar="A,B+C,...",
        help="files, or names in hparams/overlays; + joins several to one system",
    )
    compare.add_argument("--seeds", metavar="N,N,...", help="default: the YAML's own")
    compare.add_argument("--folds", metavar="A,B,...", help="default: all folds of the experiment")
    compare.add_argument(
        "--split", choices=("test", "valid"), default="test", help="valid: to choose a setting by"
    )
    compare.add_argument(
        "--condition", metavar="NAME", help="own_chain, speech (default: each system's headline)"
    )
    compare.add_argument("--table_only", action="store_true", help="train nothing")
    compare.add_argument("--plan", action="store_true", help="print the commands, train nothing")
    compare.add_argument(
        "--latex", action="store_true", help="print LaTeX instead of Markdown; both are written"
    )
    compare.add_argument("--json", action="store_true", help="print the rows as JSON")
    compare.add_argument("--out", metavar="DIR", help="default: results/comparison/<experiment>")


def run(options, rest):
    """Run one of these commands.

    Arguments
    ---------
    options : argparse.Namespace
        Parsed; ``command`` says which.
    rest : list of str
        What the parser does not know: overrides, for the commands that take some.

    Returns
    -------
    int
        Exit status.
    """
    if rest and options.command in ("check", "evaluate"):
        return _fail(f"{' '.join(rest)}: not known; see {_PROGRAM} {options.command} --help")
    commands = {"check": _check, "prepare": _prepare, "evaluate": _evaluate, "compare": _compare}
    return commands[options.command](options, rest)


def _check(options, rest):
    from speechbrain_emo.dataio.check import check_splits
    from speechbrain_emo.dataio.manifest import ManifestError

    try:
        splits, extra = _read_sources(options)
        labels = [x.strip() for x in options.labels.split(",")] if options.labels else None
        report = check_splits(
            splits,
            labels,
            audio=options.audio,
            max_duration=options.max_duration,
            progress=sys.stderr.isatty(),
        )
        report = report.with_findings(extra).without(options.ignore)
    except (ManifestError, ValueError, OSError) as error:
        return _fail(str(error))
    if options.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        print(report.table(options.most))
    return FOUND if options.strict and not report.ok else OK


def _read_sources(options):
    """(split -> records with complete paths, findings of reading) of the command line."""
    from speechbrain_emo.dataio.check import CheckFinding
    from speechbrain_emo.dataio.corpus_reader import audio_files, new_record, read_any
    from speechbrain_emo.dataio.labels import apply_label_map, read_label_map
    from speechbrain_emo.dataio.manifest import ManifestError

    splits, extra = {}, []
    for source in options.sources:
        name = Path(source).stem or "all"
        try:
            records, notes, root = read_any(
                source, options.pattern, None, options.data_root, check_files=False
            )
        except ManifestError as error:
            paths = audio_files(source) if Path(source).is_dir() and not options.pattern else []
            if not paths:
                raise
            # No emotions in it: the files alone are looked at.
            print(f"note: {error}; the files alone are checked", file=sys.stderr)
            records, notes, root = {str(p): new_record(str(p), 0.0, None) for p in paths}, [], ""
        rows = [str(note) for note in notes]
        if rows:
            extra.append(CheckFinding("unreadable", "rows or files that mean nothing", tuple(rows)))
        if options.label_map:
            label_map = read_label_map(options.label_map, name)
            records, notes = apply_label_map(records, label_map, sorted({v for v in label_map.values() if v}))
            extra += [CheckFinding("label_spelling", note.message) for note in notes]
        for key, record in records.items():
            record = json.loads(json.dumps(record).replace("{data_root}", json.dumps(root)[1:-1]))
            split = record.get("subset") if len(options.sources) == 1 else name
            splits.setdefault(split or name, {})[key] = record
    return splits, extra


def _prepare(options, overrides):
    from speechbrain_emo.dataio.manifest import ManifestError

    try:
        from recipes import bind_preparation, find_preparation, recipe_names
    except ImportError as error:
        return _fail(f"the recipes cannot be imported ({error}): run this in the toolkit's checkout")
    try:
        if options.recipe is None:
            print("\n".join(recipe_names()))
            return OK
        if options.save_folder is None:
            print(
                f"{find_preparation(options.recipe).__name__}{inspect.signature(find_preparation(options.recipe))}"
            )
            return OK if options.data_folder is None else _fail("give RECIPE DATA OUT")
        call = bind_preparation(options.recipe, values_of(overrides))
        if "data_folder" not in inspect.signature(call).parameters:
            return _fail(
                f"{options.recipe} is made from other corpora: its arguments are {inspect.signature(call)}"
            )
        done = call(data_folder=options.data_folder, save_folder=options.save_folder)
    except (ManifestError, ValueError, OSError) as error:
        return _fail(str(error))
    _print_preparation(done, options)
    return OK


def _print_preparation(done, options):
    told = list(getattr(done, "findings", ()))
    manifests = getattr(done, "manifests", {})
    report = Path(options.save_folder) / "data_check.json"
    checked = json.loads(report.read_text(encoding="utf-8"))["findings"] if report.is_file() else []
    if options.json:
        found = {"manifests": manifests, "findings": [str(f) for f in told], "data_check": checked}
        print(json.dumps(found, ensure_ascii=False))
        return
    for finding in told[:_MOST_NOTES]:
        print(f"note: {finding}", file=sys.stderr)
    if len(told) > _MOST_NOTES:
        print(f"note: {len(told) - _MOST_NOTES} more in preparation.json", file=sys.stderr)
    for finding in checked:
        print(f"{finding['kind']}: {finding['count']} ({finding['message']})", file=sys.stderr)
    for part, path in manifests.items():
        print(f"{part}: {path}")


def _evaluate(options, rest):
    import shlex
    import warnings

    import transformers

    from speechbrain_emo.brains.distributed import join_group, leave_group
    from speechbrain_emo.dataio.corpus_reader import read_any
    from speechbrain_emo.dataio.labels import mapped_corpora, read_label_map
    from speechbrain_emo.dataio.manifest import ManifestError
    from speechbrain_emo.inference import EmotionExplainer
    from speechbrain_emo.inference.evaluate_corpus import evaluate_corpus

    rank, _ = join_group()
    if rank or not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        label_map = None
        if options.label_map:
            name = options.corpus if mapped_corpora(options.label_map) else None
            label_map = read_label_map(options.label_map, name)
        records, notes, root = read_any(options.source, options.pattern, None, options.data_root)
        records = _of_split(records, options.split)
        for record in records.values():
            record["wav"] = record["wav"].replace("{data_root}", str(Path(root).resolve()), 1)
        run_opts, failure = usable_device(options.device)
        if failure:
            return _fail(failure)
        model = EmotionExplainer.from_hparams(source=options.model, run_opts=run_opts)
        out = Path(options.out or Path(options.model) / "evaluation" / Path(options.source).stem)
        metrics, mapped, failures = evaluate_corpus(
            model,
            records,
            out,
            label_map,
            options.batch_size,
            options.direct,
            options.level,
            options.language,
            {
                "command": f"{_PROGRAM} {shlex.join(sys.argv[1:])}",
                "model": str(options.model),
                "source": str(options.source),
                "findings": [str(note) for note in notes],
            },
            sys.stderr.isatty(),
            options.num_workers,
            options.java,
        )
    except (ManifestError, ValueError, OSError, RuntimeError) as error:
        return _fail(f"process {rank}: {error}" if rank else str(error))
    leave_group()
    if rank:
        return FOUND if failures else OK
    _print_evaluation(options, metrics, mapped, failures, [*map(str, notes), *mapped.notes], out)
    return FOUND if failures else OK


def _of_split(records, split):
    """Records of a split; without one, the test part where there is one."""
    known = sorted({r["subset"] for r in records.values() if r.get("subset")})
    if split is None:
        split = "test" if "test" in known else None
    if split is None:
        return records
    chosen = {k: r for k, r in records.items() if r.get("subset") == split}
    if not chosen:
        raise ValueError(f"--split {split}: the corpus has {', '.join(known) or 'no splits'}")
    return chosen


def _print_evaluation(options, metrics, mapped, failures, notes, out):
    from speechbrain_emo.results import CONDITION_NAMES, format_table, result_rows, split_rows

    if options.json:
        print(
            json.dumps(
                {"labels": mapped.labels, "label_map": mapped.label_map, "metrics": metrics},
                ensure_ascii=False,
            )
        )
    else:
        pairs = ", ".join(f"{theirs} -> {ours or 'left out'}" for theirs, ours in mapped.label_map.items())
        print(f"labels: {pairs}")
        rows = []
        for condition in ("own_chain", "speech", "generated"):
            key = f"test.ser.{condition}"
            if metrics.get(f"{key}.ua") is None:
                continue
            row = {"condition": CONDITION_NAMES[condition], "n": metrics[f"{key}.count"]}
            for column, name in (
                ("UA", "ua"),
                ("WA", "wa"),
                ("macro-F1", "macro_f1"),
                ("weighted F1", "weighted_f1"),
            ):
                row[column] = metrics[f"{key}.{name}"]
            if metrics.get(f"{key}.ua_low") is not None:
                row["95 % of UA"] = (metrics[f"{key}.ua_low"], metrics[f"{key}.ua_high"])
            row["UA among all labels"] = metrics.get(f"{key}.ua_all_labels")
            rows.append(row)
        print(format_table(rows))
        scores, voice = split_rows(result_rows(metrics))
        words = {k: v for row in scores for k, v in row.items() if k.startswith("WER")}
        rows = [{**row, **words} for row in voice] or [words]
        if rows[0]:
            print(format_table(rows))
        print(f"chance: {1 / len(mapped.labels):.3f}. Predictions and all metrics: {out}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for message in failures.values():
        print(f"error: {message}", file=sys.stderr)


def _compare(options, overrides):
    import shlex

    from speechbrain_emo.comparison import (
        compare_systems,
        execute,
        plan_runs,
        read_next_line_baselines,
        read_system,
        write_comparison,
    )
    from speechbrain_emo.experiment import OverlayError
    from speechbrain_emo.results import format_table

    try:
        values_of(overrides)
        if not Path(options.experiment).is_file():
            return _fail(f"{options.experiment}: no such file; give an experiment of hparams/")
        systems = {"base": [], **dict(map(_named_overlays, options.overlays.split(",")))}
        seeds = [int(s) for s in options.seeds.split(",")] if options.seeds else None
        folds = options.folds.split(",") if options.folds else None
        runs = plan_runs(options.experiment, systems, seeds, folds, overrides)
        if options.plan:
            for one in runs:
                for fold in folds or [None]:
                    arguments = [*one.arguments, *([f"--fold={fold}"] if fold else [])]
                    print(f"python train.py {shlex.join(arguments)}")
            return OK
        failed = (
            {}
            if options.table_only
            else execute(runs, folds, options.split, lambda t: print(t, file=sys.stderr))
        )
        done = {name: [r for r in runs if r.system == name and r.is_done(options.split)] for name in systems}
        missing = [f"{r.system}, seed {r.seed}" for r in runs if not r.is_done(options.split)]
        if not done["base"]:
            return _fail(
                f"{options.experiment} itself has no finished run to compare with: {', '.join(missing)}"
            )
        found = [read_system(name, of, options.split, options.condition) for name, of in done.items() if of]
        rows = compare_systems(found + read_next_line_baselines(done["base"]))
        context = {
            "command": f"{_PROGRAM} compare {options.experiment} --overlays {options.overlays}"
            + "".join(f" --{n} {getattr(options, n)}" for n in ("seeds", "folds") if getattr(options, n))
            + f" --split {options.split}",
            "split": options.split,
            "missing": missing,
            "overrides": list(overrides),
        }
        experiment = Path(options.experiment).stem
        table = write_comparison(options.out or Path("results") / "comparison" / experiment, rows, context)
    except (ValueError, OSError, OverlayError) as error:
        return _fail(str(error))
    if options.json:
        print(json.dumps({**context, "rows": rows}, ensure_ascii=False))
    else:
        print(format_table(rows, style="latex") if options.latex else table)
    for name in missing:
        print(f"not in the table: {name}{' (failed)' if name in failed else ''}", file=sys.stderr)
    return FOUND if missing else OK


def _named_overlays(text):
    """(name, files) of overlays joined by +."""
    files = []
    for part in text.split("+"):
        path = (
            Path(part) if part.endswith((".yaml", ".yml")) else Path("hparams") / "overlays" / f"{part}.yaml"
        )
        if not path.is_file():
            raise ValueError(f"overlay {part!r}: neither a file nor a name in hparams/overlays")
        files.append(str(path))
    return "_".join(Path(f).stem for f in files), files


def values_of(overrides):
    """Values of ``--key=value`` arguments, read as YAML.

    Arguments
    ---------
    overrides : list of str

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If one is not of that form.

    Example
    -------
    >>> values_of(["--fold=2", "--labels=[angry, sad]"])
    {'fold': 2, 'labels': ['angry', 'sad']}
    """
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not (key.startswith("--") and equals):
            raise ValueError(f"{text}: not known; further arguments are --key=value")
        try:
            values[key[2:]] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            raise ValueError(f"{text}: {value!r} is no YAML value ({error})") from error
    return values


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return USAGE
