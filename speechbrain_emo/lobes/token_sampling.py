"""Repetition-aware sampling of speech tokens (RAS, VALL-E 2, Chen et al. 2024, https://arxiv.org/abs/2406.05370,
section 3.1, with the defaults of CosyVoice 2: top-p 0.8, top-k 25, window 10, tau 0.1).

A token is drawn from the nucleus; if it stands in the last ``window`` tokens ``window * tau`` times or more, it is
drawn anew from the whole distribution. Here both uniform numbers of a step are drawn each time, from a generator of the
utterance's own, and turned into tokens by the inverse of the cumulative distribution: what an utterance gets depends on
nothing else. A token that may not be drawn has probability zero before the nucleus is made (the published code draws
again until another comes).
"""

from dataclasses import dataclass

import torch

PUBLISHED = {"top_p": 0.8, "top_k": 25, "window": 10, "tau": 0.1}


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn and how many there may be.

    Arguments
    ---------
    top_p : float
        The nucleus is complete once its probability reaches this, in (0, 1].
    top_k : int
        Most tokens of the nucleus.
    window : int
        Tokens looked back at.
    tau : float
        Share of the window from which a token counts as repeated; a value above 1 turns this off.
    temperature : float
        Divides the logits; 0 takes the most probable token (and ignores repetition).
    min_ratio, max_ratio : float
        Fewest and most speech tokens for each text token, prompts apart (published: 2 and 20).
    max_tokens : int
        Most speech tokens, whatever the text.

    Raises
    ------
    ValueError
        If a number is out of range.

    Example
    -------
    >>> SamplingSettings().bounds(10)
    (20, 200)
    """

    top_p: float = 0.8
    top_k: int = 25
    window: int = 10
    tau: float = 0.1
    temperature: float = 1.0
    min_ratio: float = 2.0
    max_ratio: float = 20.0
    max_tokens: int = 3000

    def __post_init__(self):
        fine = 0 < self.top_p <= 1 and self.top_k >= 1 and self.window >= 0 and self.tau >= 0
        fine = (
            fine and self.temperature >= 0 and 0 <= self.min_ratio <= self.max_ratio and self.max_tokens >= 1
        )
        if not fine:
            raise ValueError(
                f"{self}: top_p lies in (0, 1], top_k and max_tokens from 1, 0 <= min_ratio <= max_ratio, all others "
                "from 0"
            )

    def bounds(self, num_text):
        """Fewest and most speech tokens for a number of text tokens."""
        most = max(1, min(int(num_text * self.max_ratio), self.max_tokens))
        return min(int(num_text * self.min_ratio), most), most


def draw_token(logits, history, generator, settings, forbidden=()):
    """Draw the next token of one utterance.

    Arguments
    ---------
    logits : torch.Tensor
        (V,), on any device.
    history : sequence of int
        Tokens drawn so far.
    generator : torch.Generator
        On the CPU; moves on by two numbers.
    settings : SamplingSettings
        How.
    forbidden : sequence of int
        Tokens that cannot be drawn.

    Returns
    -------
    int

    Example
    -------
    >>> g = torch.Generator().manual_seed(0)
    >>> draw_token(torch.tensor([0.0, 9.0, 0.0]), [], g, SamplingSettings())
    1
    >>> draw_token(torch.tensor([0.0, 9.0, 0.0]), [], g, SamplingSettings(), forbidden=[1]) in (0, 2)
    True
    """
    uniform = torch.rand(2, generator=generator, dtype=torch.float64)
    logits = logits.detach().to("cpu", torch.float64).clone()
    if len(forbidden):
        logits[list(forbidden)] = -torch.inf
    if settings.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / settings.temperature).softmax(0)
    token = _from_nucleus(probabilities, uniform[0], settings)
    recent = list(history[-settings.window :]) if settings.window else []
    if recent and recent.count(token) >= settings.window * settings.tau:
        token = _inverse(probabilities, uniform[1])
    return token


def _from_nucleus(probabilities, uniform, settings):
    values, tokens = probabilities.topk(min(settings.top_k, len(probabilities)))
    # A token belongs to the nucleus while those before it have not reached top_p.
    before = values.cumsum(0) - values
    kept = before < settings.top_p
    return int(tokens[_inverse(values[kept], uniform)])


def _inverse(weights, uniform):
    """Index at which the cumulative weight passes ``uniform`` of their sum; one of zero weight never."""
    cumulative = weights.cumsum(0)
    index = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    return int(index.clamp(max=int((weights > 0).nonzero()[-1])))
