"""A complete tiny system with random weights, for tests: every part is of the real classes."""

import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import HubertConfig, HubertModel

from speechbrain_emo.brains.speech_language_model import SpeechLanguageModel
from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
from speechbrain_emo.lobes.speech_llm import SpeechLLM
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.lobes.vib_front_end import VIBFrontEnd
from speechbrain_emo.prompts import AnswerFormat, InstructionTask, Packer

TEXTS = [
    "transcript: the sky is blue\npitch: low\nspeed: fast\nvolume: normal\nemphasis: none\nemotion: sad",
    "transcript: bring it back\npitch: high\nspeed: slow\nvolume: normal\nemphasis: back\nemotion: happy",
    "How does the speaker sound? Write the transcript, then the descriptors, then the emotion: angry, "
    "neutral.",
]
HUBERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
}
FIELDS = {
    "transcript": "text",
    "pitch": ["low", "normal", "high", "unvoiced"],
    "speed": ["slow", "normal", "fast", "unvoiced"],
    "volume": ["low", "normal", "high", "unvoiced"],
    "emphasis": "words",
    "emotion": ["neutral", "happy", "sad", "angry"],
}


def build_tiny_hubert(folder, seed=1, **changes):
    """Save a tiny HuBERT with random weights as ``save_pretrained`` writes it; returns the folder as str."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        HubertModel(HubertConfig(**{**HUBERT, **changes})).save_pretrained(str(folder))
    return str(folder)


def tiny_tasks(chain=True):
    """(AnswerFormat, tasks): ``label``, ``asr`` and, with ``chain``, ``explain``."""
    answer_format = AnswerFormat(FIELDS, {"emotion": 2.0})
    tasks = {
        "label": InstructionTask(
            "label",
            ["{content} {descriptor} How does the speaker sound?", "({content} {descriptor} The emotion?)"],
            ["emotion"],
            answer_format,
        ),
        "asr": InstructionTask("asr", ["{content} Write the transcript."], ["transcript"], answer_format),
    }
    if chain:
        tasks["explain"] = InstructionTask(
            "explain",
            [
                "{content} {descriptor} Write the transcript, then the descriptors, then the emotion.",
                "{descriptor} How does the speaker sound? {content}",
            ],
            list(FIELDS),
            answer_format,
            system="You listen.",
        )
    return answer_format, tasks


@dataclass
class TinySystem:
    """The parts of a tiny system; ``factories`` are as ``!name:`` of HyperPyYAML makes them."""

    folder: Path
    model: SpeechLanguageModel
    factories: dict
    answer_format: AnswerFormat
    tasks: dict
    packer: Packer
    explain: dict = field(default_factory=dict)


def build_tiny_system(folder, lora=True, chain=True, seed=1, bottleneck=True, stack=5):
    """Build backbones in a folder and a model over them; the trainable weights are random everywhere.

    Arguments
    ---------
    folder : str or pathlib.Path
        Gets ``backbones/encoder`` and ``backbones/llm``.
    lora : bool
        Whether the language model has adapters, with weights that act.
    chain : bool
        Whether there is the task ``explain``.
    seed : int
        Of all weights. The caller's random state is left as it is.
    bottleneck : bool
        As in VIBFrontEnd.
    stack : int
        Frames of a slot position.

    Returns
    -------
    TinySystem
    """
    folder = Path(folder)
    encoder_folder = build_tiny_hubert(folder / "backbones" / "encoder", seed)
    llm_folder = build_tiny_llm(folder / "backbones" / "llm", TEXTS, 330, 32, 2, 2, 1, 64, seed=seed)
    answer_format, tasks = tiny_tasks(chain)
    factories = {
        "encoder": functools.partial(SpeechEncoder, source=encoder_folder, layers="all"),
        "llm": functools.partial(
            SpeechLLM, source=llm_folder, lora={"r": 2, "lora_alpha": 4} if lora else None
        ),
        "front_end": functools.partial(
            VIBFrontEnd,
            branches=["content", "descriptor"],
            hidden_size=16,
            latent_size=8,
            stack=stack,
            adapter_size=16,
            bottleneck=bottleneck,
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, llm = factories["encoder"](), factories["llm"]()
        front_end = factories["front_end"](
            num_layers=encoder.num_layers, input_size=encoder.hidden_size, llm_size=llm.hidden_size
        )
        with torch.no_grad():
            for p in front_end.parameters():
                p.add_(0.3 * torch.randn_like(p))
            for module in llm.trainable_groups()["llm.lora"]:
                for p in module.parameters():
                    p.add_(0.2 * torch.randn_like(p))
    model = SpeechLanguageModel(llm, front_end, encoder)
    explain = {
        "label_task": "label",
        "chain_task": "explain" if chain else None,
        "transcript_task": "asr",
        "max_new_tokens": 24,
        "max_duration": 20.0,
    }
    packer = Packer(llm.tokenizer, front_end.slot_kinds)
    return TinySystem(folder, model, factories, answer_format, tasks, packer, explain)


def voiced_tone(seconds=1.0, f0=150.0, sample_rate=16000, seed=0, level=0.2):
    """A voice-like sound, float32 (samples,): harmonics of ``f0`` with a syllabic envelope and some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    tone = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 8))
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * time)
    return (level * envelope * tone / 2 + 0.001 * rng.standard_normal(len(time))).astype(np.float32)


def write_tone(path, seconds=1.0, f0=150.0, sample_rate=16000, seed=0, channels=1, subtype="PCM_16"):
    """Write :func:`voiced_tone` to a file; returns the path."""
    samples = voiced_tone(seconds, f0, sample_rate, seed)
    if channels > 1:
        samples = np.stack([samples] * channels, 1)
    soundfile.write(str(path), samples, sample_rate, subtype=subtype)
    return path


def write_good_files(folder):
    """name -> path of recordings that must give a result."""
    files = {
        "plain": write_tone(folder / "plain.wav", 1.0, 150),
        "rate_96k": write_tone(folder / "rate_96k.wav", 0.6, 200, sample_rate=96000),
        "rate_8k": write_tone(folder / "rate_8k.wav", 0.6, 120, sample_rate=8000),
        "bits_24": write_tone(folder / "bits_24.wav", 0.7, 170, subtype="PCM_24"),
        "channels_8": write_tone(folder / "channels_8.wav", 0.5, 130, channels=8),
        "flac": write_tone(folder / "x.flac", 0.9, 140),
        "silence": folder / "silence.wav",
        "short": write_tone(folder / "short.wav", 0.03, 150),
        "spaces": write_tone(folder / "Ä b (1).wav", 1.4, 160),
    }
    soundfile.write(str(files["silence"]), np.zeros(16000), 16000)
    return files


def write_bad_files(folder):
    """name -> (path, what the error must say) of files that cannot be used."""
    names = ("empty", "header", "truncated", "text", "nan", "tiny", "hour", "no_samples", "noise")
    files = {name: folder / f"{name}.wav" for name in names}
    files["empty"].write_bytes(b"")
    whole = write_tone(folder / "whole.wav", 1.0).read_bytes()
    files["header"].write_bytes(whole[:30])
    files["truncated"].write_bytes(whole[:20000])
    files["text"].write_text("this is not audio\n" * 10)
    soundfile.write(str(files["nan"]), np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    write_tone(files["tiny"], 0.01)
    hour = 3600 * 8000
    with open(files["hour"], "wb") as stream:  # Sparse: only the header is written.
        fmt = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
        stream.write(b"RIFF" + struct.pack("<I", 36 + hour) + b"WAVEfmt " + struct.pack("<I", 16) + fmt)
        stream.write(b"data" + struct.pack("<I", hour))
        stream.truncate(44 + hour)
    soundfile.write(str(files["no_samples"]), np.zeros(0), 16000)
    files["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    said = {
        "empty": "empty",
        "header": "truncated",
        "truncated": "truncated",
        "text": "not an audio file",
        "nan": "NaN",
        "tiny": "too short",
        "hour": "longer than",
        "no_samples": "no samples",
        "noise": "not an audio file",
    }
    bad = {name: (path, said[name]) for name, path in files.items()}
    bad["missing"] = (folder / "missing.wav", "no such file")
    bad["folder"] = (folder, "folder")
    return bad
