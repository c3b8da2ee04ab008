"""A complete tiny experiment on made-up audio: the demo's own YAML with an overlay, seconds instead of minutes.

Tones stand for speech. The tests about exactness need nothing learned; ``learning_overlay`` has data and steps enough
to learn what the tones say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from speechbrain_emo.lobes.tiny_llm import build_tiny_llm

REPOSITORY = Path(__file__).resolve().parent.parent
EMOTIONS = ("angry", "happy", "neutral", "sad")
WORDS = ("red", "blue", "dog", "cat")
FREQUENCIES = {"red": 300.0, "blue": 700.0, "dog": 1500.0, "cat": 3000.0}
SAMPLE_RATE = 16000
TEXTS = [
    "transcript: red blue dog cat\ngender: female male\npitch: low normal high\nvolume: normal\nspeed: slow\n"
    "emphasis: none red\ndescription: A tone.\nemotion: angry happy neutral sad",
    "Speech: Voice: Write the words, describe the voice, name the emotion. What is said? Listen",
]


def build_encoder(folder, seed=0, hidden_size=16):
    """Save a random HuBERT of the layer-norm style."""
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(hidden_size, hidden_size),
        conv_kernel=(400, 3),
        conv_stride=(160, 2),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)


def build_corpus(folder, counts=(("train", 24), ("valid", 6), ("test", 8)), seed=0):
    """Write wavs and manifests; speakers differ between splits."""
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    (folder / "manifests").mkdir(exist_ok=True)
    for split, count in counts:
        records = {}
        for i in range(count):
            emotion, words = EMOTIONS[i % 4], [WORDS[w] for w in rng.integers(0, 4, 1 + int(rng.integers(3)))]
            beep = np.arange(int(SAMPLE_RATE * rng.uniform(0.12, 0.2))) / SAMPLE_RATE
            # A word is the frequency of its tone; a second tone all through is the emotion, a third one the pitch.
            pitch = int(rng.integers(3))
            gap = np.zeros(SAMPLE_RATE // 25)
            tones = [np.concatenate([np.sin(2 * np.pi * FREQUENCIES[w] * beep), gap]) for w in words]
            wave = np.concatenate(tones)
            time = np.arange(len(wave)) / SAMPLE_RATE
            wave = wave + np.sin(2 * np.pi * (5000 + 600 * (i % 4)) * time)
            wave = 0.1 * (wave + np.sin(2 * np.pi * (3600 + 400 * pitch) * time))
            wave = wave + 0.0005 * rng.standard_normal(len(wave))
            name = f"{split}_{i}"
            soundfile.write(folder / "wav" / f"{name}.wav", wave, SAMPLE_RATE)
            records[name] = {
                "wav": f"{{data_root}}/wav/{name}.wav",
                "duration": len(wave) / SAMPLE_RATE,
                # Two speakers, each with every emotion.
                "speaker": f"{split}{i // 4 % 2}",
                "gender": ("female", "male")[i // 4 % 2],
                "transcript": " ".join(words),
                "emotion": emotion,
                "descriptors": {
                    "gender": ("female", "male")[i // 4 % 2],
                    "pitch": ("low", "normal", "high")[pitch],
                    "volume": "normal",
                    "speed": "slow",
                    "emphasis": words[:1] if i % 2 else [],
                    "description": "A tone.",
                },
            }
        (folder / "manifests" / f"{split}.json").write_text(json.dumps(records))


def build(folder):
    """Corpus, backbones and overlay of a toy experiment in a folder; returns the overlay's path."""
    folder = Path(folder)
    build_corpus(folder / "corpus")
    build_encoder(folder / "backbones" / "encoder")
    build_tiny_llm(
        folder / "backbones" / "llm",
        TEXTS * 3,
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
    )
    phase = {"epochs": 2, "lr": 1.0e-3, "batch_size": 8, "beta": {"start": 1.0e-2, "end": 1.0e-3}}
    overlay = {
        "requires": [],
        "prepare": None,
        "oracle": None,
        "data_folder": str(folder / "corpus"),
        "backbones": str(folder / "backbones"),
        "output_folder": str(folder / "run"),
        "front_end": {"hidden_size": 16, "latent_size": 4, "adapter_size": 16},
        "cycles": 2,
        "phases": [
            {"name": "asr", "train": ["front_end.content", "llm.lora"], "tasks": {"asr": 1.0}, **phase},
            {
                "name": "joint",
                "train": ["front_end.descriptor", "llm.lora"],
                "tasks": {"describe": 0.5, "ser": 0.5},
                **phase,
            },
        ],
        # 3 rows of the longest kind: several micro-batches a step.
        "limits": {"max_positions": 420, "max_frames": 400, "max_rows": 3},
        "precision": "fp32",
        "validate_every": 1,
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 1,
        "evaluation": {
            "max_new_tokens": 8,
            "batch_size": 4,
            "check_batch": 3,
            "interventions": 8,
            "baselines": [],
            # Tones are no voices, and measuring starts processes.
            "measure": 0,
        },
    }
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def text_overlay(folder):
    """Overlay of demo_llm.yaml: a small language model learns to copy the toy corpus' kind of text."""
    folder = Path(folder)
    records = {}
    rng = np.random.default_rng(5)
    for i in range(1500):
        words = [WORDS[w] for w in rng.integers(0, 4, 1 + int(rng.integers(3)))]
        records[f"text_{i}"] = {
            "duration": 0.0,
            "transcript": " ".join(words),
            "emotion": EMOTIONS[rng.integers(4)],
            "descriptors": {
                "gender": ("female", "male")[rng.integers(2)],
                "pitch": ("low", "normal", "high")[rng.integers(3)],
                "volume": "normal",
                "speed": "slow",
                "emphasis": words[:1] if rng.integers(2) else [],
                "description": "A tone.",
            },
        }
    (folder / "text").mkdir()
    keys = list(records)
    for split, part in (("train", keys[:1400]), ("valid", keys[1400:])):
        (folder / "text" / f"{split}.json").write_text(json.dumps({k: records[k] for k in part}))
    build_tiny_llm(
        folder / "initial",
        TEXTS * 3,
        vocab_size=330,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=128,
        initializer_range=0.06,
    )
    overlay = {
        "prepare": None,
        "output_folder": str(folder / "llm_run"),
        "text_folder": str(folder / "text"),
        "initial_llm": str(folder / "initial"),
        "llm_folder": str(folder / "backbones" / "llm"),
        "precision": "fp32",
        "phases": [
            {
                "name": "text",
                "train": ["llm.base"],
                "tasks": {"asr": 0.4, "describe": 0.2, "explain": 0.25, "ser": 0.15},
                "slot_sources": {"content": {"text": 1.0}, "descriptor": {"text": 1.0}},
                "epochs": 6,
                "lr": 4.0e-3,
                "batch_size": 32,
                "warmup": 0.05,
                "decay": "cosine",
            }
        ],
    }
    path = folder / "text_overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def learning_overlay(folder):
    """Overlay of demo_ib.yaml with data and steps enough to learn the toy corpus."""
    folder = Path(folder)
    phase = {"lr": 3.0e-3, "batch_size": 16, "beta": {"start": 1.0e-3, "end": 1.0e-4}}
    overlay = {
        "requires": [],
        "prepare": None,
        "oracle": None,
        "data_folder": str(folder / "corpus"),
        "backbones": str(folder / "backbones"),
        "output_folder": str(folder / "run"),
        "front_end": {"hidden_size": 96, "latent_size": 32, "adapter_size": 96},
        "phases": [
            {
                "name": "asr",
                "train": ["front_end.content", "llm.lora"],
                "tasks": {"asr": 1.0},
                "epochs": 12,
                **phase,
            },
            {
                "name": "joint",
                "train": ["front_end.descriptor", "llm.lora"],
                "tasks": {"asr": 0.3, "describe": 0.3, "explain": 0.3, "ser": 0.1},
                "epochs": 14,
                **phase,
            },
        ],
        "precision": "fp32",
        "validate_every": 4,
        "evaluation": {
            "max_new_tokens": 100,
            "batch_size": 32,
            "check_batch": 4,
            "interventions": 64,
            "verify": {"parts": ["prefix"], "limit": 32},
            "baselines": [],
            # Tones are no voices, and measuring starts processes.
            "measure": 0,
        },
    }
    path = folder / "learning_overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def command(overlay, *options, experiment="hparams/demo_ib.yaml"):
    """Arguments of train.py for a toy experiment."""
    return ["train.py", experiment, f"--overlay={overlay}", *options]


def environment(**more):
    """Environment of a subprocess: one thread, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(overlay, *options, check=True, experiment="hparams/demo_ib.yaml", **more):
    """Run train.py to its end; returns the finished process."""
    done = subprocess.run(
        [sys.executable, *command(overlay, *options, experiment=experiment)],
        cwd=REPOSITORY,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if check and done.returncode:
        raise AssertionError(f"train.py failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done
