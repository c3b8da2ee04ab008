"""What ``train.py`` does, in SpeechBrain's order, for every experiment.

Parse the arguments, start DDP, load the YAML, make the experiment's folder, prepare the data on the main process
and run. Four keys of the YAML say what is particular: ``requires`` (experiments that must be complete first),
``folds`` (with ``fold: null``: all of them, one after another), ``prepare`` and ``run``.
"""

import io
import logging
import pathlib
import shlex
import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from speechbrain.utils.distributed import run_on_main

from speechbrain_emo.brains.distributed import leave_group
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.dry_run import MissingSizes, estimate
from speechbrain_emo.inference.safe_loading import UnsafeModelError

logger = logging.getLogger(__name__)


class OverlayError(ValueError):
    """An overlay or an override that cannot be applied."""


def _plain_yaml(text):
    """A YAML text as plain data, its tags ignored."""
    yaml = YAML(typ="rt", pure=True)
    return yaml.load(text) or {}


def merge_overrides(overlay_files, overrides):
    """Overlays and command line as one override text; what comes later wins.

    Arguments
    ---------
    overlay_files : sequence of str
        Small YAML files, for example an ablation.
    overrides : str or mapping
        YAML of the command line.

    Returns
    -------
    str
        YAML text for ``load_hyperpyyaml``; tags are kept.

    Raises
    ------
    OverlayError
        If an overlay does not exist or is no mapping.

    Example
    -------
    >>> print(merge_overrides([], "seed: 3"))
    seed: 3
    <BLANKLINE>
    """
    merged = {}

    def update(base, new):
        for key, value in new.items():
            tagged = getattr(getattr(value, "tag", None), "value", None)
            if isinstance(value, dict) and isinstance(base.get(key), dict) and not tagged:
                update(base[key], value)
            else:
                base[key] = value

    for file in overlay_files:
        if not pathlib.Path(file).is_file():
            raise OverlayError(f"overlay {file!r} does not exist")
        data = _plain_yaml(pathlib.Path(file).read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise OverlayError(f"overlay {file!r} is not a mapping of keys to values")
        if not merged:
            merged = data
        else:
            update(merged, data)
    command_line = _plain_yaml(overrides) if isinstance(overrides, str) else dict(overrides or {})
    update(merged, command_line)
    out = io.StringIO()
    if merged:
        YAML(typ="rt", pure=True).dump(merged, out)
    return out.getvalue()


def peek(hparams_file, overrides):
    """Top-level plain values of a YAML with overrides applied, without building anything.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.
    overrides : str
        YAML text.

    Returns
    -------
    mapping
        References are resolved; tags are not acted on.
    """
    with open(hparams_file, encoding="utf-8") as f:
        resolved = resolve_references(f, overrides, overrides_must_match=False)
    return _plain_yaml(resolved.read())


def _take_overlays(arguments):
    rest, overlays = [], []
    for argument in arguments:
        if argument.startswith("--overlay="):
            overlays += argument.split("=", 1)[1].split(",")
        else:
            rest.append(argument)
    return rest, overlays


def main(arguments):
    """Run an experiment from command-line arguments.

    Arguments
    ---------
    arguments : list of str
        A YAML file, overrides ``--key=value``, ``--overlay=FILE[,FILE]`` and SpeechBrain's run options.

    Returns
    -------
    int
        Exit code: 0, or 2 after a message where the arguments are wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        import __main__

        print(__main__.__doc__ if __main__.__doc__ else __doc__)
        return 0 if arguments else 2
    command = "python train.py " + " ".join(shlex.quote(a) for a in arguments)
    arguments, overlays = _take_overlays(arguments)
    if not pathlib.Path(arguments[0]).is_file():
        print(f"{arguments[0]!r} is not a file: the first argument is a YAML of hparams/", file=sys.stderr)
        return 2
    hparams_file, run_opts, overrides = sb.parse_arguments(arguments)
    try:
        overrides = merge_overrides(overlays, overrides)
    except OverlayError as error:
        print(error, file=sys.stderr)
        return 2
    sb.utils.distributed.ddp_init_group(run_opts)
    try:
        run_experiment(hparams_file, run_opts, overrides, command)
    except (FoldError, ManifestError, MissingSizes, UnsafeModelError) as error:
        # The user's data, YAML or model is at fault; a traceback would hide what the message says.
        print(f"error: {error}", file=sys.stderr)
        return 2
    leave_group()
    return 0


def run_experiment(hparams_file, run_opts, overrides, command=""):
    """Run what an experiment requires, then its folds or its one run.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : str
        YAML text.
    command : str
        What was typed, for ``results.json``.
    """
    plain = peek(hparams_file, overrides)
    folds = plain.get("folds")
    if folds and plain.get("fold") is not None:
        overrides = _with(overrides, fold=_named_fold(plain["fold"], [str(f) for f in folds]))
    if folds and plain.get("fold") is None:
        for fold in folds:
            with_fold = dict(_plain_yaml(overrides) or {}, fold=str(fold))
            out = io.StringIO()
            YAML(typ="rt", pure=True).dump(with_fold, out)
            run_experiment(hparams_file, run_opts, out.getvalue(), command)
            if plain.get("dry_run"):
                # The folds have the same sizes; the report names their number.
                return
        hparams = _load(hparams_file, _with(overrides, fold=str(folds[0])))
        run_on_main(hparams["pool"], kwargs={"hparams": hparams, "folds": [str(f) for f in folds]})
        return
    if plain.get("dry_run"):
        print(estimate({**_load(hparams_file, overrides), "command": command}))
        return
    hparams = _load(hparams_file, overrides)
    # Before what is required, which may train for long: a wrong data_folder is told at once.
    if hparams.get("prepare") is not None:
        run_on_main(hparams["prepare"])
    for required in plain.get("requires") or ():
        needed = dict(required)
        file = pathlib.Path(hparams_file).parent / needed.pop("file")
        out = io.StringIO()
        YAML(typ="rt", pure=True).dump(needed.get("overrides") or {}, out)
        run_experiment(str(file), run_opts, out.getvalue() if needed.get("overrides") else "", command)
    if plain.get("requires"):
        # Loading sets the seed; what was required has drawn from the generators.
        hparams = _load(hparams_file, overrides)
    hparams["command"] = command
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"], hyperparams_to_save=hparams_file, overrides=overrides
    )
    # SpeechBrain's log takes everybody's debugging lines: matplotlib writes a thousand about its fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    hparams["run"](hparams=hparams, run_opts=run_opts)


class FoldError(ValueError):
    """A fold that the experiment does not have."""


def _named_fold(given, folds):
    """The fold that was meant: YAML reads 08 as the number 8.

    Example
    -------
    >>> _named_fold(8, ["03", "08"])
    '08'
    """
    for fold in folds:
        if str(given) == fold or (isinstance(given, int) and fold.isdigit() and int(fold) == given):
            return fold
    raise FoldError(f"fold is {given!r}; this experiment has {', '.join(folds)}")


def _with(overrides, **values):
    out = io.StringIO()
    YAML(typ="rt", pure=True).dump({**(_plain_yaml(overrides) or {}), **values}, out)
    return out.getvalue()


def load_experiment(hparams_file, overrides=None):
    """The hyperparameters of an experiment, loaded as ``train.py`` loads them; nothing is run.

    Arguments
    ---------
    hparams_file : str
        YAML file.
    overrides : mapping or str, optional
        Over it.

    Returns
    -------
    dict
    """
    return _load(str(hparams_file), merge_overrides([], overrides or {}))


def _load(hparams_file, overrides):
    with open(hparams_file, encoding="utf-8") as f:
        return load_hyperpyyaml(f, overrides or None)
