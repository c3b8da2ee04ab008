"""A list of overlays over all folds and seeds, and the table that says which differences are more than chance.

One run is one process of ``train.py``, so that each is what it would be alone; finished runs are not repeated and
interrupted ones go on. Numbers come from the saved predictions of the folds.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from speechbrain_emo import results
from speechbrain_emo.experiment import merge_overrides, peek
from speechbrain_emo.metrics.classification import classification_scores, speaker_interval
from speechbrain_emo.metrics.significance import mcnemar, paired_bootstrap
from speechbrain_emo.prompts.next_line import split_label

#: Files of predictions, by split.
PREDICTIONS = {"test": "predictions.jsonl", "valid": "valid_predictions.jsonl"}
#: Answers of runs about next lines (``evaluation.kind: next_line``), all conditions and splits in one file.
ANSWERS = "answers.jsonl"
#: Rows of such a run that are systems of their own: condition -> name.
NEXT_LINE_BASELINES = {
    "majority": "majority label",
    "copy_last": "label of the last line",
    "copy_own": "speaker's own last label",
    "gru": "GRU, no language model",
}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Run:
    """One seed of one system.

    Arguments
    ---------
    system : str
        ``base``, or the overlays' names.
    seed : int
        Its seed.
    arguments : tuple of str
        What ``train.py`` gets.
    folders : dict of str to pathlib.Path
        Fold -> folder; one entry with the name "" where there are no folds.

    Example
    -------
    >>> Run("base", 1, ("x.yaml",), {"": Path("results/x/1")}).is_done()
    False
    """

    system: str
    seed: int
    arguments: tuple
    folders: dict

    def is_done(self, split="test"):
        """Whether every fold has its results."""
        files = (PREDICTIONS[split], *([ANSWERS] if split == "test" else []))
        return all(
            (folder / "done.json").is_file() and any((folder / name).is_file() for name in files)
            for folder in self.folders.values()
        )


def plan_runs(hparams_file, systems, seeds=None, folds=None, overrides=()):
    """What has to be run for a comparison.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        Experiment.
    systems : dict of str to list of str
        Name -> overlay files; the first, usually ``base: []``, is what the others are compared with. Those with
        overlays get
        the folder ``<output folder's root>/<experiment>_<name>``: data, features and pretrained backbones stay shared.
    seeds : sequence of int, optional
        Default: the YAML's own.
    folds : sequence of str, optional
        Some of the experiment's folds. Default: all.
    overrides : sequence of str
        ``--key=value`` for every run.

    Returns
    -------
    list of Run
        Systems in order, seeds inside.

    Raises
    ------
    ValueError
        If a fold does not exist.
    OverlayError
        If an overlay cannot be read.
    """
    runs = []
    command_line = "\n".join(f"{o[2:].split('=', 1)[0]}: {o.split('=', 1)[1]}" for o in overrides)
    for name, overlays in systems.items():
        merged = YAML(typ="rt", pure=True).load(merge_overrides(overlays, command_line)) or {}
        plain = peek(str(hparams_file), _dumped(merged))
        all_folds = [str(f) for f in plain.get("folds") or ()]
        unknown = sorted(set(map(str, folds or ())) - set(all_folds))
        if unknown:
            raise ValueError(
                f"folds {unknown} are none of {', '.join(all_folds) or 'this experiment, which has no folds'}"
            )
        chosen = [f for f in all_folds if folds is None or f in set(map(str, folds))]
        for seed in seeds or [plain["seed"]]:
            arguments = [str(hparams_file), *overrides, f"--seed={seed}"]
            if overlays:
                arguments.append(f"--overlay={','.join(map(str, overlays))}")
                # Only the results move: what `experiment` names beside (manifests, features) is the same for all.
                tail = "/<fold>" if all_folds or "<fold>" in str(plain["output_folder"]) else ""
                arguments.append(f"--output_folder=!ref results/<experiment>_{name}/<seed>{tail}")
            folders = {}
            for fold in chosen or [""]:
                values = dict(merged, seed=seed, **({"fold": fold} if fold else {}))
                folder = Path(str(peek(str(hparams_file), _dumped(values))["output_folder"]))
                if overlays:
                    experiment = peek(str(hparams_file), _dumped(values))["experiment"]
                    folder = Path(f"results/{experiment}_{name}/{seed}") / (
                        fold or (folder.name if tail else "")
                    )
                folders[fold] = folder
            runs.append(Run(name, seed, tuple(arguments), folders))
    return runs


def _dumped(values):
    import io

    out = io.StringIO()
    YAML(typ="rt", pure=True).dump(values, out)
    return out.getvalue() if values else ""


def execute(runs, folds=None, split="test", log=print):
    """Run what is not done; a failure does not stop the others.

    Arguments
    ---------
    runs : list of Run
        Of :func:`plan_runs`.
    folds : sequence of str, optional
        As given to :func:`plan_runs`; each is a run of its own then, without pooling.
    split : str
        Which predictions must be there.
    log : callable
        Takes lines of progress.

    Returns
    -------
    dict of str to int
        ``<system>, seed <seed>`` -> exit status, of the runs that failed.
    """
    failed = {}
    for number, run in enumerate(runs, 1):
        name = f"{run.system}, seed {run.seed}"
        if run.is_done(split) and not _settings_changed(run):
            log(f"[{number}/{len(runs)}] {name}: done before")
            continue
        log(f"[{number}/{len(runs)}] {name}: python train.py {' '.join(run.arguments)}")
        for fold in folds or [None]:
            arguments = [*run.arguments, *([f"--fold={fold}"] if fold else [])]
            status = subprocess.run(
                [sys.executable, "-m", "speechbrain_emo", "train", *arguments], check=False
            ).returncode
            if status != 0:
                failed[f"{name}{f', fold {fold}' if fold else ''}"] = status
                log(f"[{number}/{len(runs)}] {name}: exit status {status}")
                break
    return failed


def _settings_changed(run):
    """Whether a YAML of a finished run is newer than the run: train.py then says whether its settings are others."""
    overlays = [a.split("=", 1)[1].split(",") for a in run.arguments if a.startswith("--overlay=")]
    files = [run.arguments[0], *(file for listed in overlays for file in listed)]
    newest = max((Path(f).stat().st_mtime for f in files if Path(f).is_file()), default=0.0)
    return any((folder / "done.json").stat().st_mtime < newest for folder in run.folders.values())


@dataclass(frozen=True)
class SystemPredictions:
    """Labels that the seeds of one system give.

    Arguments
    ---------
    system : str
        Its name.
    condition : str
        ``own_chain`` where the system has it, else ``speech``.
    labels : list of str
        The experiment's labels.
    by_seed : dict of int to dict
        Seed -> (id -> (reference, prediction, speaker)).
    costs : dict
        Cells about parameters, time and memory.
    """

    system: str
    condition: str
    labels: list
    by_seed: dict
    costs: dict = field(default_factory=dict)


def read_system(system, runs, split="test", condition=None):
    """Read the predictions of a system's runs.

    Arguments
    ---------
    system : str
        Its name.
    runs : list of Run
        Its seeds, all done.
    split : str
        ``test`` or ``valid``.
    condition : str, optional
        Whose label. Default: the headline, ``own_chain`` where the system writes a chain, else ``speech``; of a run
        about next lines the first condition of its first row of ``prediction``.

    Returns
    -------
    SystemPredictions

    Raises
    ------
    ValueError
        If a condition is missing.
    """
    by_seed, labels = {}, None
    found = [results.read_results(folder) for run in runs for folder in run.folders.values()]
    costs = results.cost_columns(found)
    if all(results.next_line_headline(r) for r in found):
        by_seed = {run.seed: _answers(run, condition) for run in runs}
        condition = condition or results.next_line_headline(found[0])["condition"]
        return SystemPredictions(system, condition, _emotions(by_seed), by_seed, costs)
    for run in runs:
        lines = {}
        for fold, folder in run.folders.items():
            labels = labels or results.read_results(folder)["evaluation"]["labels"]
            for line in results.read_predictions(folder / PREDICTIONS[split]):
                if line.get("emotion") is None:
                    continue
                scores = line["scores"]
                condition = condition or ("own_chain" if "own_chain" in scores else "speech")
                if condition not in scores:
                    raise ValueError(f"{folder}: no scores of {condition!r}; there are {', '.join(scores)}")
                # A speaker may validate in several folds: the fold belongs to the name.
                name = f"{fold}/{line['id']}" if split == "valid" else line["id"]
                answer = results.predicted_label(scores[condition], labels)
                lines[name] = (line["emotion"], answer, str(line["speaker"]))
        by_seed[run.seed] = lines
    return SystemPredictions(system, condition, list(labels), by_seed, costs)


def read_next_line_baselines(runs):
    """The rows without training or language model beside a system's runs about next lines.

    Arguments
    ---------
    runs : list of Run
        Seeds of the system, all done.

    Returns
    -------
    list of SystemPredictions
        Empty for other runs.
    """
    found = [results.read_results(folder) for run in runs for folder in run.folders.values()]
    if not found or not all(results.next_line_headline(r) for r in found):
        return []
    systems = []
    for condition, name in NEXT_LINE_BASELINES.items():
        by_seed = {run.seed: _answers(run, condition, missing_ok=True) for run in runs}
        by_seed = {seed: lines for seed, lines in by_seed.items() if lines}
        if not by_seed:
            continue
        costs, task = {}, results.next_line_headline(found[0])["task"]
        for key, value in found[0]["metrics"].items():
            if key.startswith(f"test.{task}.{condition}@") and key.endswith(".own_parameters"):
                costs["trainable (thousands)"] = round(value / 1000)
            if key.startswith(f"test.{task}.{condition}@") and key.endswith(".latency"):
                costs["one line (s)"] = value
        systems.append(SystemPredictions(name, condition, _emotions(by_seed), by_seed, costs))
    return systems


def _answers(run, condition=None, missing_ok=False):
    """id -> (emotion, most likely emotion, conversation) of a run's headline task under a condition."""
    lines = {}
    for folder in run.folders.values():
        headline = results.next_line_headline(results.read_results(folder))
        wanted = condition or headline["condition"]
        conditions = set()
        for text in (folder / ANSWERS).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line.get("split", "test") != "test" or line["task"] != headline["task"]:
                continue
            if (
                line["phase"] not in (None, headline["phase"])
                and line["condition"] not in NEXT_LINE_BASELINES
            ):
                continue
            conditions.add(line["condition"])
            if line["condition"] == wanted:
                # Lines of one conversation are not independent: it stands where the speaker stands elsewhere.
                conversation = line["id"].rpartition("_")[0]
                pair = (split_label(line[name])[1] for name in ("truth", "scored"))
                lines[line["id"]] = (*pair, conversation)
        if not lines and not missing_ok:
            raise ValueError(f"{folder}: no answers of {wanted!r}; there are {', '.join(sorted(conditions))}")
    return lines


def _emotions(by_seed):
    """Emotions that are true or answered: an answer may name one that no line of the test has."""
    return sorted({name for lines in by_seed.values() for line in lines.values() for name in line[:2]})


def compare_systems(systems, num_resamples=9999):
    """Rows of the comparison; the first system is what the others are compared with.

    Arguments
    ---------
    systems : list of SystemPredictions
        On the same utterances.
    num_resamples : int
        Of the bootstraps.

    Returns
    -------
    list of dict
        For :func:`speechbrain_emo.results.format_table`: UA and WA (mean and deviation over seeds), the difference in
        UA to
        the first system with its 95 % interval over speakers, p of the paired bootstrap and of McNemar's test (the
        largest
        over the seeds that both have), and a verdict. A difference that is not larger than the deviation over seeds
        is a
        tie, whatever p says; with one seed the verdict says that the deviation is unknown.

    Raises
    ------
    ValueError
        If systems were not tested on the same utterances.

    Example
    -------
    >>> def system(name, answers):
    ...     lines = {str(i): (r, a, f"s{i // 2}") for i, (r, a) in enumerate(zip("abab", answers))}
    ...     return SystemPredictions(name, "speech", ["a", "b"], {1: lines, 2: lines})
    >>> rows = compare_systems([system("base", "aaaa"), system("other", "abab")], num_resamples=99)
    >>> rows[1]["Δ UA"], rows[1]["verdict"]
    (0.5, 'better')
    """
    base, rows = systems[0], []
    for system in systems:
        scores = {}
        for seed, lines in system.by_seed.items():
            references, answers, _ = zip(*lines.values())
            scores[seed] = classification_scores(references, answers, system.labels)
        row = {"system": system.system, "label": f"label|{system.condition}"}
        for column, name in (
            ("UA", "ua"),
            ("WA", "wa"),
            ("macro-F1", "macro_f1"),
            ("weighted F1", "weighted_f1"),
        ):
            values = [getattr(s, name) for s in scores.values()]
            row[column] = {"mean": float(np.mean(values)), "std": _deviation(values)}
        interval = _interval(system, num_resamples)
        if interval is not None:
            row["95 % of UA"] = (interval.ua.low, interval.ua.high)
        if system is not base:
            row.update(_difference(base, system, row["UA"], rows[0]["UA"], num_resamples))
        row["seeds"] = len(scores)
        row.update(system.costs)
        rows.append(row)
    return rows


def _deviation(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _interval(system, num_resamples):
    lines = [line for lines in system.by_seed.values() for line in lines.values()]
    return speaker_interval(*zip(*lines), system.labels, num_resamples)


def _difference(base, system, own, reference, num_resamples):
    seeds = [seed for seed in base.by_seed if seed in system.by_seed]
    if not seeds:
        raise ValueError(
            f"{system.system} and {base.system} have no seed in common: {list(system.by_seed)}, {list(base.by_seed)}"
        )
    pairs, tests = [], []
    for seed in seeds:
        first, second = base.by_seed[seed], system.by_seed[seed]
        if first.keys() != second.keys() or any(first[k][0] != second[k][0] for k in first):
            other = len(first.keys() ^ second.keys())
            raise ValueError(
                f"{system.system} was not tested on what {base.system} was (seed {seed}: {other} utterances "
                "differ): no paired comparison"
            )
        lines = [(first[k][0], first[k][1], second[k][1], first[k][2]) for k in first]
        pairs += lines
        tests.append(mcnemar(*list(zip(*lines))[:3]).p)
    labels = list(dict.fromkeys([*base.labels, *system.labels]))
    found = paired_bootstrap(*zip(*pairs), labels, num_resamples)
    row = {"Δ UA": own["mean"] - reference["mean"]}
    if found is not None:
        row["95 % of Δ"] = (found.low, found.high)
        row["p (bootstrap over speakers)"] = found.p
    row["p (McNemar)"] = max(tests)
    row["verdict"] = _verdict(
        row["Δ UA"], own["std"], reference["std"], max(tests) if found is None else found.p
    )
    return row


def _verdict(difference, own, reference, p):
    word = "better" if difference > 0 else "worse"
    if own is None or reference is None:
        return f"{word}, spread over seeds unknown" if p < SIGNIFICANT else "no difference shown (one seed)"
    if abs(difference) <= max(own, reference):
        return "tie: within the spread over seeds"
    return word if p < SIGNIFICANT else "tie: not significant"


def write_comparison(folder, rows, context):
    """Write ``comparison.md``, ``comparison.tex`` and ``comparison.json``.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where to.
    rows : list of dict
        Of :func:`compare_systems`.
    context : dict
        What else the JSON says: the command, the split.

    Returns
    -------
    str
        The Markdown table.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = results.format_table(rows)
    (folder / "comparison.md").write_text(f"{table}\n\n    {context['command']}\n", encoding="utf-8")
    (folder / "comparison.tex").write_text(results.format_table(rows, style="latex") + "\n", encoding="utf-8")
    content = json.dumps({**context, "rows": rows}, ensure_ascii=False, indent=1)
    (folder / "comparison.json").write_text(content + "\n", encoding="utf-8")
    return table
