"""A corpus of buzzing voices and untrained front ends: enough to train a flow and a vocoder in seconds."""

import json
import math
from pathlib import Path

import soundfile
import torch

from speechbrain_emo.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_emo.lobes.speech_tokenizer import SpeechTokenizer

LABELS = ["ang", "neu"]


def buzz(pitch, seconds, sample_rate=16000):
    """Ten harmonics of a gliding F0."""
    time = torch.arange(int(seconds * sample_rate)) / sample_rate
    phase = 2 * math.pi * pitch * (time + 0.1 * time.square())
    return sum(torch.sin(k * phase) / k for k in range(1, 11)) * 0.1


def make_corpus(folder, count=6):
    """Write recordings and manifests; returns the folder of the manifests."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in (("train", count), ("valid", 3)):
        records = {}
        for i in range(number):
            key, seconds = f"{split}_{i}", 0.5 + 0.09 * i
            soundfile.write(folder / f"{key}.wav", buzz(110 + 20 * i, seconds).numpy(), 16000)
            words = [
                {"word": "la", "start": 0.0, "end": 0.31, "emotion": "ang", "intensity": "high"},
                {"word": "lo", "start": 0.31, "end": seconds, "emotion": "neu", "intensity": "low"},
            ]
            records[key] = {
                "wav": f"{{data_root}}/{key}.wav",
                "duration": seconds,
                "speaker": f"{split}_voice_{i % 2}",
                "transcript": "la lo",
                "emotion": None,
                "words": words,
            }
        (folder / f"{split}.json").write_text(json.dumps(records))
    return folder


def make_front_ends(folder):
    """Untrained speech tokenizer and speaker encoder as folders."""
    torch.manual_seed(1)
    tokenizer = SpeechTokenizer(num_classes=5, size=16, num_heads=2, ffn_size=32, levels=[3, 3, 3])
    tokenizer.save(Path(folder) / "tokenizer")
    SpeakerEncoder([8, 8, 8, 8, 24], 8, size=12).save(Path(folder) / "speaker")


def common(corpus, run):
    """Settings of both trainings."""
    return {
        "seed": 3,
        "train_manifests": [str(corpus / "train.json")],
        "valid_manifests": [str(corpus / "valid.json")],
        "data_folder": str(corpus),
        "save_folder": str(run / "save"),
        "max_duration": 8.0,
        "max_utterances": None,
        "mel": {},
        "warmup": 0.1,
        "weight_decay": 0.01,
        "num_evaluated": 2,
    }


def flow_settings(corpus, run, front_ends, **changes):
    """What ``train_flow`` takes."""
    return {
        **common(corpus, run),
        "flow_folder": str(run / "flow"),
        "speech_tokenizer_folder": str(front_ends / "tokenizer"),
        "speaker_encoder_folder": str(front_ends / "speaker"),
        "token_folder": str(corpus / "tokens"),
        "emotion_conditioning": True,
        "labels": LABELS,
        "label_map": None,
        "intensities": ["low", "high"],
        "initial_flow": None,
        "start_from_levels": True,
        "prior_weight": 1.0,
        "flow": {
            "token_size": 16,
            "encoder": {
                "size": 16,
                "num_heads": 2,
                "hidden_size": 32,
                "num_layers": 1,
                "num_up_layers": 1,
                "chunk_size": 4,
            },
            "estimator": {
                "channels": 16,
                "num_blocks": 1,
                "num_mid_blocks": 1,
                "num_heads": 2,
                "head_size": 8,
            },
            "matching": {"num_steps": 2},
        },
        "speaker_from": "other",
        "streaming": 0.5,
        "emotion_dropout": 0.1,
        "draws": {"drop": 0.2},
        "number_of_epochs": 2,
        "batch_seconds": 2.0,
        "lr": 1e-3,
        "max_grad_norm": 5.0,
        **changes,
    }


def vocoder_settings(corpus, run, **changes):
    """What ``train_vocoder`` takes."""
    return {
        **common(corpus, run),
        "vocoder_folder": str(run / "vocoder"),
        "initial_vocoder": None,
        "vocoder": {"channels": 16, "f0_channels": 8, "kernels": [3], "dilations": [1]},
        "discriminator": {
            "periods": [2],
            "period_channels": [4, 4],
            "spectra": [[256, 64, 256]],
            "spectrum_channels": 4,
        },
        "loss": {"spectra": 15.0},
        "crop_frames": 10,
        "crops": 1,
        "batch_size": 3,
        "reconstruction_epochs": 1,
        "number_of_epochs": 2,
        "lr": 1e-3,
        "discriminator_lr": 1e-3,
        "betas": [0.8, 0.99],
        "max_grad_norm": 100.0,
        **changes,
    }
