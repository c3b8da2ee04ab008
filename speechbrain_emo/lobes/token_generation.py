"""Speech tokens from a language model: batches with a key-value cache, a stream, and text that arrives in pieces.

What one utterance gets depends on its text, prompt and seed, not on the batch: each has its own generator, padding is
masked and positions count from its own first token; rows that are finished leave the batch. Layouts are those of
``token_layout.py`` (CosyVoice 2, https://arxiv.org/abs/2412.10117, section 2.3).
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from speechbrain_emo.lobes.token_layout import MIX
from speechbrain_emo.lobes.token_sampling import SamplingSettings, draw_token

#: Why an utterance is over. ``eos``: the model said so; ``max_length``: it had as many tokens as its text allows.
FINISH_REASONS = ("eos", "max_length")


@dataclass(frozen=True)
class TokenRequest:
    """What to say.

    Arguments
    ---------
    text : sequence of int
        Text tokens, at least one.
    emotions : sequence of int
        One each a text token.
    intensities : sequence of int or float
        One each a text token.
    prompt_text : sequence of int
        Text tokens of the recording whose voice is cloned.
    prompt_emotions, prompt_intensities : sequence
        One each a token of it.
    prompt_speech : sequence of int
        Its speech tokens.
    seed : int
        Of this utterance's generator.

    Raises
    ------
    ValueError
        If the numbers do not fit.
    """

    text: tuple
    emotions: tuple
    intensities: tuple
    prompt_text: tuple = ()
    prompt_emotions: tuple = ()
    prompt_intensities: tuple = ()
    prompt_speech: tuple = ()
    seed: int = 0

    def __post_init__(self):
        sizes = [len(self.text), len(self.emotions), len(self.intensities)]
        prompts = [len(self.prompt_text), len(self.prompt_emotions), len(self.prompt_intensities)]
        if not self.text or len(set(sizes)) != 1 or len(set(prompts)) != 1:
            raise ValueError(
                f"{sizes} text tokens, emotions and intensities, and {prompts} of the prompt: give at least one text "
                "token, and as many of each"
            )


@dataclass
class Generated:
    """Speech tokens of one utterance.

    Arguments
    ---------
    tokens : list of int
        Below V, without the prompt's.
    finish_reason : str or None
        One of ``FINISH_REASONS``; None while it is being made.
    """

    tokens: list = field(default_factory=list)
    finish_reason: str | None = None


def _text_embeddings(model, tokens, emotions, intensities):
    device = model.llm_embedding.weight.device
    made = torch.tensor(list(intensities), device=device)
    if made.is_floating_point():
        made = made.float()
    return model.embed_text(
        torch.tensor(list(tokens), dtype=torch.int64, device=device),
        torch.tensor(list(emotions), dtype=torch.int64, device=device),
        made if len(tokens) else made.long(),
    )


def prefix_embeddings(model, request):
    """Embeddings (P, D) of sos, prompt text, text, task, prompt speech."""
    device = model.llm_embedding.weight.device
    text = _text_embeddings(
        model,
        [*request.prompt_text, *request.text],
        [*request.prompt_emotions, *request.emotions],
        [*request.prompt_intensities, *request.intensities],
    )
    parts = [model.marker(0), text, model.marker(1)]
    if len(request.prompt_speech):
        parts.append(
            model.speech_embedding(
                torch.tensor(list(request.prompt_speech), dtype=torch.int64, device=device)
            )
        )
    return torch.cat(parts)


@torch.no_grad()
def generation_steps(model, requests, settings=None, results=None):
    """Make the tokens of several utterances, one of each at a time.

    Arguments
    ---------
    model : SpeechTokenLM
        In eval mode.
    requests : sequence of TokenRequest
        At least one.
    settings : SamplingSettings, optional
        How to draw.
    results : list of Generated, optional
        Empty ones, one each a request; they are filled along the way.

    Yields
    ------
    list of tuple
        After every step: (number of the request, its new token).
    """
    settings = settings or SamplingSettings()
    device = model.llm_embedding.weight.device
    results = [Generated() for _ in requests] if results is None else results
    generators = [torch.Generator().manual_seed(int(request.seed)) for request in requests]
    bounds = [settings.bounds(len(request.text)) for request in requests]
    prefixes = [prefix_embeddings(model, request) for request in requests]
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    longest = int(lengths.max())
    # Padded left, so that all rows go on at the same place.
    embeddings = torch.stack([F.pad(prefix, (0, 0, longest - len(prefix), 0)) for prefix in prefixes])
    mask = (torch.arange(longest, device=device) >= (longest - lengths)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()
    rows = list(range(len(requests)))
    while rows:
        states = model.run_body(embeddings, mask, positions, cache)[:, -1]
        logits = model.llm_decoder(states).float()
        new, kept = [], []
        for place, row in enumerate(rows):
            result, (least, most) = results[row], bounds[row]
            forbidden = [model.end_token + 1, model.fill_token]
            if len(result.tokens) < least:
                forbidden.append(model.end_token)
            token = draw_token(logits[place], result.tokens, generators[row], settings, forbidden)
            if token == model.end_token:
                result.finish_reason = "eos"
                continue
            result.tokens.append(token)
            new.append((row, token))
            if len(result.tokens) >= most:
                result.finish_reason = "max_length"
                continue
            kept.append(place)
        yield new
        if not kept:
            return
        if len(kept) < len(rows):
            chosen = torch.tensor(kept, device=device)
            cache.batch_select_indices(chosen)
            mask, positions = mask[chosen], positions[chosen]
            rows = [rows[place] for place in kept]
        last = torch.tensor([results[row].tokens[-1] for row in rows], device=device)
        embeddings = model.speech_embedding(last)[:, None]
        mask = F.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1


def generate(model, requests, settings=None):
    """Tokens of several utterances; see :func:`generation_steps`.

    Returns
    -------
    list of Generated
    """
    results = [Generated() for _ in requests]
    for _ in generation_steps(model, requests, settings, results):
        pass
    return results


def stream(model, request, settings=None):
    """Tokens of one utterance as they are made.

    Yields
    ------
    int

    Returns
    -------
    Generated
        As the value of ``StopIteration``.
    """
    result = Generated()
    for new in generation_steps(model, [request], settings, [result]):
        for _, token in new:
            yield token
    return result


@torch.no_grad()
def stream_from_pieces(model, pieces, settings=None, prompt_speech=(), seed=0, mix=MIX):
    """Tokens while the text is still being written: turns of 5 text and 15 speech tokens, then the rest.

    Needs a model that was trained on both layouts (``interleave`` of the experiment). A turn of speech always has its
    15 tokens; then its text is due, as the published inference enforces.

    Arguments
    ---------
    model : SpeechTokenLM
        In eval mode.
    pieces : iterable of tuple
        (text tokens, emotions, intensities) of each piece, the text of a prompt first.
    settings : SamplingSettings, optional
        How to draw. Its bounds count all text.
    prompt_speech : sequence of int
        Speech tokens of the prompt.
    seed : int
        Of the generator.
    mix : tuple of int
        Text and speech tokens of a turn.

    Yields
    ------
    int

    Returns
    -------
    Generated
        As the value of ``StopIteration``.
    """
    settings = settings or SamplingSettings()
    generator = torch.Generator().manual_seed(int(seed))
    device = model.llm_embedding.weight.device
    cache, result = DynamicCache(), Generated()
    prompt = list(prompt_speech)
    waiting, num_text, unread = [], 0, [model.marker(0)]
    forbidden = [model.end_token, model.end_token + 1, model.fill_token]

    def speech(tokens):
        return model.speech_embedding(torch.tensor(tokens, dtype=torch.int64, device=device))

    def read():
        """Logits after all that is unread."""
        states = model.run_body(torch.cat(unread)[None], cache=cache)[0, -1]
        unread.clear()
        return model.llm_decoder(states).float()

    def speak(token):
        result.tokens.append(token)
        unread.append(speech([token]))

    for tokens, emotions, intensities in pieces:
        if not len(tokens):
            continue
        num_text += len(tokens)
        waiting.extend(_text_embeddings(model, tokens, emotions, intensities).unbind(0))
        while len(waiting) >= mix[0]:
            unread.append(torch.stack(waiting[: mix[0]]))
            del waiting[: mix[0]]
            known, prompt = prompt[: mix[1]], prompt[mix[1] :]
            if known:
                unread.append(speech(known))
            for _ in range(mix[1] - len(known)):
                if len(result.tokens) >= settings.bounds(num_text)[1]:
                    break
                token = draw_token(read(), result.tokens, generator, settings, forbidden)
                speak(token)
                yield token
    if not num_text:
        raise ValueError("no piece holds a text token: there is nothing to say")
    if waiting:
        unread.append(torch.stack(waiting))
    unread.append(model.marker(1))
    if prompt:
        unread.append(speech(prompt))
    least, most = settings.bounds(num_text)
    while len(result.tokens) < most:
        own = forbidden if len(result.tokens) < least else forbidden[1:]
        token = draw_token(read(), result.tokens, generator, settings, own)
        if token == model.end_token:
            result.finish_reason = "eos"
            return result
        speak(token)
        yield token
    result.finish_reason = "max_length"
    return result
