"""A complete tiny dual-information experiment on tones: demo_dual.yaml with an overlay, seconds instead of minutes."""

from pathlib import Path

import numpy as np
import soundfile
import yaml
from toy import EMOTIONS, FREQUENCIES, REPOSITORY, SAMPLE_RATE, WORDS

from speechbrain_emo.dataio.manifest import write_manifest
from speechbrain_emo.experiment import _load, merge_overrides
from speechbrain_emo.lobes.hubert_pretraining import build_tiny_whisper, save_encoder
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm

TEXTS = [
    "transcript: red blue dog cat the voice is female male the pitch is low middle high the tempo is slow steady fast",
    "the energy is soft moderate loud the speaker is angry happy neutral sad write the words what is said? listen:",
    "choose the voice: name the feeling, answer kindly which pitch? sorry about the dog",
]
VALUES = {
    "gender": ("female", "male"),
    "pitch": ("low", "middle", "high"),
    "tempo": ("slow", "steady", "fast"),
    "energy": ("soft", "moderate", "loud"),
}


def _utterance(folder, name, rng):
    words = [WORDS[i] for i in rng.integers(0, 4, 1 + int(rng.integers(3)))]
    emotion = EMOTIONS[int(rng.integers(4))]
    time = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    samples = np.concatenate([np.sin(2 * np.pi * FREQUENCIES[w] * time) for w in words])
    samples = 0.02 * (1 + EMOTIONS.index(emotion)) * samples + 0.001 * rng.standard_normal(len(samples))
    soundfile.write(folder / f"{name}.wav", samples, SAMPLE_RATE)
    return {
        "text": " ".join(words),
        "emotion": emotion,
        "duration": len(samples) / SAMPLE_RATE,
        "descriptors": {k: v[int(rng.integers(len(v)))] for k, v in VALUES.items()},
        "wav": f"{{data_root}}/wav/{name}.wav",
    }


def _dialogue(folder, key, speaker, rng, turns):
    spoken = [_utterance(folder, f"{key}_{i}", rng) for i in range(turns)]
    made = []
    for i, u in enumerate(spoken):
        made.append(
            {
                "role": "user",
                "speaker": speaker,
                "audio": i,
                "gender": None,
                **{k: u[k] for k in ("text", "emotion", "descriptors")},
            }
        )
        made.append(
            {
                "role": "assistant",
                "speaker": "assistant",
                "audio": None,
                "text": f"{u['emotion']} {u['text']}",
            }
        )
    last = spoken[-1]
    return {
        "audios": [{"wav": u["wav"], "duration": u["duration"]} for u in spoken],
        "duration": last["duration"],
        "speaker": speaker,
        "gender": None,
        "transcript": last["text"],
        "emotion": last["emotion"],
        "descriptors": last["descriptors"],
        "turns": made[:-1],
        "response": {"text": made[-1]["text"]},
    }


def build(folder):
    """Make a corpus, backbones and an overlay in a folder; returns the overlay's path."""
    folder = Path(folder)
    (folder / "corpus" / "wav").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for split, count in (("train", 24), ("valid", 6), ("test", 8), ("test_style", 4), ("test_context", 4)):
        names = [f"{split.replace('_', '')}{i}" for i in range(count)]
        records = {
            # The ids of the changed dialogues are those of the test dialogues that they change.
            (f"test{i}" if split.startswith("test") else name): _dialogue(
                folder / "corpus" / "wav", name, f"{split}{i % 4}", rng, 1 + i % 3
            )
            for i, name in enumerate(names)
        }
        write_manifest(folder / "corpus" / "manifests" / f"{split}.json", records)
    encoder = build_tiny_whisper(16, 2, 2, 32, mel_bands=80, window_seconds=2)
    save_encoder(encoder, folder / "backbones" / "encoder")
    build_tiny_llm(
        folder / "backbones" / "llm",
        TEXTS * 5,
        vocab_size=330,
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
        "backbones": str(folder / "backbones"),
        "output_folder": str(folder / "run"),
        "front_end": {"hidden_size": 16, "num_positions": 4},
        "stage1_epochs": 1,
        "stage2_epochs": 1,
        "stage3_epochs": 1,
        "targets": {"max_new_tokens": 12, "max_rows": 5, "keep_truncated": True},
        # 3 rows: several micro-batches a step.
        "limits": {"max_positions": 900, "max_frames": 400, "max_rows": 3},
        "precision": "fp32",
        "validate_every": 1,
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 1,
        "evaluation": {
            "phases": ["stage1", "stage3"],
            "choice_tasks": ["pitch", "emotion"],
            "max_new_tokens": 6,
            "batch_size": 8,
        },
    }
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def hparams(overlay, **changes):
    """The loaded YAML with the overlay and changes."""
    text = merge_overrides([str(overlay)], yaml.safe_dump(changes))
    return _load(REPOSITORY / "hparams" / "demo_dual.yaml", text)
