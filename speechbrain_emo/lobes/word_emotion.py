"""Emotion of words from encoder frames: Emo-FiLM's annotator (arXiv 2509.20378, annotation part).

Per word: self-attention (8 heads, dropout 0.3) and a feed-forward layer of 3072, each with residual and norm, on the
word's own frames; the mean over them; 5 classes and sigmoid values of valence, arousal and dominance. The paper reads
the 768 features of emotion2vec-base; here the size is an argument, and where an encoder gives several layers their
softmax-weighted sum is learned. Where the norms stand is not said in the paper: after each residual sum, as in the
original Transformer.

Axes: N audios, T encoder frames, L encoder layers, D feature size, W words of all audios, M frames of the longest
word, K emotions.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

__all__ = [
    "DIMENSIONS",
    "WordEmotionLoss",
    "WordEmotionModel",
    "WordEmotionOutput",
    "WordSpans",
    "intensity_levels",
    "word_emotion_loss",
    "word_frames",
]

DIMENSIONS = ("valence", "arousal", "dominance")


@dataclass
class WordSpans:
    """Words of a batch as stretches of frames.

    Arguments
    ---------
    audio : torch.Tensor
        Which audio each word is in, int64, shape (W,).
    start, stop : torch.Tensor
        Frames of each word, ``stop`` exclusive, int64, shape (W,).
    """

    audio: torch.Tensor
    start: torch.Tensor
    stop: torch.Tensor

    def __len__(self):
        return len(self.audio)

    def to(self, device):
        """The spans on a device."""
        return WordSpans(self.audio.to(device), self.start.to(device), self.stop.to(device))


@dataclass
class WordEmotionOutput:
    """What the annotator says of each word.

    Arguments
    ---------
    logits : torch.Tensor
        Float, shape (W, K): unnormalised log-probabilities of the emotions.
    dimensions : torch.Tensor
        Float in (0, 1), shape (W, 3): valence, arousal, dominance.
    """

    logits: torch.Tensor
    dimensions: torch.Tensor


def word_frames(start, end, num_frames, frame_rate, centre=0.0):
    """Frames of a word: those whose middle lies in it, and at least one.

    A word so short that it holds no frame's middle gets the one frame nearest to its own middle; times outside the
    audio are moved to its ends.

    Arguments
    ---------
    start, end : float
        Of the word, in seconds.
    num_frames : int
        Frames of the audio, at least 1.
    frame_rate : float
        Frames a second, in Hz.
    centre : float
        Middle of frame 0, in seconds: half of the encoder's receptive field (0.0125 for HuBERT).

    Returns
    -------
    tuple of int
        (first frame, frame behind the last one), inside the audio.

    Raises
    ------
    ValueError
        If the audio has no frame or the word ends before it starts.

    Example
    -------
    >>> word_frames(0.1, 0.2, num_frames=50, frame_rate=50.0, centre=0.0125)
    (5, 10)
    >>> word_frames(0.1, 0.1, num_frames=50, frame_rate=50.0, centre=0.0125)
    (4, 5)
    >>> word_frames(0.99, 2.0, num_frames=40, frame_rate=50.0)
    (39, 40)
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: an audio without frames has no words")
    if not start <= end:
        raise ValueError(f"a word from {start} s to {end} s ends before it starts: correct the alignment")
    # The small constant keeps a middle that rounding puts just beside a border on the border.
    first = max(math.ceil((start - centre) * frame_rate - 1e-6), 0)
    last = min(math.ceil((end - centre) * frame_rate - 1e-6), num_frames)
    if first < last:
        return first, last
    nearest = round(((start + end) / 2 - centre) * frame_rate)
    nearest = min(max(nearest, 0), num_frames - 1)
    return nearest, nearest + 1


def intensity_levels(arousal, thresholds=(2.5, 3.5)):
    """Intensity of words from their arousal: how many thresholds 4 a + 1 is above.

    Emo-FiLM: arousal a in [0, 1] on a scale of 1 to 5 is high above 3.5, medium above 2.5, else low.

    Arguments
    ---------
    arousal : torch.Tensor
        In [0, 1], any shape.
    thresholds : sequence of float
        Rising, on the scale of 1 to 5; one fewer than there are intensities.

    Returns
    -------
    torch.Tensor
        int64, the same shape: 0 is the weakest.

    Example
    -------
    >>> intensity_levels(torch.tensor([0.1, 0.375, 0.376, 0.625, 0.9])).tolist()
    [0, 0, 1, 1, 2]
    """
    scaled = 4 * arousal + 1
    level = torch.zeros(scaled.shape, dtype=torch.int64, device=scaled.device)
    for threshold in thresholds:
        level = level + (scaled > threshold)
    return level


class _WordBlock(nn.Module):
    """Self-attention and feed-forward over the frames of each word, residual and norm after each."""

    def __init__(self, size, num_heads, ffn_size, dropout):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, num_heads, dropout=dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(size)
        self.ffn = nn.Sequential(
            nn.Linear(size, ffn_size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_size, size)
        )
        self.ffn_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, padding):
        attended, _ = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)
        x = self.attention_norm(x + self.dropout(attended))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


def _part_sizes(lengths):
    """Sizes of runs of rising lengths in which the longest is at most 1.4 times the shortest, or 4 frames longer.

    >>> _part_sizes([1, 2, 4, 10, 12, 40])
    [3, 2, 1]
    """
    sizes, first = [], None
    for length in lengths:
        if first is None or length > max(1.4 * first, first + 4):
            sizes.append(0)
            first = length
        sizes[-1] += 1
    return sizes


class WordEmotionModel(nn.Module):
    """Emotion and dimensions of every word from the frames that it covers.

    Section on annotation of Emo-FiLM (arXiv 2509.20378); see the head of this module for what is open there.

    Arguments
    ---------
    num_labels : int
        Emotions K.
    input_size : int
        Feature size D of the encoder; 768 in the paper.
    num_encoder_layers : int
        Layers L that the encoder gives; above 1 their softmax-weighted sum is learned.
    num_heads : int
        Of the self-attention; must divide the size.
    ffn_size : int
        Hidden size of the feed-forward layer.
    dropout : float
        In attention, feed-forward and on both residual branches.
    num_blocks : int
        Blocks of attention and feed-forward; 1 in the paper.
    hidden_size : int, optional
        A linear layer to this size before the blocks; None, as in the paper: no such layer.

    Raises
    ------
    ValueError
        If a size is not positive or the heads do not divide the size.

    Example
    -------
    >>> model = WordEmotionModel(num_labels=5, input_size=16, num_heads=2, ffn_size=32).eval()
    >>> words = WordSpans(torch.tensor([0, 0, 1]), torch.tensor([0, 4, 2]), torch.tensor([4, 9, 3]))
    >>> out = model(torch.randn(2, 10, 1, 16), torch.tensor([10, 6]), words)
    >>> out.logits.shape, out.dimensions.shape
    (torch.Size([3, 5]), torch.Size([3, 3]))
    """

    def __init__(
        self,
        num_labels=5,
        input_size=768,
        num_encoder_layers=1,
        num_heads=8,
        ffn_size=3072,
        dropout=0.3,
        num_blocks=1,
        hidden_size=None,
    ):
        super().__init__()
        size = input_size if hidden_size is None else hidden_size
        sizes = {
            "num_labels": num_labels,
            "input_size": input_size,
            "num_encoder_layers": num_encoder_layers,
            "num_heads": num_heads,
            "ffn_size": ffn_size,
            "num_blocks": num_blocks,
            "hidden_size": size,
        }
        wrong = {name: value for name, value in sizes.items() if value < 1}
        if wrong:
            raise ValueError(f"WordEmotionModel: {wrong}; all sizes are 1 and above")
        if size % num_heads:
            raise ValueError(
                f"WordEmotionModel: num_heads is {num_heads}, which does not divide the size {size}: choose a divisor, "
                "or a hidden_size that it divides"
            )
        self.num_labels, self.input_size = num_labels, input_size
        self.num_encoder_layers = num_encoder_layers
        self.layer_logits = nn.Parameter(torch.zeros(num_encoder_layers)) if num_encoder_layers > 1 else None
        self.projection = nn.Identity() if hidden_size is None else nn.Linear(input_size, hidden_size)
        self.blocks = nn.ModuleList(_WordBlock(size, num_heads, ffn_size, dropout) for _ in range(num_blocks))
        self.label_head = nn.Linear(size, num_labels)
        self.dimension_head = nn.Linear(size, len(DIMENSIONS))

    def mixing_weights(self):
        """Softmax weights of the encoder's layers, one branch: {"words": float32 (L,)}."""
        if self.layer_logits is None:
            return {"words": torch.ones(1)}
        return {"words": self.layer_logits.detach().float().softmax(0).cpu()}

    def _pool(self, mixed, audio, start, length, last):
        """Mean (W, D) over the frames of each word after the blocks; only frames of words are read."""
        steps = torch.arange(int(length.max()), device=mixed.device)
        padding = steps[None, :] >= length[:, None]
        frames = torch.minimum(start[:, None] + steps[None, :], last[:, None])
        x = self.projection(mixed[audio[:, None], frames])
        for block in self.blocks:
            x = block(x, padding)
        return x.masked_fill(padding[:, :, None], 0.0).sum(1) / length[:, None].to(x.dtype)

    def forward(self, features, num_frames, words):
        """Emotion of each word.

        A word's result depends on its own frames only: not on the batch, padding or the other words. A span that is
        empty or leaves the audio is moved inside and holds at least the one frame where it starts.

        Arguments
        ---------
        features : torch.Tensor
            Float, shape (N, T, L, D). Padding may hold any value.
        num_frames : torch.Tensor
            Valid frames of each audio, int64, shape (N,), at least 1.
        words : WordSpans
            W words in any order.

        Returns
        -------
        WordEmotionOutput

        Raises
        ------
        ValueError
            If the features have other sizes than the model.
        """
        if features.dim() != 4 or features.shape[2:] != (self.num_encoder_layers, self.input_size):
            raise ValueError(
                f"WordEmotionModel: features have shape {tuple(features.shape)}; needed is (N, T, "
                f"{self.num_encoder_layers}, {self.input_size})"
            )
        if not len(words):
            empty = features.new_zeros((0,), dtype=self.label_head.weight.dtype)
            return WordEmotionOutput(
                empty.view(0, 1).expand(0, self.num_labels), empty.view(0, 1).expand(0, 3)
            )
        last = num_frames[words.audio] - 1
        start = torch.minimum(words.start.clamp_min(0), last)
        stop = torch.maximum(torch.minimum(words.stop, last + 1), start + 1)
        length = stop - start
        mixed = features.to(self.label_head.weight.dtype)
        if self.layer_logits is None:
            mixed = mixed[:, :, 0]
        else:
            mixed = torch.einsum("ntld,l->ntd", mixed, self.layer_logits.softmax(0))
        # Words of like length together: most of a batch padded to its longest word would be padding.
        order = length.argsort(stable=True)
        pooled = [
            self._pool(mixed, words.audio[part], start[part], length[part], last[part])
            for part in order.split(_part_sizes(length[order].tolist()))
        ]
        pooled = torch.cat(pooled)[order.argsort(stable=True)]
        return WordEmotionOutput(self.label_head(pooled), self.dimension_head(pooled).sigmoid())


@dataclass
class WordEmotionLoss:
    """Sums of the training objective over the words of a batch.

    Arguments
    ---------
    label_sum : torch.Tensor
        Sum of the cross-entropies, scalar.
    num_labels : torch.Tensor
        Words with a label, scalar.
    dimension_sum : torch.Tensor
        Sum of the squared errors of the known dimensions, scalar.
    num_dimensions : torch.Tensor
        Known values, scalar.
    """

    label_sum: torch.Tensor
    num_labels: torch.Tensor
    dimension_sum: torch.Tensor
    num_dimensions: torch.Tensor


def word_emotion_loss(output, labels, dimensions, label_smoothing=0.0):
    """Cross-entropy of the labels and squared error of the dimensions, where they are known.

    Which loss the dimensions get is open in the paper.

    Arguments
    ---------
    output : WordEmotionOutput
        Of W words.
    labels : torch.Tensor
        int64, shape (W,); -100 where there is none.
    dimensions : torch.Tensor
        Float in [0, 1], shape (W, 3); NaN where a value is unknown.
    label_smoothing : float
        As in ``torch.nn.functional.cross_entropy``.

    Returns
    -------
    WordEmotionLoss

    Example
    -------
    >>> output = WordEmotionOutput(torch.zeros(2, 4), torch.full((2, 3), 0.5))
    >>> loss = word_emotion_loss(output, torch.tensor([1, -100]), torch.tensor([[0.5, 1.0, float("nan")]] * 2))
    >>> round(float(loss.label_sum), 4), int(loss.num_labels), float(loss.dimension_sum), int(loss.num_dimensions)
    (1.3863, 1, 0.5, 4)
    """
    label_sum = F.cross_entropy(
        output.logits.float(), labels, ignore_index=-100, reduction="sum", label_smoothing=label_smoothing
    )
    known = ~dimensions.isnan()
    # Filled before the difference: a NaN would reach the gradient even where it is masked.
    error = (output.dimensions.float() - dimensions.nan_to_num(0.0)).square() * known
    return WordEmotionLoss(label_sum, (labels != -100).sum(), error.sum(), known.sum())
