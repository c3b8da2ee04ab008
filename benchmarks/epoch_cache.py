"""Epoch time of VIB-SER training with the feature cache and without it (live encoding).

The experiment of a YAML is built twice, with ``cache: off`` and ``cache: layers``, from the same seed. Both take
the same optimiser steps on the same utterances in turns (live first, then cached, in the next step the other way
round), data loading included; validation and checkpoints are not part of it. Every phase is measured. The cache is
filled in a temporary folder with the utterances of these steps; its filling is timed apart. The features that a
cached step reads were written a moment ago, so they come from the system's page cache as they do from the second
epoch on.

Fair reference: ``live``, the same training with the frozen encoder in the loop. The mean losses are printed: they
agree as far as the arithmetic of the precision goes.

Needs the demo's corpus and backbones (``make demo`` makes them), or ``--toy`` for the made-up tones of the tests.
Run it in the root of the repository: the paths in ``hparams/`` begin there.
"""

import contextlib
import io
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from tqdm import tqdm

from benchmarks.common import Table, argument_parser, compare, print_tables, ratio_cell
from speechbrain_emo.brains.speech_llm_experiment import SpeechLLMExperiment
from speechbrain_emo.experiment import merge_overrides, peek

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = "python -m benchmarks.epoch_cache --steps 20 --rounds 3\n  python -m benchmarks.epoch_cache --toy"
EXPERIMENT = "hparams/demo_ib.yaml"
REFERENCE = "live"


@dataclass(frozen=True)
class PhaseResult:
    """What one phase gave.

    Arguments
    ---------
    phase : str
        Its key.
    times : dict of str to list of float
        Seconds of the measured steps in each round, for ``live`` and ``cached``.
    losses : dict of str to float
        Mean loss of the measured steps of the first round, warm-up included.
    num_steps, all_steps : int
        Measured steps, and steps of the whole epoch.
    audio_seconds : float
        Of the measured steps.

    Example
    -------
    >>> PhaseResult("1.asr", {}, {}, 20, 94, 60.0).all_steps
    94
    """

    phase: str
    times: dict
    losses: dict
    num_steps: int
    all_steps: int
    audio_seconds: float


def missing_parts(experiment, overlays=(), overrides=None):
    """Files and folders that an experiment reads and that are not there.

    Arguments
    ---------
    experiment : str
        YAML file.
    overlays : sequence of str
        YAML files over it.
    overrides : dict, optional
        Over both.

    Returns
    -------
    list of str
    """
    plain = peek(experiment, merge_overrides(overlays, overrides or {}))
    needed = [
        *plain["manifests"].values(),
        *(f"{plain['backbones']}/{x}/config.json" for x in ("encoder", "llm")),
    ]
    return [str(path) for path in needed if not Path(path).is_file()]


def build_experiment(experiment, overlays, overrides, folder, cache):
    """The experiment of a YAML that writes to a folder of its own.

    Arguments
    ---------
    experiment : str
        YAML file.
    overlays : sequence of str
        YAML files over it.
    overrides : dict
        Over both.
    folder : Path
        Gets what the experiment and its cache write.
    cache : str
        ``off``, ``layers`` or ``weighted``.

    Returns
    -------
    SpeechLLMExperiment
    """
    own = {
        "output_folder": str(folder / f"run_{cache}"),
        "cache_folder": str(folder / "features"),
        "cache": cache,
    }
    with open(experiment, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, merge_overrides(overlays, {**overrides, **own}))
    return SpeechLLMExperiment(hparams, {"device": hparams.get("device", "cpu")})


def plan_phase(brain, key, num_steps):
    """Enter a phase; the plans of its first epoch (all if ``num_steps`` is 0) and how many the epoch has."""
    # As at the start of a training: another phase before this one would have its best weights loaded.
    brain.position = None
    brain.on_stage_start(sb.Stage.TRAIN, brain.schedule.first_epoch(key))
    brain.modules.train()
    plans = brain.sampler.plans
    return (plans[:num_steps] if num_steps else plans), len(plans)


def fill_cache(experiment, plans):
    """Encode the utterances of some plans.

    Arguments
    ---------
    experiment : SpeechLLMExperiment
        With a cache.
    plans : list of StepPlan
        Of its training data.

    Returns
    -------
    tuple of float
        Seconds it took, seconds of audio, bytes on disk.
    """
    numbers = sorted({item.record for plan in plans for micro in plan.micro_batches for item in micro})
    records = [experiment.data["train"].records[i] for i in numbers]
    encoder = experiment.encoder.to(experiment.brain.device)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        experiment.cache.fill(records, encoder, experiment._load, experiment.brain.device, progress=False)
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in Path(experiment.hparams["cache_folder"]).rglob("*") if f.is_file())
    return seconds, sum(r["duration"] for r in records), size


def measure_phase(experiments, key, num_steps, rounds):
    """Time the steps of a phase with both experiments in turns.

    Arguments
    ---------
    experiments : dict of str to SpeechLLMExperiment
        ``live`` and ``cached``; the cache holds the utterances.
    key : str
        Key of the phase.
    num_steps : int
        Steps of a round; 0 for the whole epoch.
    rounds : int
        Times the steps are taken, after two steps that are not timed.

    Returns
    -------
    PhaseResult
    """
    planned = {name: plan_phase(e.brain, key, num_steps) for name, e in experiments.items()}
    plans, all_steps = planned[REFERENCE]
    times = {name: [] for name in experiments}
    losses = {name: [] for name in experiments}

    def step(name, plan):
        experiment = experiments[name]
        start = time.perf_counter()
        loss = experiment.brain.fit_batch(experiment.data["train"][plan])
        return time.perf_counter() - start, float(loss)

    for plan in plans[:2]:
        for name in experiments:
            losses[name].append(step(name, plan)[1])
    for number in range(rounds):
        total = dict.fromkeys(experiments, 0.0)
        bar = tqdm(plans, desc=f"{key}, round {number + 1} of {rounds}", leave=False, disable=None)
        for i, plan in enumerate(bar):
            for name in list(experiments) if i % 2 == 0 else list(reversed(experiments)):
                seconds, loss = step(name, plan)
                total[name] += seconds
                if number == 0:
                    losses[name].append(loss)
        for name, seconds in total.items():
            times[name].append(seconds)
    records = experiments[REFERENCE].data["train"].records
    audio = sum(records[item.record]["duration"] for p in plans for m in p.micro_batches for item in m)
    means = {name: statistics.fmean(values) for name, values in losses.items()}
    return PhaseResult(key, times, means, len(plans), all_steps, audio)


def run(
    experiment=EXPERIMENT, overlays=(), overrides=None, steps=20, rounds=3, title="the demo", phases=None
):
    """Measure every phase of an experiment.

    Arguments
    ---------
    experiment : str
        YAML file of a speech experiment.
    overlays : sequence of str
        YAML files over it.
    overrides : dict, optional
        Over both.
    steps : int
        Optimiser steps of a round; 0 for whole epochs.
    rounds : int
        Rounds of each phase.
    title : str
        What is trained, for the heading.
    phases : int, optional
        Only so many phases, from the first. Default: all.

    Returns
    -------
    list of Table

    Raises
    ------
    FileNotFoundError
        If the corpus or a backbone is missing.
    """
    overrides = overrides or {}
    missing = missing_parts(experiment, overlays, overrides)
    if missing:
        raise FileNotFoundError(
            f"{experiment} reads {', '.join(missing)}, which is not there: run `make demo` first (in the root of "
            "the repository), name other --backbones, or use --toy"
        )
    with tempfile.TemporaryDirectory() as folder:
        modes = {"live": "off", "cached": "layers"}
        experiments = {
            name: build_experiment(experiment, overlays, overrides, Path(folder), mode)
            for name, mode in modes.items()
        }
        cached = experiments["cached"]
        keys = cached.schedule.keys[:phases]
        plans = [p for key in keys for p in plan_phase(cached.brain, key, steps)[0]]
        fill_seconds, fill_audio, size = fill_cache(cached, plans)
        results = [measure_phase(experiments, key, steps, rounds) for key in keys]
    table = Table(
        f"Epoch of {title} with and without the feature cache",
        ["phase", "features", "epoch (s)", "ratio of time", "audio s/s", "mean loss"],
    )
    saved = []
    for result in results:
        timings = compare(result.times, REFERENCE)
        scale = result.all_steps / result.num_steps
        saved.append((timings["live"].seconds - timings["cached"].seconds) / result.audio_seconds)
        for name, timing in timings.items():
            table.rows.append(
                [
                    result.phase,
                    name + (" (reference)" if name == REFERENCE else ""),
                    f"{scale * timing.seconds:.2f}",
                    ratio_cell(timing),
                    f"{result.audio_seconds / timing.seconds:.0f}",
                    f"{result.losses[name]:.4f}",
                ]
            )
    first = results[0]
    table.notes.append(
        f"Precision {cached.hparams.get('precision', 'fp32')}, steps of {cached.schedule.at(1).phase.batch_size} "
        f"utterances; {first.num_steps} of {first.all_steps} steps of an epoch measured"
        + (", the epoch's time is scaled up from them" if first.num_steps < first.all_steps else "")
        + f". Median of {rounds} rounds; ratios with their range. Filling the cache: {fill_seconds:.1f} s for "
        f"{fill_audio:.0f} s of audio ({fill_audio / fill_seconds:.0f} s/s), {size / 1e6:.1f} MB; "
        + _pays_off(fill_seconds / fill_audio, statistics.fmean(saved))
    )
    return [table]


def _pays_off(cost, saved):
    """After how many epochs filling is paid, both in seconds a second of audio."""
    if saved <= 0:
        return "it does not pay off here, a cached epoch takes no less time."
    return f"it has paid off after {math.ceil(cost / saved)} epoch(s)."


def run_toy(steps=0, rounds=5):
    """:func:`run` on the toy corpus of the tests, made in a temporary folder.

    Arguments
    ---------
    steps, rounds : int
        As in :func:`run`.

    Returns
    -------
    list of Table
    """
    from tests.toy import build

    with tempfile.TemporaryDirectory() as folder:
        overlay = build(folder)
        return run(
            str(REPOSITORY / EXPERIMENT), [str(overlay)], {"cycles": 1}, steps, rounds, title="the tests' toy"
        )


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=3)
    parser.add_argument("--experiment", default=EXPERIMENT, help="YAML of a speech experiment (%(default)s)")
    parser.add_argument("--overlay", nargs="+", default=[], help="YAML files over it")
    parser.add_argument("--overrides", type=json.loads, default={}, help="JSON object over both")
    parser.add_argument("--backbones", help="folder with encoder/ and llm/ (that of the YAML)")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps of a round; 0 for whole epochs (%(default)s)"
    )
    parser.add_argument("--toy", action="store_true", help="the tests' tones and random backbones")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.toy:
        tables = run_toy(options.steps, options.rounds)
    else:
        overrides = dict(options.overrides)
        if options.backbones:
            overrides["backbones"] = options.backbones
        try:
            tables = run(options.experiment, options.overlay, overrides, options.steps, options.rounds)
        except FileNotFoundError as error:
            parser.error(str(error))
    print_tables(tables)


if __name__ == "__main__":
    main()
