"""Spoken dialogue: what a turn costs with kept keys and values, and what training costs with cached features.

Turn: CPU time of the process (which other work on the machine hardly changes) from the call to the first token of
turn 5 of a conversation of spoken turns, over random weights of the real classes. Fair reference: ``re-encode
everything``, which encodes all recordings and reads the whole prompt in every turn, as a chat loop over `generate`
does. Between them, ``re-read the prompt`` keeps the embeddings of past recordings only. Every round begins with the
state after turn 4; the answers are compared token by token.

Training: audio seconds a second and peak memory of stage 1 of the dual front end with the features of the frozen
encoder from the cache, against the encoder in the loop (``benchmarks.epoch_cache`` on ``hparams/demo_dual.yaml``; each
peak in a process of its own). Needs the embedded dialogues and their backbones (python train.py
hparams/demo_dual.yaml makes them), ``--toy`` for the made-up tones of the tests, or ``--no_training``.
"""

import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import torch
from tqdm import tqdm

from benchmarks import epoch_cache
from benchmarks.common import Table, argument_parser, compare, peak_memory, print_tables, ratio_cell

EXAMPLE = (
    "python -m benchmarks.dual_chat\n  python -m benchmarks.dual_chat --no_training --turns 9 --seconds 12"
)
REPOSITORY = Path(__file__).resolve().parent.parent
EXPERIMENT = "hparams/demo_dual.yaml"
REFERENCE = "re-encode everything"
VARIANTS = (REFERENCE, "re-read the prompt", "keys and values kept")
# Of the language model and the encoder whose turns are timed: a fourteenth of the published ones' width.
SIZES = {"hidden_size": 256, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 1024}
ENCODER = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024}


def build_chat(folder, sizes=None, encoder=None, seed=1):
    """A dialogue model with random weights, loaded as a user loads one.

    Arguments
    ---------
    folder : str or pathlib.Path
        Gets backbones and the exported model.
    sizes : dict, optional
        Keywords of ``build_tiny_llm``.
    encoder : dict, optional
        Of a Whisper's config.
    seed : int
        Of all weights.

    Returns
    -------
    EmotionalChat
    """
    import functools

    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    from speechbrain_emo.brains.speech_language_model import SpeechLanguageModel
    from speechbrain_emo.inference import EmotionalChat
    from speechbrain_emo.inference.export import export_model
    from speechbrain_emo.lobes.dual_adapters import DualAdapters
    from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
    from speechbrain_emo.lobes.speech_llm import SpeechLLM
    from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
    from speechbrain_emo.prompts import AnswerFormat, DialogueTask

    folder = Path(folder)
    llm_folder = build_tiny_llm(
        folder / "llm",
        ["Hello there, how are you today? I am so sorry to hear that."],
        400,
        **(sizes or SIZES),
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        initializer_range=0.1,
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {**(encoder or ENCODER), "decoder_layers": 1, "decoder_attention_heads": 1}
        config |= {"decoder_ffn_dim": 8, "vocab_size": 40, "num_mel_bins": 80}
        config |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        WhisperModel(WhisperConfig(**config)).encoder.save_pretrained(folder / "encoder")
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "encoder")
        parts = {
            "encoder": functools.partial(SpeechEncoder, source=str(folder / "encoder"), layers=[-1]),
            "llm": functools.partial(SpeechLLM, source=llm_folder),
            "front_end": functools.partial(DualAdapters, num_heads=4, hidden_size=512),
        }
        encoder_part, llm = parts["encoder"](), parts["llm"]()
        front_end = parts["front_end"](1, encoder_part.hidden_size, llm.hidden_size)
    fmt = AnswerFormat({"transcript": "text"})
    tasks = {
        "dialogue": DialogueTask("dialogue", ["{paralinguistic}{linguistic}"], fmt, systems=["Be kind."])
    }
    model = SpeechLanguageModel(llm, front_end, encoder_part)
    settings = {"dialogue_task": "dialogue", "max_new_tokens": 24}
    export_model(folder / "model", model, parts, fmt, tasks, chat=settings)
    return EmotionalChat.from_hparams(source=folder, run_opts={"device": "cpu"})


def measure_turn(chat, turns=5, seconds=8.0, rounds=5, seed=0):
    """Time to the first token of the last turn, by what is kept from the turns before.

    Arguments
    ---------
    chat : EmotionalChat
        To talk with.
    turns : int
        Spoken turns; the last one is measured.
    seconds : float
        Of each recording.
    rounds : int
        Times that it is measured, after one that is not.
    seed : int
        Of the recordings (noise).

    Returns
    -------
    tuple
        Variant -> seconds of CPU time of each round, and variant -> Reply.

    Raises
    ------
    AssertionError
        If the answers differ.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = 0.1 * torch.randn(turns, int(seconds * chat.sample_rate), generator=generator)
    chat.reset()
    for wave in samples[:-1]:
        chat.say(audio=wave)
    history, slots, keys, cache = chat.history, chat._slots, chat._keys, chat._cache
    times, replies = {name: [] for name in VARIANTS}, {}
    for number in tqdm(range(-1, rounds), desc="turn", leave=False, disable=None):
        for name in VARIANTS if number % 2 else reversed(VARIANTS):
            chat.history = list(history)
            chat._slots = {} if name == REFERENCE else dict(slots)
            chat.keep_cache = name == VARIANTS[2]
            chat._keys, chat._cache = (list(keys), copy.deepcopy(cache)) if chat.keep_cache else ([], None)
            if number < 0:
                # The round that is not timed writes whole answers: they must be the same.
                replies[name] = chat.say(audio=samples[-1])
                continue
            start = time.process_time()
            chat.say(audio=samples[-1], max_new_tokens=1)
            times[name].append(time.process_time() - start)
    answers = {name: reply.token_ids for name, reply in replies.items()}
    assert len(set(answers.values())) == 1, f"the answers differ: {answers}"
    return times, replies


def turn_table(turns=5, seconds=8.0, rounds=5, sizes=None, encoder=None):
    """The table of :func:`measure_turn`.

    Arguments
    ---------
    turns, seconds, rounds :
        As there.
    sizes, encoder : dict, optional
        As of :func:`build_chat`.

    Returns
    -------
    Table
    """
    with tempfile.TemporaryDirectory() as folder:
        chat = build_chat(folder, sizes, encoder)
        times, replies = measure_turn(chat, turns, seconds, rounds)
        parameters = sum(p.numel() for p in chat.model.llm.parameters())
    table = Table(
        f"Turn {turns} of a conversation of {seconds:g} s turns",
        ["kept from earlier turns", "first token (CPU ms)", "ratio of time", "positions read", "of"],
    )
    for name, timing in compare(times, REFERENCE).items():
        reply = replies[name]
        table.rows.append(
            [
                name + (" (reference)" if name == REFERENCE else ""),
                f"{1000 * timing.seconds:.1f}",
                ratio_cell(timing),
                reply.num_positions - reply.num_reused,
                reply.num_positions,
            ]
        )
    answer = next(iter(replies.values())).token_ids
    table.notes.append(
        f"Median of {rounds} rounds; ratios with their range. Language model of {parameters / 1e6:.1f} M parameters, "
        f"float32, random weights. The answers are equal, token by token ({len(answer)} tokens)."
    )
    return table


def memory_of(mode, experiment, overlays, overrides, steps):
    """Peak memory in bytes of a training process that takes some steps of stage 1.

    Arguments
    ---------
    mode : str
        ``live`` or ``cached``.
    experiment : str
        YAML file.
    overlays : sequence of str
        YAML files over it.
    overrides : dict
        Over both.
    steps : int
        Optimiser steps.

    Returns
    -------
    int
    """
    command = [sys.executable, "-m", "benchmarks.dual_chat", "--memory_of", mode, "--experiment", experiment]
    command += ["--steps", str(steps), "--overrides", json.dumps(overrides), "--overlay", *overlays]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["peak_bytes"]


def _take_steps(mode, experiment, overlays, overrides, steps):
    """In a process of its own: fill the cache where there is one, then train; prints the peak."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {"live": "off", "cached": "layers"}[mode]
        run = epoch_cache.build_experiment(experiment, overlays, overrides, Path(folder), cache)
        plans, _ = epoch_cache.plan_phase(run.brain, run.schedule.keys[0], steps)
        if mode == "cached":
            epoch_cache.fill_cache(run, plans)
            run.encoder = None
        for plan in plans:
            run.brain.fit_batch(run.data["train"][plan])
        print(json.dumps({"peak_bytes": peak_memory()}))


def training_tables(
    experiment=EXPERIMENT, overlays=(), overrides=None, steps=10, rounds=3, title="the embedded dialogues"
):
    """Time and memory of stage 1, cached against live.

    Arguments
    ---------
    experiment : str
        YAML file of a dual experiment.
    overlays : sequence of str
        YAML files over it.
    overrides : dict, optional
        Over both.
    steps, rounds : int
        As of ``epoch_cache.run``.
    title : str
        What is trained.

    Returns
    -------
    list of Table
    """
    overrides = dict(overrides or {})
    tables = epoch_cache.run(experiment, overlays, overrides, steps, rounds, title, phases=1)
    peaks = {mode: memory_of(mode, experiment, overlays, overrides, steps) for mode in ("live", "cached")}
    table = Table("Peak memory of the same steps", ["features", "peak (MB)", "ratio"])
    for mode, peak in peaks.items():
        name = mode + (" (reference)" if mode == "live" else "")
        table.rows.append([name, f"{peak / 1e6:.0f}", f"{peak / peaks['live']:.2f}"])
    table.notes.append(
        f"{steps} steps, each mode in a process of its own; the cached one also filled its cache, with the encoder in "
        "memory. Most of it is Python with its libraries: the tiny models weigh little."
    )
    return [*tables, table]


def run_toy(steps=4, rounds=1):
    """:func:`training_tables` on the toy dialogues of the tests, made in a temporary folder.

    Arguments
    ---------
    steps, rounds : int
        As there.

    Returns
    -------
    list of Table
    """
    sys.path.insert(0, str(REPOSITORY / "tests"))  # The toys name each other as the tests do.
    from toy_dual import build

    with tempfile.TemporaryDirectory() as folder:
        overlay = str(build(folder))
        return training_tables(
            str(REPOSITORY / EXPERIMENT), [overlay], {}, steps, rounds, "the tests' toy dialogues"
        )


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=5)
    parser.add_argument(
        "--turns", type=int, default=5, help="spoken turns, the last is measured (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each recording (%(default)s)")
    parser.add_argument("--no_training", action="store_true", help="the turn only")
    parser.add_argument("--experiment", default=EXPERIMENT, help="YAML of a dual experiment (%(default)s)")
    parser.add_argument("--overlay", nargs="*", default=[], help="YAML files over it")
    parser.add_argument("--toy", action="store_true", help="train on the tests' tones, with random backbones")
    parser.add_argument("--overrides", type=json.loads, default={}, help="JSON object over it")
    parser.add_argument("--steps", type=int, default=10, help="training steps of a round (%(default)s)")
    parser.add_argument("--memory_of", choices=("live", "cached"), help="used by the benchmark itself")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        _take_steps(options.memory_of, options.experiment, options.overlay, options.overrides, options.steps)
        return
    tables = [turn_table(options.turns, options.seconds, options.rounds)]
    rounds = min(options.rounds, 3)
    if options.toy:
        tables += run_toy(options.steps, rounds)
    elif not options.no_training:
        missing = epoch_cache.missing_parts(options.experiment, options.overlay, options.overrides)
        if missing:
            tables[0].notes.append(
                f"Training was not measured, {missing[0]} is missing: run `python train.py {EXPERIMENT}` first."
            )
        else:
            tables += training_tables(
                options.experiment, options.overlay, options.overrides, options.steps, rounds
            )
    print_tables(tables)


if __name__ == "__main__":
    main()
