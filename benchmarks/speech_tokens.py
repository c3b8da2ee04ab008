"""Speech tokens of a language model of CosyVoice2-0.5B's size with random weights: tokens a second, first chunk.

The reference is ``generate`` of transformers on the same body, the speech head as its vocabulary and the same prefix,
greedy. Decoding one utterance reads every weight once a token: the limit is the machine's memory bandwidth over the
weights' bytes, and the share of it that is reached stands beside. Smaller weights (bfloat16, int8) and batches move
the limit; what they cost is the error of the scores and the share of greedy tokens that stay.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import flow
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
from speechbrain_emo.lobes.speech_token_lm import PUBLISHED_ARCHITECTURE, SpeechTokenLM, with_precision
from speechbrain_emo.lobes.token_generation import TokenRequest, generate, prefix_embeddings
from speechbrain_emo.lobes.token_sampling import SamplingSettings
from speechbrain_emo.lobes.vocoder import HiFT, VocoderStream

EXAMPLE = "python -m benchmarks.speech_tokens --tokens 100 --rounds 3 > speech_tokens.md"
TOY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Arguments
    ---------
    text : int
        Text tokens.
    prompt : int
        Speech tokens of the voice prompt.
    tokens : int
        Speech tokens to make.
    batch : int
        Utterances of the batched variant.
    toy : int
        1: a tiny model.
    """

    text: int = 20
    prompt: int = 75
    tokens: int = 50
    batch: int = 4
    toy: int = 0


def make_model(sizes):
    """The language model, in eval mode."""
    torch.manual_seed(0)
    return SpeechTokenLM(
        TOY if sizes.toy else PUBLISHED_ARCHITECTURE, 5, num_speech_tokens=27 if sizes.toy else 6561
    ).eval()


def request(sizes, model, seed=0, text=None):
    """One utterance with a voice prompt."""
    draw = torch.Generator().manual_seed(seed)
    size = text or sizes.text

    def numbers(high, count):
        return tuple(torch.randint(0, high, (count,), generator=draw).tolist())

    vocabulary = model.body.config.vocab_size
    return TokenRequest(
        numbers(vocabulary, size),
        numbers(5, size),
        numbers(3, size),
        numbers(vocabulary, 10),
        numbers(5, 10),
        numbers(3, 10),
        numbers(model.num_speech_tokens, sizes.prompt),
    )


def exactly(count, num_text):
    """Settings that make so many tokens, greedily."""
    ratio = (count + 0.5) / num_text
    return SamplingSettings(temperature=0, min_ratio=ratio, max_ratio=ratio)


def transformers_model(model):
    """The same body in transformers' own class, with speech tokens as vocabulary."""
    config = Qwen2Config(
        **{
            **model.body.config.to_dict(),
            "vocab_size": model.num_speech_tokens + 3,
            "tie_word_embeddings": False,
        }
    )
    with torch.device("meta"):
        reference = Qwen2ForCausalLM(config)
    reference.model.layers, reference.model.norm = model.body.layers, model.body.norm
    reference.model.rotary_emb = model.body.rotary_emb
    reference.model.embed_tokens, reference.lm_head = model.speech_embedding, model.llm_decoder
    return reference.eval()


def reference_tokens(reference, model, one, count):
    """Tokens by ``generate`` of transformers; markers are not drawn, as with us."""
    prefix = prefix_embeddings(model, one)[None]
    special = [model.end_token, model.end_token + 1, model.fill_token]
    out = reference.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        suppress_tokens=special,
        pad_token_id=model.end_token,
        eos_token_id=model.end_token,
    )
    return out[0].tolist()


def bandwidth(megabytes=512, rounds=5):
    """Bytes a second that one thread team reads, by summing a large tensor; the best of several."""
    block = torch.ones(megabytes * 2**18)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        block.sum()
        best = max(best, block.numel() * 4 / (time.perf_counter() - start))
    return best


def num_bytes(model):
    """Bytes of the weights that a token reads: all but the embeddings, which are looked up."""
    total = 0
    for module in [*model.body.layers.modules(), *model.llm_decoder.modules()]:
        own = list(module.parameters(recurse=False))
        total += sum(p.numel() * p.element_size() for p in own)
        if not own and callable(getattr(module, "weight", None)):
            total += module.weight().numel()  # int8, with a few scales.
    return total


def score_error(model, other, one):
    """Largest difference of the first scores, relative to the largest score."""
    with torch.no_grad():
        scores = [
            m.llm_decoder(m.run_body(prefix_embeddings(m, one)[None])[:, -1]).float() for m in (model, other)
        ]
    return float((scores[0] - scores[1]).abs().max() / scores[0].abs().max())


def decode_table(model, sizes, rounds):
    """Tokens a second of every way."""
    one, settings = request(sizes, model), exactly(sizes.tokens, sizes.text)
    many = [request(sizes, model, seed) for seed in range(sizes.batch)]
    reference = transformers_model(model)
    models = {name: with_precision(model, name) for name in ("fp32", "bf16", "int8")}
    variants = {
        "transformers generate, fp32": lambda: [reference_tokens(reference, model, one, sizes.tokens)],
        **{
            f"ours, {name}": (lambda m=m: [g.tokens for g in generate(m, [one], settings)])
            for name, m in models.items()
        },
        f"ours, fp32, batch of {sizes.batch}": lambda: [g.tokens for g in generate(model, many, settings)],
    }
    said = {name: variant() for name, variant in variants.items()}
    times = compare(take_turns(variants, rounds, warmup=0), "transformers generate, fp32")
    speed = bandwidth()
    table = Table(
        f"{sizes.tokens} speech tokens after {sizes.text} text tokens and a prompt of {sizes.prompt}",
        [
            "way",
            "tokens a second",
            "share of the limit",
            "ratio of time",
            "error of scores",
            "tokens that stay",
        ],
    )
    for name, timing in times.items():
        batch = sizes.batch if "batch" in name else 1
        own = models.get(name.removeprefix("ours, "), model)
        limit = batch * speed / num_bytes(own)
        rate = batch * sizes.tokens / timing.seconds
        # Of a batch its first utterance, which is the one that the others decode.
        agree = sum(a == b for a, b in zip(said[name][0], said["ours, fp32"][0])) / sizes.tokens
        table.rows.append(
            [
                name + (" (reference)" if name.startswith("transformers") else ""),
                f"{rate:.1f}",
                f"{rate / limit:.2f}",
                ratio_cell(timing),
                f"{score_error(model, own, one):.1e}",
                f"{agree:.2f}",
            ]
        )
    table.notes.append(
        f"Memory is read at {speed / 1e9:.1f} GB/s; a token reads {num_bytes(model) / 1e6:.0f} MB in fp32. Random "
        "weights make scores that lie close together: a trained model keeps more of its tokens."
    )
    return table


#: Way -> (precision of the weights, utterances; 0: ``generate`` of transformers).
MEMORY = {
    "transformers generate, fp32": ("fp32", 0),
    "ours, fp32": ("fp32", 1),
    "ours, fp32, batch": ("fp32", None),
    "ours, bf16": ("bf16", 1),
    "ours, int8": ("int8", 1),
}


def peak_of(name, sizes):
    """Bytes that decoding in one way takes at most: all of this process, and beyond what it held before."""
    precision, utterances = MEMORY[name]
    model = make_model(sizes)
    # What is not fp32 takes the model's place: its fp32 weights are gone before memory is counted.
    model = with_precision(model, precision)
    before, settings = resident_memory(), exactly(sizes.tokens, sizes.text)
    with torch.inference_mode():
        if utterances == 0:
            reference_tokens(transformers_model(model), model, request(sizes, model), sizes.tokens)
        else:
            count = utterances or sizes.batch
            generate(model, [request(sizes, model, seed) for seed in range(count)], settings)
    weights = num_bytes(model)
    return {"weights": weights, "resident": before, "after": resident_memory(), "peak": peak_memory()}


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
    return json.loads(done.stdout.splitlines()[-1])


def memory_table(sizes, threads):
    """Memory of every way, each in a process of its own."""
    table = Table(
        "Memory (MB)",
        ["way", "weights read a token", "resident before", "resident after", "peak of the process"],
    )
    for name in MEMORY:
        found = measure_peak(name, sizes, threads)
        cells = [f"{found[key] / 1e6:.0f}" for key in ("weights", "resident", "after", "peak")]
        shown = f"{name} of {sizes.batch}" if name.endswith("batch") else name
        table.rows.append([shown + (" (reference)" if name.startswith("transformers") else ""), *cells])
    table.notes.append(
        "The peak includes building the model in fp32, before its weights are made smaller; resident after decoding is "
        "what stays."
    )
    return table


def acoustic_seconds(sizes, rounds):
    """Median time that flow (10 Euler steps, caches, a prompt of 3 s) and vocoder take for the first chunk."""
    case = flow.make_case(flow.Sizes(seconds=2, toy=sizes.toy))
    small = {"channels": 16, "f0_channels": 8} if sizes.toy else {}
    vocoder = HiFT(num_mels=case.flow.num_mels, **small).eval()

    def first():
        VocoderStream(vocoder, generator=torch.Generator().manual_seed(0)).push(flow.cached(case, 1))

    return statistics.median(take_turns({"first": first}, rounds, warmup=0)["first"])


def first_chunk_table(model, sizes, rounds, texts=(10, 50, 200), chunk=28):
    """Time until the tokens of the first chunk (25 and a look-ahead of 3) are there, and its sound."""
    count = min(chunk, sizes.tokens)
    variants = {
        f"{num} text tokens": (
            lambda num=num: generate(model, [request(sizes, model, text=num)], exactly(count, num))
        )
        for num in texts
    }
    table = Table(
        f"First {count} speech tokens, and the first chunk of sound",
        ["text", "tokens after (s)", "ratio of time", "sound after (s)", "by that of the reference"],
    )
    times = compare(take_turns(variants, rounds, warmup=0), f"{texts[0]} text tokens")
    acoustic = acoustic_seconds(sizes, rounds)
    shortest = times[f"{texts[0]} text tokens"].seconds + acoustic
    for name, timing in times.items():
        mark = " (reference)" if name == f"{texts[0]} text tokens" else ""
        sound = timing.seconds + acoustic
        cells = [f"{timing.seconds:.2f}", ratio_cell(timing), f"{sound:.2f}", f"{sound / shortest:.3f}"]
        table.rows.append([name + mark, *cells])
    table.notes.append(
        f"Flow and vocoder take {acoustic:.2f} s for the first chunk, measured once: they do not see the text."
    )
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
    # First: this process holds no model yet, and theirs have the machine to themselves.
    yield memory_table(sizes, threads)
    model = make_model(sizes)
    with torch.inference_mode():
        yield decode_table(model, sizes, rounds)
        yield first_chunk_table(model, sizes, rounds)


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
        print(json.dumps(peak_of(options.peak_of, sizes)))
        return
    print_tables(run(sizes, options.rounds, options.threads))


if __name__ == "__main__":
    main()
