"""All benchmarks in one run, as Markdown tables.

    epoch_cache     epoch of VIB-SER training with the feature cache, against live encoding
    answer_loss     answer-only loss, against the loss of transformers over all logits
    label_scoring   label scoring by likelihood, against greedy generation of the label
    flow            flow and vocoder of CosyVoice2's sizes: streaming with caches against recomputing
    speech_tokens   speech tokens of CosyVoice2's language model, against generate() of transformers
    dual_chat       a turn of a spoken dialogue with kept keys and values, against re-encoding everything
    partial_lora    training step of two partial LoRAs against one plain LoRA; a spoken reply by part

Each module says what its fair reference is and runs alone too. The numbers hold for the machine that made them;
the ratios are against the reference in the same run. Let nothing else run meanwhile.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import torch

from benchmarks import answer_loss, dual_chat, epoch_cache, flow, label_scoring, partial_lora, speech_tokens
from benchmarks.common import argument_parser, machine

EXAMPLE = "python -m benchmarks > benchmarks.md\n  python -m benchmarks --only label_scoring --rounds 3"
NAMES = ("epoch_cache", "answer_loss", "label_scoring", "flow", "speech_tokens", "dual_chat", "partial_lora")
# Small enough for seconds in all; the numbers mean little then.
QUICK_LOSS = answer_loss.Sizes(vocab_size=16032, hidden_size=64, batch_size=2, positions=200)


def run(only=NAMES, rounds=3, threads=1, toy=False, quick=False, steps=20, backbones=None):
    """Yield the tables of the chosen benchmarks as they are done.

    Arguments
    ---------
    only : sequence of str
        Of ``NAMES``.
    rounds : int
        Timed rounds of each.
    threads : int
        Torch threads.
    toy : bool
        Take the toy experiment for ``epoch_cache``. It is taken as well, and the heading says so, where the demo's
        corpus or backbones are missing.
    quick : bool
        Small sizes.
    steps : int
        Steps of ``epoch_cache`` in a round; 0 for whole epochs.
    backbones : str, optional
        Folder of the demo's backbones.

    Yields
    ------
    Table
    """
    if "epoch_cache" in only:
        overrides = {"backbones": backbones} if backbones else {}
        missing = [] if toy or quick else epoch_cache.missing_parts(epoch_cache.EXPERIMENT, (), overrides)
        if toy or quick or missing:
            tables = epoch_cache.run_toy(0, rounds)
            if missing:
                tables[0].notes.append(
                    f"The demo itself was not measured, {missing[0]} is missing: run `make demo` first."
                )
            yield from tables
        else:
            yield from epoch_cache.run(overrides=overrides, steps=steps, rounds=rounds)
    if "answer_loss" in only:
        yield from answer_loss.run(QUICK_LOSS if quick else None, rounds, threads)
    if "label_scoring" in only:
        yield from label_scoring.run(rounds=rounds, num_utterances=16 if quick else 32)
    if "flow" in only:
        yield from flow.run(
            flow.Sizes(seconds=4, prompt_seconds=1, toy=1) if quick else None, rounds, threads
        )
    if "speech_tokens" in only:
        yield from speech_tokens.run(
            speech_tokens.Sizes(tokens=12, toy=1) if quick else None, rounds, threads
        )
    if "dual_chat" in only:
        small = {
            "hidden_size": 32,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "intermediate_size": 32,
        }
        encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        yield dual_chat.turn_table(
            3 if quick else 5,
            1.0 if quick else 8.0,
            rounds,
            small if quick else None,
            encoder if quick else None,
        )
    if "partial_lora" in only:
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"sizes": partial_lora.QUICK_SIZES, "turns": 2, "queries": 5} if quick else {}
            yield partial_lora.step_table(partial_lora.measure_step(folder, rounds, **sizes))


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="(all)")
    parser.add_argument("--toy", action="store_true", help="epoch_cache on the tests' tones")
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument(
        "--steps", type=int, default=20, help="of epoch_cache in a round; 0 for whole epochs (%(default)s)"
    )
    parser.add_argument("--backbones", help="folder of the demo's backbones (results/demo_backbones)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"## Benchmarks\n\n{machine()}\n", flush=True)
    for table in run(
        options.only,
        options.rounds,
        options.threads,
        options.toy,
        options.quick,
        options.steps,
        options.backbones,
    ):
        print(f"{table}\n", flush=True)


if __name__ == "__main__":
    main()
