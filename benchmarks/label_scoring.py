"""Label scoring by likelihood against greedy generation of the label: utterances a second at batch 1 and 16.

The model has the sizes of the demo's language model with random weights, the prompts are the demo's
emotion-only task with random speech embeddings in the slots. Compared, on the same packed prompts:

    generation     greedy search with a key/value cache until the label and the end token are written
    scoring        ``SpeechLLM.score``: every label's likelihood, the prompt computed once
    brute_force    every label's likelihood, a full forward pass of prompt and label for each

Fair reference: ``generation``. A random model does not know when to stop, so the number of steps is set to what
a model that writes the utterance's label would take: its tokens and the end token, in a batch those of the longest.
``brute_force`` computes logits of the answer positions only, and its scores equal those of ``scoring`` (the
largest difference is printed).
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the file itself runs, too

import torch
from hyperpyyaml import load_hyperpyyaml

from benchmarks.common import Table, argument_parser, compare, print_tables, ratio_cell, take_turns
from recipes.Demo.demo_prepare import tokenizer_texts
from speechbrain_emo.lobes.speech_llm import SpeechLLM
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.prompts import Packer

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLE = "python -m benchmarks.label_scoring --batch_sizes 1 16 --labels anger boredom fear joy"
REFERENCE = "generation"
# Of hparams/demo_llm.yaml.
DEMO_MODEL = {
    "vocab_size": 600,
    "hidden_size": 192,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 512,
}


@dataclass(frozen=True)
class Batch:
    """Packed prompts of some utterances, padded left, and how many tokens the answer of each batch takes.

    Example
    -------
    >>> Batch(None, None, 3).num_steps
    3
    """

    embeddings: torch.Tensor
    packed: object
    num_steps: int


def build_model(model=None, num_texts=4000):
    """Random Llama with the demo's tokenizer, and the demo's emotion task.

    Arguments
    ---------
    model : dict, optional
        Keywords of ``build_tiny_llm``; default: the demo's sizes.
    num_texts : int
        Texts that the tokenizer is trained on.

    Returns
    -------
    tuple of SpeechLLM, Packer and InstructionTask
    """
    with open(REPOSITORY / "hparams" / "prompts" / "demo.yaml", encoding="utf-8") as stream:
        task = load_hyperpyyaml(stream)["tasks"]["ser"]
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_llm(folder, tokenizer_texts(num_texts), **(DEMO_MODEL if model is None else model))
        llm = SpeechLLM(folder)
    return llm, Packer(llm.tokenizer, ["content", "descriptor"]), task


def build_batches(llm, packer, task, labels, num_utterances, batch_size, positions=(10, 40)):
    """Utterances in batches; utterance i has label i modulo K and slots of a random length.

    Arguments
    ---------
    llm, packer, task :
        Of :func:`build_model`.
    labels : list of list of int
        Token ids of the K labels.
    num_utterances, batch_size : int
        The last batch may be smaller.
    positions : tuple of int
        Shortest and longest slot.

    Returns
    -------
    list of Batch
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(positions[0], positions[1] + 1, (num_utterances,), generator=generator).tolist()
    scale = llm.causal_lm.get_input_embeddings().weight.square().mean().sqrt()
    batches = []
    for start in range(0, num_utterances, batch_size):
        numbers = range(start, min(start + batch_size, num_utterances))
        rows, slots = [], {}
        for i in numbers:
            example = task.build({"id": str(i)}, prompt_number=i % len(task.prompts))
            rows.append(
                packer.encode(example, [dict.fromkeys(packer.slot_kinds, lengths[i])], with_answer=False)
            )
        for kind in packer.slot_kinds:
            slots[kind] = scale * torch.randn(len(rows), positions[1], llm.hidden_size, generator=generator)
        packed = packer.collate(rows, side="left")
        steps = max(len(labels[i % len(labels)]) for i in numbers) + 1
        batches.append(Batch(llm.embed(packed, slots), packed, steps))
    return batches


@torch.no_grad()
def brute_force(llm, batch, labels):
    """Scores (B, K) like ``SpeechLLM.score``, a forward pass of the whole sequence for each label."""
    scores = []
    num_rows = len(batch.embeddings)
    for label in labels:
        ids = torch.tensor(label).expand(num_rows, -1)
        targets = torch.tensor([*label, llm.end_of_answer_id]).expand(num_rows, -1)
        first = batch.packed.position_ids[:, -1:] + 1
        logits = llm.causal_lm(
            inputs_embeds=torch.cat([batch.embeddings, llm.causal_lm.get_input_embeddings()(ids)], 1),
            attention_mask=torch.cat([batch.packed.attention_mask, torch.ones_like(ids)], 1),
            position_ids=torch.cat([batch.packed.position_ids, first + torch.arange(len(label))], 1),
            use_cache=False,
            # The last position of the prompt predicts the first token, so one more than the label has.
            logits_to_keep=len(label) + 1,
        ).logits
        log_probabilities = logits.float().log_softmax(-1).gather(-1, targets[:, :, None])[:, :, 0]
        scores.append(log_probabilities.mean(1))
    return torch.stack(scores, 1)


@torch.no_grad()
def measure(llm, batches, labels, rounds):
    """Timings of a pass over all batches, and how far the two ways to score are apart.

    Arguments
    ---------
    llm : SpeechLLM
        The model.
    batches : list of Batch
        Of :func:`build_batches`.
    labels : list of list of int
        Token ids of the labels.
    rounds : int
        Timed rounds.

    Returns
    -------
    tuple of dict and float
        Name -> Timing; largest absolute difference of a score in nats a token.
    """
    variants = {
        "generation": lambda: [llm.generate(b.embeddings, b.packed, b.num_steps) for b in batches],
        "scoring": lambda: [llm.score(b.embeddings, b.packed, labels) for b in batches],
        "brute_force": lambda: [brute_force(llm, b, labels) for b in batches],
    }
    difference = max(
        float((own - other).abs().max())
        for own, other in zip(variants["scoring"](), variants["brute_force"](), strict=True)
    )
    return compare(take_turns(variants, rounds), REFERENCE), difference


def run(labels=None, batch_sizes=(1, 16), num_utterances=32, rounds=5, model=None, num_texts=4000):
    """Measure every batch size.

    Arguments
    ---------
    labels : sequence of str, optional
        Default: those of the demo.
    batch_sizes : sequence of int
        Utterances at a time.
    num_utterances : int
        In each round.
    rounds : int
        Timed rounds.
    model : dict, optional
        Keywords of ``build_tiny_llm``.
    num_texts : int
        Texts for the tokenizer.

    Returns
    -------
    list of Table
    """
    llm, packer, task = build_model(model, num_texts)
    names = list(labels or task.format.labels)
    ids = [list(packer.tokenize(" " + name)) for name in names]
    table = Table(
        "Label scoring against greedy generation",
        ["batch", "method", "utterances/s", "ratio of time", "result"],
    )
    differences = []
    for batch_size in batch_sizes:
        batches = build_batches(llm, packer, task, ids, num_utterances, batch_size)
        timings, difference = measure(llm, batches, ids, rounds)
        differences.append(difference)
        for name, timing in timings.items():
            table.rows.append(
                [
                    batch_size,
                    name + (" (reference)" if name == REFERENCE else ""),
                    f"{num_utterances / timing.seconds:.1f}",
                    ratio_cell(timing),
                    "one label" if name == REFERENCE else f"{len(names)} likelihoods",
                ]
            )
    widths = [int(m) for b in batches for m in b.packed.attention_mask.sum(1)]
    config = llm.causal_lm.config
    table.notes.append(
        f"Llama with hidden size {config.hidden_size}, {config.num_hidden_layers} layers, vocabulary "
        f"{config.vocab_size}, float32; {num_utterances} prompts of {min(widths)}-{max(widths)} positions; labels "
        + ", ".join(f"{name} ({len(i)} tokens)" for name, i in zip(names, ids))
        + f". Median of {rounds} rounds; ratios with their range. Largest difference of a score between scoring "
        f"and brute_force: {max(differences):.1e} nats a token."
    )
    return [table]


def main(arguments=None):
    """Command line."""
    parser = argument_parser(__doc__, EXAMPLE, rounds=5)
    parser.add_argument("--labels", nargs="+", help="candidate labels (those of the demo)")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 16], help="(%(default)s)")
    parser.add_argument("--utterances", type=int, default=32, help="in each round (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print_tables(run(options.labels, options.batch_sizes, options.utterances, options.rounds))


if __name__ == "__main__":
    main()
