"""A complete tiny JELLY experiment on tones: demo_jelly.yaml and demo_jelly_tts.yaml with overlays, seconds instead of
minutes. The encoder is a real, tiny Whisper."""

from pathlib import Path

import numpy as np
import soundfile
import yaml
from toy import EMOTIONS, FREQUENCIES, REPOSITORY, SAMPLE_RATE, WORDS

from speechbrain_emo.dataio.dialogue import make_turn, records_of_lines
from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.experiment import _load, merge_overrides
from speechbrain_emo.lobes.hubert_pretraining import build_tiny_whisper, save_encoder
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm

INTENSITIES = ("weak", "medium", "strong")
TEXTS = [
    "red blue dog cat A: B: (weak angry) (medium happy) (strong sad) (neutral) next A: red feeling?",
    "listen: one word? feeling in one word? feeling and strength? which feeling? then B: angry happy neutral sad",
]


def _line(folder, name, rng, number):
    emotion = EMOTIONS[int(rng.integers(4))]
    intensity = INTENSITIES[int(rng.integers(3))] if emotion != "neutral" else None
    words = [WORDS[i] for i in rng.integers(0, 4, 1 + int(rng.integers(2)))]
    time = np.arange(int(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    level = 0.02 * (1 + EMOTIONS.index(emotion)) * (1 + INTENSITIES.index(intensity or "weak"))
    samples = level * np.concatenate([np.sin(2 * np.pi * FREQUENCIES[w] * time) for w in words])
    samples = samples + 0.001 * rng.standard_normal(len(samples))
    soundfile.write(folder / f"{name}.wav", samples, SAMPLE_RATE)
    recording = {"wav": f"{{data_root}}/wav/{name}.wav", "duration": len(samples) / SAMPLE_RATE}
    descriptors = {"intensity": intensity} if intensity else {}
    speaker = "ab"[number % 2]
    turn = make_turn("user", " ".join(words), recording, speaker, None, emotion, descriptors)
    phones = [{"phone": w, "start": 0.2 * i, "end": 0.2 * (i + 1)} for i, w in enumerate(words)]
    line = {**recording, "speaker": speaker, "gender": None, "transcript": " ".join(words), "phones": phones}
    return turn, {**line, "emotion": emotion, "descriptors": descriptors}


def build(folder):
    """Make a corpus, backbones and overlays in a folder; returns the overlay of the stages 1 and 2."""
    folder = Path(folder)
    wavs = folder / "corpus" / "wav"
    wavs.mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = {}
    for split, count in (("train", 8), ("valid", 2), ("test", 3)):
        records = {}
        for i in range(count):
            made = [_line(wavs, f"{split}{i}_{k}", rng, k) for k in range(3 + i % 2)]
            records.update(
                records_of_lines([t for t, _ in made], f"{split}_{i:04d}", corpus="democonversation")
            )
            lines.setdefault(split, {}).update(
                {f"{split}_{i:04d}_{k}": line for k, (_, line) in enumerate(made)}
            )
            if split != "test":
                written = [{**t, "recording": None} for t, _ in made]
                records.update(
                    records_of_lines(written, f"text_{split}_{i:04d}", corpus="democonversation_text")
                )
        write_manifest(folder / "corpus" / "manifests" / f"{split}.json", records)
        write_manifest(folder / "corpus" / "tts_manifests" / f"{split}.json", lines[split])
    write_manifest(folder / "corpus" / "manifests" / "lines.json", lines["test"])
    save_encoder(build_tiny_whisper(16, 2, 2, 32, mel_bands=80, window_seconds=2), folder / "encoder")
    build_tiny_llm(
        folder / "llm",
        TEXTS * 5,
        vocab_size=340,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        initializer_range=0.1,
    )
    overlay = {
        "requires": [],
        "prepare": None,
        "oracle": None,
        "data_folder": str(folder / "corpus"),
        "encoder": {"source": str(folder / "encoder"), "layers": [1, 2], "pool": 5},
        "llm": {"source": str(folder / "llm")},
        "output_folder": str(folder / "run"),
        "front_end": {
            "num_queries": 3,
            "qformer_size": 16,
            "qformer_heads": 2,
            "qformer_feed_forward": 16,
            "layer_heads": 2,
        },
        "stage1_1_epochs": 1,
        "stage1_2_epochs": 1,
        "stage2_1_epochs": 1,
        "stage2_2_epochs": 2,
        "limits": {"max_positions": 2000, "max_frames": 400, "max_rows": 4},
        "precision": "fp32",
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 1,
        "robustness": {"changes": ["noise_0", "telephone"], "limit": 3},
        "evaluation": {
            "gru": {"epochs": 2, "hidden_size": 4},
            "num_beams": 2,
            "batch_size": 8,
            "replies": [1, 2],
            "latency_records": 2,
        },
    }
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    tts = {
        "prepare": None,
        "data_folder": str(folder / "corpus"),
        "output_folder": str(folder / "tts"),
        "model": {
            "hidden_size": 8,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "filter_size": 8,
            "kernel_sizes": [3, 1],
            "postnet_size": 8,
            "postnet_layers": 2,
        },
        "epochs": 3,
        "batch_size": 4,
        "warmup": 2,
        "evaluation": {"num_lines": 4},
    }
    (folder / "tts_overlay.yaml").write_text(yaml.safe_dump(tts))
    replies = {
        "prepare": None,
        "data_folder": str(folder / "corpus"),
        "model": str(folder / "run"),
        "tts": str(folder / "tts"),
        "asr": None,
        "num_lines": 3,
        "output_folder": str(folder / "replies"),
    }
    (folder / "replies_overlay.yaml").write_text(yaml.safe_dump(replies))
    return path


def hparams(overlay, experiment="demo_jelly.yaml", overlays=(), **changes):
    """The loaded YAML with the overlay, further overlays by name, and changes."""
    files = [*(str(REPOSITORY / "hparams" / "overlays" / name) for name in overlays), str(overlay)]
    text = merge_overrides(files, yaml.safe_dump(changes))
    return _load(REPOSITORY / "hparams" / experiment, text)
