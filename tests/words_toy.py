"""A tiny corpus for the word annotator: a word is a beep, its emotion the beep's pitch, and truth is known."""

import json
from pathlib import Path

import numpy as np
import soundfile
import yaml
from toy import build_encoder

RATE = 16000
EMOTIONS = ("angry", "happy", "neutral", "sad")
PITCHES = (2200.0, 1300.0, 700.0, 300.0)
LABEL_MAP = {"angry": "ang", "happy": "hap", "neutral": "neu", "sad": "sad"}


def utterance(rng, emotions):
    """(samples, words) of an utterance with one beep an emotion."""
    samples, words, time = [np.zeros(RATE // 50)], [], 0.02
    for number, emotion in enumerate(emotions):
        length = int(RATE * rng.uniform(0.08, 0.2))
        pitch = PITCHES[EMOTIONS.index(emotion)] * rng.uniform(0.93, 1.07)
        clock = np.arange(length) / RATE
        beep = rng.uniform(0.1, 0.2) * np.sin(2 * np.pi * pitch * clock) * np.hanning(length) ** 0.2
        samples.append(beep)
        words.append(
            {
                "word": f"w{number}",
                "start": round(time, 4),
                "end": round(time + length / RATE, 4),
                "emotion": emotion,
            }
        )
        time += length / RATE
        gap = int(RATE * rng.uniform(0.0, 0.03))
        samples.append(np.zeros(gap))
        time += gap / RATE
    samples = np.concatenate([*samples, np.zeros(RATE // 50)])
    return samples + 0.0005 * rng.standard_normal(len(samples)), words


def build_words(folder, counts=(("train", 96), ("valid", 12), ("test", 16)), seed=0, encoder=True):
    """Wavs, manifests (``single_*`` of one emotion, ``mixed_*`` of two) and an encoder in a folder."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    for split, count in counts:
        for kind in ("single", "mixed"):
            records = {}
            for i in range(count):
                num = int(rng.integers(4, 7))
                first = EMOTIONS[i % 4]
                emotions = [first] * num
                if kind == "mixed":
                    second = str(rng.choice([e for e in EMOTIONS if e != first]))
                    border = int(rng.integers(1, num))
                    emotions = [first] * border + [second] * (num - border)
                samples, words = utterance(rng, emotions)
                key = f"{kind}_{split}_{i}"
                soundfile.write(folder / "wav" / f"{key}.wav", samples, RATE)
                if kind == "single":
                    words = [{k: v for k, v in row.items() if k != "emotion"} for row in words]
                records[key] = {
                    "wav": f"{{data_root}}/wav/{key}.wav",
                    "duration": len(samples) / RATE,
                    "speaker": f"{split}{i % 3}",
                    "gender": None,
                    "transcript": " ".join(row["word"] for row in words),
                    "emotion": first if kind == "single" else None,
                    "descriptors": {},
                    "words": words,
                }
            (folder / f"{kind}_{split}.json").write_text(json.dumps(records))
    if encoder:
        build_encoder(folder / "encoder")
    return folder


def overlay(folder, **changes):
    """Overlay of demo_word_emotion.yaml for the toy corpus; returns its path."""
    folder = Path(folder)
    values = {
        "requires": [],
        "prepare": None,
        "oracle": None,
        "data_folder": str(folder),
        "manifest_folder": str(folder),
        "output_folder": str(folder / "run"),
        "manifests": {
            "train": str(folder / "single_train.json"),
            "valid": str(folder / "single_valid.json"),
            "test": str(folder / "mixed_test.json"),
        },
        "encoder": {"source": str(folder / "encoder")},
        "annotator": {"num_heads": 2, "ffn_size": 32, "dropout": 0.1},
        "number_of_epochs": 40,
        "batch_size": 8,
        "lr": 1.0e-2,
    }
    values.update(changes)
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def build_annotator(folder, labels=("ang", "hap", "neu", "sad"), supervision="weak", seed=3, **settings):
    """An exported annotator with random weights over a small encoder; returns its folder."""
    import functools

    import torch

    from speechbrain_emo.inference.export import export_annotator
    from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
    from speechbrain_emo.lobes.word_emotion import WordEmotionModel

    folder = Path(folder)
    if not (folder / "encoder").is_dir():
        build_encoder(folder / "encoder")
    factories = {
        "encoder": functools.partial(SpeechEncoder, source=str(folder / "encoder")),
        "annotator": functools.partial(WordEmotionModel, num_heads=2, ffn_size=32),
    }
    encoder = factories["encoder"]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factories["annotator"](
            num_labels=len(labels), input_size=encoder.hidden_size, num_encoder_layers=encoder.num_layers
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    values = {"labels": list(labels), "supervision": supervision, **settings}
    return export_annotator(folder / "run" / "model", encoder, model, factories, values)
