"""Flow and vocoder at CosyVoice2's sizes with random weights: real-time factors, streaming, guidance, memory.

Fair references. Streaming: ``recompute``, what the published pipeline does, which at every hop (1 s, then twice as
much, at most 4 s) runs the chunk-masked flow over prompt and text so far and keeps the new frames; both guidance halves
are already in one batch. Guidance: ``two_passes``, the conditional and the unconditional half behind each other. All
compute the same; the largest difference is printed.

Times: the variants in turns in one process. Peak memory: a process for each variant, its peak minus what was resident
when the model was built.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import torch

from benchmarks.common import (
    Table,
    argument_parser,
    compare,
    peak_memory,
    print_tables,
    ratio_cell,
    resident_memory,
    take_turns,
)
from speechbrain_emo.lobes.flow import TokenToMel, tiny_flow
from speechbrain_emo.lobes.vocoder import HiFT

EXAMPLE = "python -m benchmarks.flow --seconds 8 --rounds 3"
TOKEN_RATE = 25


@dataclass(frozen=True)
class Sizes:
    """What is said, in seconds, and with how many Euler steps; ``toy``: 1 for a model of milliseconds.

    Raises
    ------
    ValueError
        If there is less to say than a chunk and its look-ahead.

    Example
    -------
    >>> Sizes().num_steps
    10
    """

    seconds: int = 8
    prompt_seconds: int = 3
    num_steps: int = 10
    toy: int = 0

    def __post_init__(self):
        if self.seconds < 2 or self.prompt_seconds < 0:
            raise ValueError(
                f"seconds is {self.seconds} and prompt_seconds {self.prompt_seconds}; allowed: 2 and above, 0 and above"
            )


@dataclass
class Case:
    """A flow with a voice and a sentence: ``tokens`` int64 (T,), ``prompt`` as :meth:`TokenToMel.stream` takes it."""

    flow: TokenToMel
    tokens: torch.Tensor
    prompt: tuple
    steps: int


def make_case(sizes):
    """Random weights, tokens, prompt and voice, the same every time."""
    torch.manual_seed(0)
    flow = (tiny_flow(chunk_size=25) if sizes.toy else TokenToMel()).eval()
    flow.decoder.num_noise_frames = 15000
    tokens = torch.randint(0, flow.vocab_size, (sizes.seconds * TOKEN_RATE,))
    prompt = torch.randint(0, flow.vocab_size, (sizes.prompt_seconds * TOKEN_RATE,))
    mel = torch.randn(2 * len(prompt), flow.num_mels)
    return Case(flow, tokens, (prompt, mel, torch.randn(flow.speaker_size)), sizes.num_steps)


def hops(case):
    """Tokens that are there when the published pipeline computes: the look-ahead is counted in."""
    chunk, ahead = case.flow.encoder.chunk_size, case.flow.encoder.look_ahead
    hop, done = chunk + -len(case.prompt[0]) % chunk, 0
    size = chunk
    while done + hop + ahead <= len(case.tokens):
        done += hop
        yield done + ahead
        size = min(2 * size, 4 * chunk)
        hop = size


def recompute(case, limit=None):
    """The published pipeline: mel of the first ``limit`` hops, or of everything."""
    prompt, mel, speaker = (x[None] for x in case.prompt)
    parts, emitted = [], 0
    for number, there in enumerate(hops(case), 1):
        made = case.flow.generate(
            case.tokens[None, :there],
            prompt,
            mel,
            speaker,
            streaming=True,
            finalize=False,
            num_steps=case.steps,
        ).mel
        parts.append(made[:, :, emitted:])
        emitted = made.shape[2]
        if number == limit:
            return parts[0]
    made = case.flow.generate(
        case.tokens[None], prompt, mel, speaker, streaming=True, num_steps=case.steps
    ).mel
    return torch.cat([*parts, made[:, :, emitted:]], dim=2)


def begin(case, left_chunks=None):
    """A stream whose prompt is computed."""
    return case.flow.stream(*case.prompt, left_chunks=left_chunks, num_steps=case.steps)


def cached(case, limit=None, left_chunks=None, start=None):
    """The same with caches; ``start``: a stream whose prompt was computed before."""
    stream = begin(case, left_chunks) if start is None else start.clone()
    parts, before = [], 0
    for number, there in enumerate(hops(case), 1):
        parts.append(stream.push(case.tokens[before:there]))
        before = there
        if number == limit:
            return parts[0]
    parts.append(stream.push(case.tokens[before:]))
    return torch.cat([*parts, stream.finish()], dim=2)


def whole(case):
    """Everything at once, without chunks."""
    prompt, mel, speaker = (x[None] for x in case.prompt)
    return case.flow.generate(case.tokens[None], prompt, mel, speaker, num_steps=case.steps).mel


class TwoPasses(torch.nn.Module):
    """An estimator that computes the two halves of a guided batch behind each other."""

    def __init__(self, estimator):
        super().__init__()
        self.estimator, self.num_mels = estimator, estimator.num_mels

    def forward(self, x, mask, mu, t, speaker, cond, **options):
        """As the estimator."""
        halves = [
            self.estimator(
                *(None if a is None else a.chunk(2)[i] for a in (x, mask, mu, t, speaker, cond)), **options
            )
            for i in range(2)
        ]
        return torch.cat(halves)


def two_passes(case):
    """:func:`whole` with the guidance halves apart."""
    estimator = case.flow.decoder.estimator
    case.flow.decoder.estimator = TwoPasses(estimator)
    try:
        return whole(case)
    finally:
        case.flow.decoder.estimator = estimator


MEMORY = {
    "whole": whole,
    "recompute": recompute,
    "caches": cached,
    "caches, 2 chunks": lambda case: cached(case, left_chunks=2),
}


def own_peak(name, sizes):
    """Peak of this process beyond the model, in bytes."""
    case = make_case(sizes)
    case.flow.decoder.fixed_noise(0, 1, case.prompt[1])
    before = resident_memory()
    MEMORY[name](case)
    return peak_memory() - before


def measure_peak(name, sizes, threads):
    """The same in a process of its own.

    Raises
    ------
    RuntimeError
        If the process fails, with what it wrote.
    """
    options = [f"--{key}={value}" for key, value in asdict(sizes).items()]
    command = [sys.executable, __file__, f"--peak_of={name}", f"--threads={threads}", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"the process that measures {name} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def difference(value, reference):
    """Largest difference by the largest value of the reference, as text."""
    return f"{float((value - reference).abs().max() / reference.abs().max()):.1e}"


def stream_table(case, sizes, rounds):
    """Streaming with caches against recomputing, and the first chunk alone."""
    reference = recompute(case)
    start = begin(case)
    variants = {
        "recompute": lambda: recompute(case),
        "caches": lambda: cached(case),
        "caches, prompt computed before": lambda: cached(case, start=start),
        "caches, 2 chunks": lambda: cached(case, left_chunks=2),
    }
    first = {
        "recompute": lambda: recompute(case, 1),
        "caches": lambda: cached(case, 1),
        "caches, prompt computed before": lambda: cached(case, 1, start=start),
        "caches, 2 chunks": lambda: cached(case, 1, left_chunks=2),
    }
    times = compare(take_turns(variants, rounds, warmup=0), "recompute")
    first_times = compare(take_turns(first, rounds, warmup=0), "recompute")
    table = Table(
        f"Flow in chunks, {sizes.seconds} s after a prompt of {sizes.prompt_seconds} s",
        ["streaming", "time (s)", "real-time factor", "ratio of time", "first chunk (s)", "difference"],
    )
    for name, variant in variants.items():
        bounded = "2 chunks" in name
        table.rows.append(
            [
                name + (" (reference)" if name == "recompute" else ""),
                f"{times[name].seconds:.2f}",
                f"{times[name].seconds / sizes.seconds:.2f}",
                ratio_cell(times[name]),
                f"{first_times[name].seconds:.2f}",
                "by design" if bounded else difference(variant(), reference),
            ]
        )
    table.notes.append(
        f"{case.steps} Euler steps, guidance in one batch. The gain is what is not computed again: the frames of "
        "prompt and earlier hops in every layer at every step. `2 chunks` keeps the prompt and two chunks behind the "
        f"current one, which is another output. Caches of the prompt: {start.num_bytes() / 1e6:.0f} MB."
    )
    return table


def guidance_table(case, sizes, rounds):
    """Guidance halves in one batch against two passes."""
    times = compare(
        take_turns(
            {"two_passes": lambda: two_passes(case), "one_batch": lambda: whole(case)}, rounds, warmup=0
        ),
        "two_passes",
    )
    table = Table(
        f"Guidance, {sizes.seconds} s at once after a prompt of {sizes.prompt_seconds} s",
        ["halves", "time (s)", "real-time factor", "ratio of time", "difference"],
    )
    difference_cell = difference(whole(case), two_passes(case))
    for name, timing in times.items():
        table.rows.append(
            [
                name + (" (reference)" if name == "two_passes" else ""),
                f"{timing.seconds:.2f}",
                f"{timing.seconds / sizes.seconds:.2f}",
                ratio_cell(timing),
                difference_cell,
            ]
        )
    return table


def vocoder_table(sizes, rounds):
    """Vocoder with weight normalisation in every call against weights that were fused once."""
    torch.manual_seed(0)
    small = {"channels": 16, "f0_channels": 8} if sizes.toy else {}
    normed, fused = HiFT(**small).eval(), HiFT(**small).eval()
    fused.load_state_dict(normed.state_dict())
    fused.fuse_weight_norm()
    mel = torch.randn(1, 80, 50 * sizes.seconds)

    def run_of(vocoder):
        return lambda: vocoder.synthesise(mel, generator=torch.Generator().manual_seed(0))[0]

    variants = {"normed": run_of(normed), "fused": run_of(fused)}
    times = compare(take_turns(variants, rounds, warmup=0), "normed")
    table = Table(
        f"Vocoder, {sizes.seconds} s",
        ["weights", "time (s)", "real-time factor", "ratio of time", "difference"],
    )
    cell = difference(variants["fused"](), variants["normed"]())
    for name, timing in times.items():
        table.rows.append(
            [
                name + (" (reference)" if name == "normed" else ""),
                f"{timing.seconds:.2f}",
                f"{timing.seconds / sizes.seconds:.2f}",
                ratio_cell(timing),
                cell,
            ]
        )
    return table


def memory_table(sizes, threads):
    """Peak memory of each way, beyond the model."""
    table = Table("Peak memory of the flow beyond its weights", ["way", "MB"])
    for name in MEMORY:
        table.rows.append([name, f"{measure_peak(name, sizes, threads) / 1e6:.0f}"])
    return table


def run(sizes=None, rounds=3, threads=1):
    """Measure everything.

    Arguments
    ---------
    sizes : Sizes, optional
    rounds : int
        Timed rounds.
    threads : int
        Of the processes that measure memory.

    Yields
    ------
    Table
    """
    sizes = Sizes() if sizes is None else sizes
    yield memory_table(sizes, threads)
    start = time.perf_counter()
    case = make_case(sizes)
    built = time.perf_counter() - start
    with torch.inference_mode():
        table = stream_table(case, sizes, rounds)
        table.notes.append(f"Building the model took {built:.1f} s.")
        yield table
        yield guidance_table(case, sizes, rounds)
        yield vocoder_table(sizes, rounds)


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=3)
    for key, value in asdict(Sizes()).items():
        parser.add_argument(f"--{key}", type=int, default=value, help="(%(default)s)")
    parser.add_argument("--peak_of", choices=sorted(MEMORY), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = Sizes(**{key: getattr(options, key) for key in asdict(Sizes())})
    if options.peak_of:
        print(json.dumps({"peak_bytes": own_peak(options.peak_of, sizes)}))
        return
    print_tables(run(sizes, options.rounds, options.threads))


if __name__ == "__main__":
    main()
