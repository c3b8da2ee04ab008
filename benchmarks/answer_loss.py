"""Answer-only loss against full logits at a 128k vocabulary: step time and peak memory.

A step is the forward and backward pass of a random Llama with LoRA over packed prompts of which only the answer
has labels; the gradient flows to the adapters and to the input embeddings, as when a front end trains. Only the
body is small here, the vocabulary is Llama 3's 128256.

Fair reference: ``full_logits``, what one writes with transformers alone: the same model on the same embeddings,
``model(inputs_embeds=..., attention_mask=..., labels=...).loss``, which computes the logits of every position
and ignores the labels of the prompt. Both give the same loss (printed) and the same gradients (tested).

Times: both variants in turns in one process. Peak memory: a process for each variant, its peak minus what was
resident when the model was built and warm.
"""

import argparse
import json
import subprocess
import sys
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
from speechbrain_emo.lobes.speech_llm import IGNORED_LABEL, SpeechLLM
from speechbrain_emo.prompts.packer import PackedBatch

EXAMPLE = "python -m benchmarks.answer_loss --batch_size 8 --positions 300 --rounds 3"
REFERENCE = "full_logits"


@dataclass(frozen=True)
class Sizes:
    """Of the model and the batch; rows have between half of ``positions`` and all of them.

    Raises
    ------
    ValueError
        If the shortest row has no room for the answer.

    Example
    -------
    >>> Sizes().vocab_size
    128256
    """

    vocab_size: int = 128256
    hidden_size: int = 256
    num_layers: int = 2
    batch_size: int = 4
    positions: int = 400
    answer: int = 40

    def __post_init__(self):
        smallest = 2 * (self.answer + 1)
        if self.positions < smallest:
            raise ValueError(
                f"positions is {self.positions} with answer {self.answer}; the shortest prompt has half the positions "
                f"and needs room for its answer: at least {smallest}"
            )


def build_model(sizes):
    """Random Llama with LoRA on q, k, v, o; the adapters train, the base is frozen."""
    torch.manual_seed(0)
    llm = SpeechLLM(
        architecture={
            "model_type": "llama",
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": 2 * sizes.hidden_size,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0},
    )
    for module in llm.trainable_groups()["llm.lora"]:
        module.requires_grad_(True)
    return llm.train()


def build_batch(llm, sizes):
    """Embeddings that want a gradient (B, P, d), and the packed batch, padded right."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(sizes.positions, sizes.positions // 2, sizes.batch_size).long()[:, None]
    columns = torch.arange(sizes.positions)[None]
    there, answer = columns < lengths, (columns < lengths) & (columns >= lengths - sizes.answer)
    ids = torch.randint(sizes.vocab_size, (sizes.batch_size, sizes.positions), generator=generator)
    packed = PackedBatch(
        token_ids=ids * there,
        attention_mask=there.long(),
        position_ids=columns * there,
        kinds=there.long() + answer.long(),
        labels=torch.where(answer, ids, IGNORED_LABEL),
        label_weights=answer.float(),
    )
    embeddings = llm.embed(packed, {}).detach().requires_grad_(True)
    return embeddings, packed


def answer_only(llm, embeddings, packed):
    """Mean answer loss of the toolkit."""
    loss = llm.answer_loss(embeddings, packed)
    return loss.weighted_sum / loss.weight


def full_logits(llm, embeddings, packed):
    """Mean answer loss of transformers, from the logits of all positions."""
    return llm.causal_lm(
        inputs_embeds=embeddings,
        attention_mask=packed.attention_mask,
        labels=packed.labels,
        use_cache=False,
    ).loss


VARIANTS = {"answer_only": answer_only, "full_logits": full_logits}


def step(name, llm, embeddings, packed):
    """Forward and backward of one variant; returns the loss. Old gradients are dropped first."""
    llm.zero_grad(set_to_none=True)
    embeddings.grad = None
    loss = VARIANTS[name](llm, embeddings, packed)
    loss.backward()
    return loss.item()


def measure_times(sizes, rounds):
    """Timings and losses of both variants in this process.

    Arguments
    ---------
    sizes : Sizes
        Of model and batch.
    rounds : int
        Timed rounds.

    Returns
    -------
    tuple of dict
        Name -> Timing, and name -> loss.
    """
    llm = build_model(sizes)
    embeddings, packed = build_batch(llm, sizes)
    losses = {}

    def variant(name):
        def run_step():
            losses[name] = step(name, llm, embeddings, packed)

        return run_step

    times = take_turns({name: variant(name) for name in VARIANTS}, rounds)
    return compare(times, REFERENCE), losses


def own_peak(name, sizes):
    """Bytes that one step takes above the warm model, measured in this process (which must be fresh)."""
    llm = build_model(sizes)
    # A very small step first, for what libraries allocate once.
    small = Sizes(sizes.vocab_size, sizes.hidden_size, sizes.num_layers, 1, 8, 1)
    step(name, llm, *build_batch(llm, small))
    embeddings, packed = build_batch(llm, sizes)
    before = resident_memory()
    step(name, llm, embeddings, packed)
    return peak_memory() - before


def measure_peak(name, sizes, threads=1):
    """:func:`own_peak` in a new process.

    Arguments
    ---------
    name : str
        A key of ``VARIANTS``.
    sizes : Sizes
        Of model and batch.
    threads : int
        Of torch.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    RuntimeError
        If the process fails, with what it wrote.
    """
    options = [f"--{key}={value}" for key, value in asdict(sizes).items()]
    done = subprocess.run(
        [sys.executable, __file__, f"--peak_of={name}", f"--threads={threads}", *options],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"the process that measures {name} ended with {done.returncode} (a negative number is a signal; -9 "
            f"often means that memory ran out: lower --batch_size or --positions):\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def run(sizes=None, rounds=3, threads=1):
    """Measure both variants.

    Arguments
    ---------
    sizes : Sizes, optional
        Of model and batch.
    rounds : int
        Timed rounds.
    threads : int
        Of the processes that measure memory.

    Returns
    -------
    list of Table
    """
    sizes = Sizes() if sizes is None else sizes
    # The processes come first: this one is small then, and both do not compete for memory.
    peaks = {name: measure_peak(name, sizes, threads) for name in VARIANTS}
    timings, losses = measure_times(sizes, rounds)
    table = Table(
        f"Answer-only loss, vocabulary {sizes.vocab_size}",
        ["loss", "step (s)", "ratio of time", "peak memory of a step (MB)", "ratio of memory", "value"],
    )
    for name in sorted(VARIANTS, key=lambda n: n != REFERENCE):
        table.rows.append(
            [
                name + (" (reference)" if name == REFERENCE else ""),
                f"{timings[name].seconds:.3f}",
                ratio_cell(timings[name]),
                f"{peaks[name] / 1e6:.0f}",
                f"{peaks[name] / peaks[REFERENCE]:.2f}",
                f"{losses[name]:.5f}",
            ]
        )
    table.notes.append(
        f"Llama with hidden size {sizes.hidden_size}, {sizes.num_layers} layers, float32; {sizes.batch_size} prompts "
        f"of {sizes.positions // 2}-{sizes.positions} positions, {sizes.answer} of each are answer. Forward and "
        f"backward, median of {rounds} rounds; ratios with their range. One copy of all logits: "
        f"{4e-6 * sizes.batch_size * sizes.positions * sizes.vocab_size:.0f} MB."
    )
    return [table]


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=3)
    for key, value in asdict(Sizes()).items():
        parser.add_argument(f"--{key}", type=int, default=value, help="(%(default)s)")
    parser.add_argument("--peak_of", choices=sorted(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = Sizes(**{key: getattr(options, key) for key in asdict(Sizes())})
    if options.peak_of:
        print(json.dumps({"peak_bytes": own_peak(options.peak_of, sizes)}))
        return
    print_tables(run(sizes, options.rounds, options.threads))


if __name__ == "__main__":
    main()
