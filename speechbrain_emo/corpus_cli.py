"""Commands about corpora: ``check``, ``prepare``, ``evaluate``, ``compare``; ``cli.py`` adds them to its own."""

import inspect
import json
import sys
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

OK, FOUND, USAGE = 0, 1, 2
COMMANDS = ("check", "prepare")
_PROGRAM = "python -m speechbrain_emo"


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
        "--most", type=int, default=5, metavar="N", help="names shown of each finding (default: 5)"
    )
    check.add_argument("--strict", action="store_true", help="exit status 1 when anything is found")
    check.add_argument("--json", action="store_true", help="one JSON object with all names")


def _add_prepare(commands, example):
    prepare = commands.add_parser(
        "prepare",
        help="manifests of a corpus, by the name of its recipe",
        description="Run the preparation of a recipe: read the corpus, split it, measure descriptors, check the data, "
        "write train.json, valid.json, test.json. Further arguments --key=value are the preparation's own; `prepare "
        "RECIPE` alone "
        "lists them, `prepare` alone lists the recipes.",
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
    if rest and options.command == "check":
        return _fail(f"{' '.join(rest)}: not known; see {_PROGRAM} {options.command} --help")
    return {"check": _check, "prepare": _prepare}[options.command](options, rest)


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
    report = Path(options.save_folder) / "data_check.json"
    if report.is_file():
        for finding in json.loads(report.read_text(encoding="utf-8"))["findings"]:
            print(f"{finding['kind']}: {finding['count']} ({finding['message']})", file=sys.stderr)
    for part, path in getattr(done, "manifests", {}).items():
        print(f"{part}: {path}")
    return OK


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
