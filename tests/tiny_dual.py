"""A complete tiny dialogue model with random weights, for tests: every part is of the real classes."""

import functools
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechbrain_emo.brains.speech_language_model import SpeechLanguageModel
from speechbrain_emo.inference.export import export_model
from speechbrain_emo.lobes.dual_adapters import DualAdapters
from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
from speechbrain_emo.lobes.speech_llm import SpeechLLM
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.prompts import AnswerFormat, ChoiceTask, DialogueTask, InstructionTask
from tests.tiny import TinySystem

FIELDS = {
    "transcript": "text",
    "gender": ["female", "male"],
    "pitch": ["low", "normal", "high"],
    "emotion": ["neutral", "happy", "sad", "angry"],
}
CAPTIONS = ["({gender} voice, {pitch} pitch, {emotion})", "({emotion})"]
TEXTS = [
    "Hello there, how are you? I am so sorry to hear it. Which gender? male, female. Write the words.",
    "The pitch is low. The voice is male, they sound sad. What now? (male voice, low pitch, sad)",
]
CHAT = {
    "dialogue_task": "dialogue",
    "transcript_task": "asr",
    "choice_tasks": ["gender", "pitch", "emotion"],
    "max_new_tokens": 12,
    "max_duration": 20.0,
}


def dual_tasks():
    """(AnswerFormat, tasks) with the two slots of the dual adapters."""
    fmt, both = AnswerFormat(FIELDS), "{paralinguistic}{linguistic}"
    tasks = {
        "asr": InstructionTask("asr", [both + " Write the words."], ["transcript"], fmt, captions=CAPTIONS),
        "dialogue": DialogueTask("dialogue", [both], fmt, systems=["You are kind."], captions=CAPTIONS),
    }
    for name in ("gender", "pitch", "emotion"):
        prompts = [both + " Which " + name + "? {choices}"]
        tasks[name] = ChoiceTask(name, prompts, name, f"The {name} is {{value}}.", fmt, captions=CAPTIONS)
    return fmt, tasks


def build_tiny_dual(folder, max_positions=1024, seed=1):
    """Build tiny backbones in a folder and a dialogue model over them, and export it to ``folder/model``.

    Arguments
    ---------
    folder : str or pathlib.Path
        Gets ``backbones/encoder``, ``backbones/llm`` and ``model``.
    max_positions : int
        Context of the language model.
    seed : int
        Of all weights.

    Returns
    -------
    TinySystem
    """
    folder = Path(folder)
    encoder_folder = folder / "backbones" / "encoder"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 40}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        WhisperModel(WhisperConfig(**sizes, **ids, max_source_positions=50, num_mel_bins=80)).save_pretrained(
            encoder_folder
        )
        WhisperFeatureExtractor(feature_size=80).save_pretrained(encoder_folder)
    # Large random weights: answers that differ between prompts.
    llm_folder = build_tiny_llm(
        folder / "backbones" / "llm",
        TEXTS,
        330,
        32,
        2,
        2,
        1,
        64,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        initializer_range=0.3,
        seed=seed,
    )
    factories = {
        "encoder": functools.partial(SpeechEncoder, source=str(encoder_folder), layers=[-1]),
        "llm": functools.partial(SpeechLLM, source=llm_folder),
        "front_end": functools.partial(
            DualAdapters, num_positions=4, num_heads=2, hidden_size=24, output_scale=0.3
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, llm = factories["encoder"](), factories["llm"]()
        front_end = factories["front_end"](
            num_layers=encoder.num_layers, input_size=encoder.hidden_size, llm_size=llm.hidden_size
        )
    model = SpeechLanguageModel(llm, front_end, encoder)
    answer_format, tasks = dual_tasks()
    export_model(folder / "model", model, factories, answer_format, tasks, chat=CHAT)
    return TinySystem(folder, model, factories, answer_format, tasks, None)
