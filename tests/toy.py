"""A complete tiny experiment on made-up audio: the demo's own YAML with an overlay, seconds instead of minutes.

Tones stand for speech: the pitch says the emotion, the number of beeps the words. Nothing is to be learned well;
the tests that use it are about exactness.
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
SAMPLE_RATE = 16000


def build_encoder(folder, seed=0):
    """Save a random HuBERT of the layer-norm style."""
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
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
            emotion, words = EMOTIONS[i % 4], [WORDS[w] for w in rng.integers(0, 4, 1 + i % 3)]
            beep = np.arange(int(SAMPLE_RATE * rng.uniform(0.12, 0.2))) / SAMPLE_RATE
            tones = [np.sin(2 * np.pi * (150 + 100 * (i % 4) + 20 * WORDS.index(w)) * beep) for w in words]
            wave = 0.1 * np.concatenate(tones) + 0.001 * rng.standard_normal(len(beep) * len(words))
            name = f"{split}_{i}"
            soundfile.write(folder / "wav" / f"{name}.wav", wave, SAMPLE_RATE)
            records[name] = {
                "wav": f"{{data_root}}/wav/{name}.wav",
                "duration": len(wave) / SAMPLE_RATE,
                "speaker": f"{split}{i % 2}",
                "gender": ("female", "male")[i % 2],
                "transcript": " ".join(words),
                "emotion": emotion,
                "descriptors": {
                    "gender": ("female", "male")[i % 2],
                    "pitch": ("low", "normal", "high")[i % 3],
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
    texts = [
        "transcript: red blue dog cat\ngender: female male\npitch: low normal high\nvolume: normal\nspeed: slow\n"
        "emphasis: none red\ndescription: A tone.\nemotion: angry happy neutral sad",
        "Speech: Voice: Write the words, describe the voice, name the emotion. What is said? Listen",
    ]
    build_tiny_llm(
        folder / "backbones" / "llm",
        texts * 3,
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
    )
    phase = {"epochs": 2, "lr": 1.0e-2, "batch_size": 8, "beta": {"start": 1.0e-2, "end": 1.0e-3}}
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
        "validate_every": 1,
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 1,
        "evaluation": {"max_new_tokens": 8, "batch_size": 4, "check_batch": 3, "baselines": []},
    }
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def command(overlay, *options):
    """Arguments of train.py for a toy experiment."""
    return ["train.py", "hparams/demo_ib.yaml", f"--overlay={overlay}", *options]


def environment(**more):
    """Environment of a subprocess: one thread, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(overlay, *options, check=True, **more):
    """Run train.py to its end; returns the finished process."""
    done = subprocess.run(
        [sys.executable, *command(overlay, *options)],
        cwd=REPOSITORY,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check and done.returncode:
        raise AssertionError(f"train.py failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done
