"""E-FiLM: emotion and intensity of every text token modulate its embedding.

"Emo-FiLM" (arXiv 2509.20378): e = Emb(emotion) + Emb(intensity), [gamma, beta] = Linear(d, 2d)(e),
h~ = gamma * h + beta on the language model's text embeddings. Axis letters: B batch, S text tokens, D embedding.

Open in the paper and settled here: the start. A projection of exactly zero gives the emotion encoder no gradient at
the first step, so the weights start small; and since text embeddings of published models are far below 1 (about 0.02),
beta starts in proportion to their size, else it would drown them.
"""

import torch
from torch import nn

MODES = ("film", "addition")
INTENSITIES = ("discrete", "continuous")


class EFiLM(nn.Module):
    """Feature-wise linear modulation of text embeddings by emotion and intensity.

    Source: "Emo-FiLM", arXiv 2509.20378, E-FiLM module. In it emotion and intensity are added before a linear layer,
    so that intensity moves gamma and beta by the same amount for each emotion; what an intensity means for an emotion
    is left to the layers behind. ``addition`` is its ablation h~ = h + Linear(d, d)(e).

    Arguments
    ---------
    size : int
        D.
    num_emotions : int
        Labels.
    num_intensities : int
        Levels; used by ``discrete`` only.
    intensity : str
        ``discrete``: an embedding of a level; ``continuous``: a linear map of a number in [0, 1].
    mode : str
        ``film`` or ``addition``.
    init_std : float
        Deviation of the projection's first weights.
    embedding_scale : float
        Root mean square of the embeddings that are modulated.

    Raises
    ------
    ValueError
        If a mode is unknown or a number is not positive.

    Example
    -------
    >>> film = EFiLM(8, num_emotions=5)
    >>> h = torch.randn(2, 3, 8)
    >>> film(h, torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        size,
        num_emotions,
        num_intensities=3,
        intensity="discrete",
        mode="film",
        init_std=1e-3,
        embedding_scale=1.0,
    ):
        super().__init__()
        if mode not in MODES or intensity not in INTENSITIES:
            raise ValueError(
                f"mode is {mode!r}, intensity is {intensity!r}; allowed modes are {MODES}, intensities {INTENSITIES}"
            )
        if min(size, num_emotions, num_intensities) < 1 or init_std <= 0 or embedding_scale <= 0:
            raise ValueError(
                f"size {size}, num_emotions {num_emotions}, num_intensities {num_intensities}, init_std {init_std} and "
                f"embedding_scale {embedding_scale} must all be positive"
            )
        self.size, self.mode, self.kind = int(size), mode, intensity
        self.num_emotions, self.num_intensities = int(num_emotions), int(num_intensities)
        self.emotion = nn.Embedding(num_emotions, size)
        self.intensity = (
            nn.Embedding(num_intensities, size) if intensity == "discrete" else nn.Linear(1, size)
        )
        self.projection = nn.Linear(size, 2 * size if mode == "film" else size)
        self.reset(init_std, embedding_scale)

    @torch.no_grad()
    def reset(self, init_std, embedding_scale):
        """Draw the first weights: gamma near 1, beta (or the added vector) small against the embeddings."""
        nn.init.normal_(self.projection.weight, std=init_std)
        nn.init.zeros_(self.projection.bias)
        self.projection.weight[-self.size :] *= embedding_scale

    def levels(self, intensities):
        """Intensities as this module takes them, from levels.

        Arguments
        ---------
        intensities : torch.Tensor
            int64, level of each token, 0 the weakest.

        Returns
        -------
        torch.Tensor
            The same for ``discrete``; for ``continuous`` float32 in [0, 1], equally spaced.
        """
        if self.kind == "discrete":
            return intensities
        return intensities.float() / max(self.num_intensities - 1, 1)

    def encode(self, emotions, intensities):
        """The sum e of both embeddings, float (..., D)."""
        if self.kind == "discrete":
            if intensities.is_floating_point():
                raise ValueError(
                    "intensities are numbers, but this model knows levels only (intensity: discrete); give levels"
                )
            return self.emotion(emotions) + self.intensity(intensities)
        if not intensities.is_floating_point():
            intensities = self.levels(intensities)
        return self.emotion(emotions) + self.intensity(intensities.to(self.emotion.weight.dtype)[..., None])

    def parameters_of(self, emotions, intensities):
        """gamma and beta of every token.

        Arguments
        ---------
        emotions : torch.Tensor
            int64 (...).
        intensities : torch.Tensor
            int64 levels, or float in [0, 1] where the model is ``continuous``.

        Returns
        -------
        tuple of torch.Tensor
            gamma and beta, (..., D). For ``addition`` gamma is 1.
        """
        projected = self.projection(self.encode(emotions, intensities))
        if self.mode == "addition":
            return torch.ones_like(projected), projected
        gamma, beta = projected.chunk(2, -1)
        return 1.0 + gamma, beta

    def forward(self, embeddings, emotions, intensities):
        """Modulated embeddings.

        Arguments
        ---------
        embeddings : torch.Tensor
            (B, S, D).
        emotions, intensities : torch.Tensor
            (B, S), as of :meth:`parameters_of`.

        Returns
        -------
        torch.Tensor
            (B, S, D).
        """
        gamma, beta = self.parameters_of(emotions, intensities)
        return (gamma * embeddings + beta).to(embeddings.dtype)
