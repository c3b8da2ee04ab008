"""Finite scalar quantisation: every dimension is rounded to one of a few levels, and all levels together are a token.

Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", https://arxiv.org/abs/2309.15505, section 3; in
CosyVoice 2's tokenizer (https://arxiv.org/abs/2412.10117, section 2.2) 8 dimensions of 3 levels: 3^8 = 6561 tokens,
token = sum_j (level_j) * 3^j with level_j in {0, 1, 2} and the first dimension the least significant.
Axis letters: B batch, T frames, Q dimensions.
"""

import math

import torch
from torch import nn

# Odd numbers of levels are squeezed a little below the outermost level, as in the published tokenizer (0.999);
# even ones stretched as in the paper, since their half-level shift must lie inside the bound.
EPSILON = 1e-3


class FSQ(nn.Module):
    """Rounds numbers to levels, with the gradient of the bounded numbers.

    Arguments
    ---------
    levels : sequence of int
        Levels of each dimension, at least 2.

    Raises
    ------
    ValueError
        If there is no dimension, or one has fewer than 2 levels.

    Example
    -------
    >>> fsq = FSQ([3] * 8)
    >>> fsq.vocab_size
    6561
    >>> fsq(torch.zeros(1, 1, 8)).tokens.item()  # the middle level of every dimension
    3280
    """

    def __init__(self, levels=(3,) * 8):
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(
                f"levels are {self.levels}: give at least one dimension, each of 2 levels or more"
            )
        self.vocab_size = math.prod(self.levels)
        sizes = torch.tensor(self.levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer(
            "basis", torch.cat([torch.ones(1).long(), sizes[:-1].cumprod(0)]), persistent=False
        )

    def bound(self, x):
        """Numbers squeezed so that rounding gives whole levels around 0.

        Odd numbers of levels: -K..K with K = (levels - 1) / 2. Even ones are shifted by a half, as in the paper.
        """
        even = self.sizes % 2 == 0
        half = (self.sizes - 1).to(x.dtype) * torch.where(even, 1 + EPSILON, 1 - EPSILON).to(x.dtype) / 2
        offset = even.to(x.dtype) / 2
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def forward(self, x):
        """Quantise.

        Arguments
        ---------
        x : torch.Tensor
            float (..., Q).

        Returns
        -------
        FSQOutput
        """
        bounded = self.bound(x)
        rounded = bounded.round()
        values = bounded + (rounded - bounded).detach()
        return FSQOutput(values / self._scale(x), self.to_tokens(rounded))

    def _scale(self, x):
        return (self.sizes // 2).to(x.dtype)

    def to_tokens(self, rounded):
        """Tokens int64 (...) of whole levels around 0, (..., Q)."""
        return ((rounded.long() + self.sizes // 2) * self.basis).sum(-1)

    def from_tokens(self, tokens):
        """Quantised values (..., Q) in [-1, 1] of tokens.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (...), 0 to ``vocab_size`` - 1.

        Returns
        -------
        torch.Tensor
            float32 (..., Q), equal to ``FSQOutput.values`` that gave the tokens.

        Raises
        ------
        ValueError
            If a token is out of range.
        """
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size):
            raise ValueError(
                f"tokens go from {int(tokens.min())} to {int(tokens.max())}; allowed are 0 to {self.vocab_size - 1}"
            )
        places = tokens[..., None] // self.basis % self.sizes
        return (places - self.sizes // 2).float() / self._scale(places.float())

    def level_table(self):
        """What each token is made of: a one at the level of every dimension.

        Tokens that differ in one dimension share all else; a table of V unrelated rows would have to learn that token
        by token.

        Returns
        -------
        torch.Tensor
            float32 (V, sum of the levels).

        Example
        -------
        >>> FSQ([2, 3]).level_table()[3].tolist()  # level 1 of 2, level 1 of 3
        [0.0, 1.0, 0.0, 1.0, 0.0]
        """
        tokens = torch.arange(self.vocab_size, device=self.basis.device)
        places = tokens[:, None] // self.basis % self.sizes
        columns = [nn.functional.one_hot(places[:, q], size) for q, size in enumerate(self.levels)]
        return torch.cat(columns, dim=1).float()


class FSQOutput:
    """What :class:`FSQ` gives.

    Arguments
    ---------
    values : torch.Tensor
        float (..., Q), in [-1, 1], with the gradient of the bounded input.
    tokens : torch.Tensor
        int64 (...).
    """

    def __init__(self, values, tokens):
        self.values, self.tokens = values, tokens


@torch.no_grad()
def spread_levels(weight, levels):
    """Write rows that tokens of shared levels share, in place of random ones of the same deviation.

    Arguments
    ---------
    weight : torch.Tensor
        float (V, D), in place; a slice of a larger table where more rows stand behind the tokens.
    levels : sequence of int or None
        Of the quantiser; None where a tokenizer does not tell them.

    Raises
    ------
    ValueError
        If they are not known, or make another number of tokens.

    Example
    -------
    >>> rows = torch.randn(9, 4)
    >>> spread_levels(rows, [3, 3])
    >>> torch.allclose(rows[1] - rows[0], rows[4] - rows[3], atol=1e-5)  # the same step of the first dimension
    True
    """
    if levels is None:
        raise ValueError("start_from_levels: this speech tokenizer does not tell the levels of its quantiser")
    table = FSQ(levels).level_table().to(weight.device)
    if len(weight) != len(table):
        raise ValueError(f"levels {list(levels)} make {len(table)} tokens, not {len(weight)}")
    made = table @ torch.randn(table.shape[1], weight.shape[1], device=weight.device)
    made = made - made.mean(0)
    weight.copy_(made * (weight.std() / made.std()))
