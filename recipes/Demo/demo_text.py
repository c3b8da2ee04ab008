"""Text for the tiny language model of the demo: what a large model has read already, this one learns here.

The records have transcripts, descriptors and emotions but no audio; their sentences share no four words in a row
with test or validation. In most of them a drawn-out row of letters with errors stands in for the speech, about as many
letters as the speech has slot positions: reading bad spelling is what a large model brings to recognition. A tiny one
would have to find the monotonic attention that this takes from a few thousand recordings.
"""

import json
import random
import string
from pathlib import Path

from recipes.Demo.demo_prepare import prepare_demo, text_records, tokenizer_texts
from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm


def drawn_out(text, rng):
    """Letters one by one, some doubled, dropped or wrong, without word boundaries.

    Arguments
    ---------
    text : str
        Lower-case words.
    rng : random.Random

    Returns
    -------
    str
        Letters separated by blanks, at least one.

    Example
    -------
    >>> drawn_out("the red box", random.Random(3))
    't h e e e d b o x'
    """
    letters = []
    for letter in text.replace(" ", ""):
        chance = rng.random()
        if chance < 0.08:
            continue
        if chance < 0.13:
            letter = rng.choice(string.ascii_lowercase)
        letters += [letter] * (2 if rng.random() < 0.25 else 1)
    return " ".join(letters or text[0])


def prepare_text(
    data_folder,
    manifest_folder,
    save_folder,
    llm_folder,
    num_train=12000,
    num_valid=300,
    vocab_size=600,
    drawn_out_share=0.0,
    seed=1234,
    model=None,
):
    """Write text manifests and a randomly initialised language model with its tokenizer.

    Arguments
    ---------
    data_folder : str
        The spoken corpus, made first where it is missing.
    manifest_folder : str
        Manifests of the spoken corpus, whose valid and test sentences are kept out.
    save_folder : str
        Where ``train.json`` and ``valid.json`` go.
    llm_folder : str
        Where the initial model and its tokenizer go.
    num_train, num_valid : int
        Numbers of records.
    vocab_size : int
        Of the tokenizer.
    drawn_out_share : float
        Share of the records in whose content slot :func:`drawn_out` letters stand.
    seed : int
        Of the draw and the initial weights.
    model : dict, optional
        Sizes of the model: keywords of ``build_tiny_llm``.
    """
    prepare_demo(data_folder, manifest_folder)
    settings = [num_train, num_valid, vocab_size, drawn_out_share, seed, dict(model or {})]
    wanted = json.dumps(settings, sort_keys=True)
    stamp = Path(save_folder) / "settings.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    exclude = []
    for split in ("valid", "test"):
        path = Path(manifest_folder) / f"{split}.json"
        exclude += [r["transcript"] for r in json.loads(path.read_text(encoding="utf-8")).values()]
    records = text_records(num_train + num_valid, seed, exclude)
    rng = random.Random(seed)
    for record in records:
        if rng.random() < drawn_out_share:
            record["slot_texts"] = {"content": " " + drawn_out(record["transcript"], rng)}
    parts = {"train": records[:num_train], "valid": records[num_train:]}
    for split, part in parts.items():
        write_manifest(
            Path(save_folder) / f"{split}.json",
            {r["id"]: {**{k: v for k, v in r.items() if k != "id"}, "duration": 0.0} for r in part},
        )
    texts = tokenizer_texts(seed=seed, exclude=exclude) + [
        r["slot_texts"]["content"].strip() for r in records if "slot_texts" in r
    ]
    build_tiny_llm(llm_folder, texts, vocab_size=vocab_size, seed=seed, **(model or {}))
    stamp.write_text(wanted, encoding="utf-8")
