"""A speech-token language model of the real class with random weights, and batches for it."""

import numpy as np
import torch

from speechbrain_emo.lobes.speech_token_lm import SpeechTokenLM, TokenBatch

TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    model = SpeechTokenLM(TINY, num_emotions=5, num_speech_tokens=27, film_init_std=0.1, **options).eval()
    return model


def batch(rows, seed=0, interleave=None):
    """Rows of (text length, speech length), padded with other rows' junk."""
    rng = np.random.default_rng(seed)
    num_text, num_speech = (max(column) for column in zip(*rows))
    size, words = len(rows), 2

    def draw(high, width):
        return torch.from_numpy(rng.integers(0, high, (size, width)))

    text_words = draw(words, num_text)
    speech_words = draw(words, num_speech)
    for row, (text, speech) in enumerate(rows):
        text_words[row, text:] = -1
        speech_words[row, speech:] = -1
    return TokenBatch(
        text=draw(40, num_text),
        text_lengths=torch.tensor([r[0] for r in rows]),
        emotions=draw(5, num_text),
        intensities=draw(3, num_text),
        speech=draw(27, num_speech),
        speech_lengths=torch.tensor([r[1] for r in rows]),
        interleave=torch.zeros(size, dtype=torch.bool) if interleave is None else torch.tensor(interleave),
        text_words=text_words,
        speech_words=speech_words,
        word_labels=draw(5, words),
    )


def one(whole, row):
    """A row of a batch by itself, without padding."""
    text, speech = int(whole.text_lengths[row]), int(whole.speech_lengths[row])
    cut = {"text": text, "emotions": text, "intensities": text, "text_words": text}
    cut.update(speech=speech, speech_words=speech)
    values = {}
    for name, value in vars(whole).items():
        if torch.is_tensor(value):
            value = value[row : row + 1]
            values[name] = value[:, : cut[name]] if name in cut else value
    return TokenBatch(**values)
