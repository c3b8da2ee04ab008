"""Text for the tiny language model of the EmoDB experiment: transcripts, descriptors and emotions without audio.

Half of the sentences are EmoDB's ten, half are words of them in random order, so that the model learns to copy and
not only to recite. Which emotion goes with which sentence or descriptor is drawn at random: nothing about the corpus's
recordings, of any speaker, is in this text.
"""

import json
import random
from pathlib import Path

from recipes.EmoDB.emodb_prepare import SENTENCES
from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm


def prepare_text(
    save_folder,
    llm_folder,
    answer_format,
    num_train=6000,
    num_valid=200,
    vocab_size=600,
    seed=1234,
    model=None,
):
    """Write text manifests and a randomly initialised language model with its tokenizer.

    Arguments
    ---------
    save_folder : str
        Where ``train.json`` and ``valid.json`` go.
    llm_folder : str
        Where the initial model and its tokenizer go.
    answer_format : AnswerFormat
        Says which descriptors and emotions there are.
    num_train, num_valid : int
        Numbers of records.
    vocab_size : int
        Of the tokenizer.
    seed : int
        Of the draw and the initial weights.
    model : dict, optional
        Sizes of the model: keywords of ``build_tiny_llm``.
    """
    wanted = json.dumps([num_train, num_valid, vocab_size, seed, dict(model or {})], sort_keys=True)
    stamp = Path(save_folder) / "settings.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    rng = random.Random(seed)
    sentences = list(SENTENCES.values())
    words = [w for s in sentences for w in s.split()]
    records = []
    for i in range(num_train + num_valid):
        text = rng.choice(sentences) if i % 2 else " ".join(rng.sample(words, rng.randint(4, 10)))
        descriptors = {n: rng.choice(answer_format.spec[n]) for n in answer_format.descriptor_names}
        emotion = rng.choice(answer_format.labels)
        records.append(
            (f"text_{i:06d}", {"transcript": text, "emotion": emotion, "descriptors": descriptors})
        )
    parts = {"train": records[:num_train], "valid": records[num_train:]}
    for split, part in parts.items():
        content = {k: {**r, "speaker": "text", "gender": None, "duration": 0.0} for k, r in part}
        write_manifest(Path(save_folder) / f"{split}.json", content)
    answers = [answer_format.text(answer_format.fields_of({"id": k, **r})) for k, r in records[:2000]]
    prompts = [
        "Speech: Voice: Write the words, describe the voice, name the emotion. What is said? Which emotion is it?"
    ]
    build_tiny_llm(llm_folder, answers + prompts * 50, vocab_size=vocab_size, seed=seed, **(model or {}))
    stamp.write_text(wanted, encoding="utf-8")
