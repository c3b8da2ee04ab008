"""A synthesiser of the real classes, small enough for unit tests: random weights, exported as a training would."""

from pathlib import Path

import numpy as np
import torch

from speechbrain_emo.inference.export import export_tts
from speechbrain_emo.lobes.flow import tiny_flow
from speechbrain_emo.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_emo.lobes.speech_token_lm import SpeechTokenLM
from speechbrain_emo.lobes.speech_tokenizer import SpeechTokenizer
from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
from speechbrain_emo.lobes.vocoder import HiFT

LABELS = ("ang", "hap", "neu", "sad", "sur")
TEXTS = [
    "I thought we lost. Then she scored!",
    "the visitor moved my wooden chair",
    "Nobody knew it, you see?",
]


def architecture(vocab_size):
    """Of a Qwen2 that computes in milliseconds."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }


def build_tts(
    folder,
    parts=("speech_tokenizer", "speaker_encoder", "flow", "vocoder"),
    seed=0,
    intensity="discrete",
    **settings,
):
    """An exported model with random weights; returns its folder."""
    folder = Path(folder)
    torch.manual_seed(seed)
    text = train_tiny_tokenizer(TEXTS, 300)
    levels = [3, 3, 3]
    made = {
        "speech_tokenizer": SpeechTokenizer(5, 16, 2, 24, 1, 1, levels),
        "speaker_encoder": SpeakerEncoder([16, 16, 16, 16, 48], 8, 12),
        "flow": tiny_flow(vocab_size=27, speaker_size=12),
        "vocoder": HiFT(num_mels=8, channels=16, f0_channels=8),
    }
    for name in parts:
        made[name].save(folder / "parts" / name)
    lm = SpeechTokenLM(architecture(len(text)), len(LABELS), 27, film_init_std=0.3, intensity=intensity)
    return export_tts(
        folder / "run" / "model",
        lm,
        text,
        {name: str(folder / "parts" / name) for name in parts},
        {"labels": list(LABELS), "sampling": {"min_ratio": 1.0, "max_ratio": 1.6}, **settings},
        {"experiment": "tiny", "license": "none"},
    )


def recording(seconds=1.0, rate=16000, seed=0):
    """A voice-like signal."""
    time = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    return (0.1 * tone * (0.6 + 0.4 * np.sin(9 * time)) + 0.002 * rng.standard_normal(len(time))).astype(
        np.float32
    )
