"""Two adapters between a frozen speech encoder and a frozen language model: how it is said, and what is said.

Axes: N audios, T encoder frames, L encoder layers, D feature size, S slot positions.
Source: the dual-information speech language model, arXiv 2508.08095, section 2 (no code is public).
"""

import math

import torch
from torch import nn

from speechbrain_emo.lobes.information_bottleneck import FrameStacker, SlotAdapter, frame_mask
from speechbrain_emo.lobes.vib_front_end import FrontEndOutput

PARALINGUISTIC, LINGUISTIC = "paralinguistic", "linguistic"
ADAPTERS = ("dual", "single")


def pooling_weights(num_frames, max_frames, num_positions):
    """Weights of adaptive average pooling over the valid frames of each audio.

    Position i averages the frames from floor(i t / n) up to ceil((i + 1) t / n), as ``torch.nn.AdaptiveAvgPool1d``
    does on t frames; with fewer frames than positions, neighbouring positions share a frame.

    Arguments
    ---------
    num_frames : torch.Tensor
        Valid frames t of each audio, int64, shape (N,), each at least 1.
    max_frames : int
        T.
    num_positions : int
        Positions n.

    Returns
    -------
    torch.Tensor
        float32, shape (N, n, T); each row sums to 1 and is 0 at padding.

    Example
    -------
    >>> pooling_weights(torch.tensor([4, 1]), 4, 2)
    tensor([[[0.5000, 0.5000, 0.0000, 0.0000],
             [0.0000, 0.0000, 0.5000, 0.5000]],
    <BLANKLINE>
            [[1.0000, 0.0000, 0.0000, 0.0000],
             [1.0000, 0.0000, 0.0000, 0.0000]]])
    """
    index = torch.arange(num_positions, device=num_frames.device)[None, :]
    length = num_frames[:, None]
    first = index * length // num_positions
    last = ((index + 1) * length + num_positions - 1) // num_positions
    frame = torch.arange(max_frames, device=num_frames.device)[None, None, :]
    inside = (frame >= first[..., None]) & (frame < last[..., None])
    return inside.float() / (last - first)[..., None]


class ParalinguisticAdapter(nn.Module):
    """One Transformer layer, adaptive average pooling over valid frames, and a linear layer.

    arXiv 2508.08095, section 2.2. Open there: the feed-forward size (four times the feature size here) and where
    the layer normalises (after each block, torch's default).

    Arguments
    ---------
    input_size : int
        Feature size D.
    llm_size : int
        Embedding size of the language model.
    num_positions : int
        Positions of the slot, whatever the length of the audio.
    num_heads : int
        Attention heads; must divide ``input_size``.
    dropout : float
        In the Transformer layer.
    feed_forward : int, optional
        Inner size of the Transformer layer.
    output_scale : float
        See ``SlotAdapter``.

    Example
    -------
    >>> adapter = ParalinguisticAdapter(16, 8, num_positions=3, num_heads=2).eval()
    >>> adapter(torch.randn(2, 7, 16), torch.tensor([7, 2])).shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        input_size,
        llm_size,
        num_positions=10,
        num_heads=8,
        dropout=0.1,
        feed_forward=None,
        output_scale=0.02,
    ):
        super().__init__()
        if input_size % num_heads:
            raise ValueError(
                f"ParalinguisticAdapter: num_heads is {num_heads}; it must divide the feature size {input_size}"
            )
        if num_positions < 1:
            raise ValueError(
                f"ParalinguisticAdapter: num_positions is {num_positions}; it must be at least 1"
            )
        self.num_positions = num_positions
        self.layer = nn.TransformerEncoderLayer(
            input_size, num_heads, feed_forward or 4 * input_size, dropout, batch_first=True
        )
        self.output = nn.Linear(input_size, llm_size)
        # The layer's output has unit variance; averages have less.
        nn.init.normal_(self.output.weight, std=output_scale / math.sqrt(input_size))
        nn.init.zeros_(self.output.bias)

    def forward(self, features, num_frames):
        """Fill the slot.

        Arguments
        ---------
        features : torch.Tensor
            float, shape (N, T, D), 0 at padding.
        num_frames : torch.Tensor
            int64, shape (N,), each at least 1.

        Returns
        -------
        torch.Tensor
            Pseudo-embeddings, shape (N, num_positions, d_llm).
        """
        mask = frame_mask(num_frames, features.shape[1])
        states = self.layer(features, src_key_padding_mask=~mask)
        # The fused kernel of eval mode may leave anything at padding.
        states = states.masked_fill(~mask[..., None], 0.0)
        weights = pooling_weights(num_frames, features.shape[1], self.num_positions).to(states.dtype)
        return self.output(weights @ states)


class LinguisticAdapter(nn.Module):
    """Stacked frames through a perceptron with one ReLU layer: 50 Hz into 10 Hz.

    arXiv 2508.08095, section 2.2.

    Arguments
    ---------
    input_size : int
        Feature size D.
    llm_size : int
        Embedding size of the language model.
    stack : int
        Frames of a position.
    hidden_size : int
        Size of the ReLU layer.
    output_scale : float
        See ``SlotAdapter``.

    Example
    -------
    >>> slots, lengths = LinguisticAdapter(4, 6, stack=2)(torch.randn(1, 3, 4), torch.tensor([3]))
    >>> slots.shape, lengths.tolist()
    (torch.Size([1, 2, 6]), [2])
    """

    def __init__(self, input_size, llm_size, stack=5, hidden_size=2048, output_scale=0.02):
        super().__init__()
        self.stacker = FrameStacker(stack)
        self.adapter = SlotAdapter(stack * input_size, hidden_size, llm_size, output_scale)

    def forward(self, features, num_frames):
        """Slot (N, S, d_llm), 0 beyond its length, and its lengths int64 (N,)."""
        stacks, lengths = self.stacker(features, num_frames)
        slots = self.adapter(stacks)
        return slots.masked_fill(~frame_mask(lengths, slots.shape[1])[..., None], 0.0), lengths


class DualAdapters(nn.Module):
    """Front end with two kinds of slot, ``paralinguistic`` and ``linguistic``, on one layer of the encoder.

    arXiv 2508.08095, section 2. Parameters are named ``paralinguistic.*`` and ``linguistic.*``; which of them
    trains is the phase's choice.

    Arguments
    ---------
    num_layers : int
        Encoder layers L of the features.
    input_size : int
        Feature size D.
    llm_size : int
        Embedding size of the language model.
    layer : int
        Which of the L layers is read; the paper reads the last hidden state (give the encoder ``layers: [-1]``, so
        that a cache holds no other).
    num_positions, num_heads, dropout, feed_forward :
        See :class:`ParalinguisticAdapter`.
    stack, hidden_size :
        See :class:`LinguisticAdapter`.
    adapters : str
        "dual", or "single" for the ablation: the linguistic adapter serves all tasks and the paralinguistic slot
        has no position.
    output_scale : float
        Initial root mean square of an entry of the slots, see ``SlotAdapter``.

    Raises
    ------
    ValueError
        If a size does not fit or ``adapters`` is unknown.

    Example
    -------
    >>> front_end = DualAdapters(1, 16, 8, num_positions=4, num_heads=2, hidden_size=12).eval()
    >>> output = front_end(torch.randn(2, 11, 1, 16), torch.tensor([11, 3]))
    >>> {kind: (tuple(x.shape), output.slot_lengths[kind].tolist()) for kind, x in output.slots.items()}
    {'paralinguistic': ((2, 4, 8), [4, 4]), 'linguistic': ((2, 3, 8), [3, 1])}
    """

    slot_kinds = (PARALINGUISTIC, LINGUISTIC)

    def __init__(
        self,
        num_layers,
        input_size,
        llm_size,
        layer=-1,
        num_positions=10,
        num_heads=8,
        dropout=0.1,
        feed_forward=None,
        stack=5,
        hidden_size=2048,
        adapters="dual",
        output_scale=0.02,
    ):
        super().__init__()
        if adapters not in ADAPTERS:
            raise ValueError(f"DualAdapters: adapters is {adapters!r}; allowed are {', '.join(ADAPTERS)}")
        if not -num_layers <= layer < num_layers:
            raise ValueError(
                f"DualAdapters: layer is {layer}; the encoder gives {num_layers} (see its `layers`), so allowed"
                f" are {-num_layers} to {num_layers - 1}"
            )
        self.input_size = input_size
        self.llm_size = llm_size
        self.layer = layer
        self.adapters = adapters
        self.paralinguistic = None
        if adapters == "dual":
            self.paralinguistic = ParalinguisticAdapter(
                input_size, llm_size, num_positions, num_heads, dropout, feed_forward, output_scale
            )
        self.linguistic = LinguisticAdapter(input_size, llm_size, stack, hidden_size, output_scale)

    def num_positions(self, kind, num_frames):
        """Slot positions that a number of encoder frames gives.

        Arguments
        ---------
        kind : str
            Slot kind.
        num_frames : int
            Encoder frames.

        Returns
        -------
        int
            A fixed number for ``paralinguistic`` (0 with a single adapter), ceil(num_frames / stack) for
            ``linguistic``.

        Raises
        ------
        KeyError
            If the front end has no such slot.
        """
        if kind == PARALINGUISTIC:
            return 0 if self.paralinguistic is None else self.paralinguistic.num_positions
        if kind == LINGUISTIC:
            return self.linguistic.stacker.num_positions(num_frames)
        raise KeyError(f"DualAdapters: no slot kind {kind!r}; it has {list(self.slot_kinds)}")

    def trainable_groups(self):
        """Modules that a phase can train, by name.

        Returns
        -------
        dict of str to list of nn.Module
            "front_end.linguistic" and, with two adapters, "front_end.paralinguistic".

        Example
        -------
        >>> list(DualAdapters(1, 8, 4).trainable_groups())
        ['front_end.linguistic', 'front_end.paralinguistic']
        """
        groups = {f"front_end.{LINGUISTIC}": [self.linguistic]}
        if self.paralinguistic is not None:
            groups[f"front_end.{PARALINGUISTIC}"] = [self.paralinguistic]
        return groups

    def forward(self, features, num_frames, noise_seeds=None, kinds=None):
        """Turn encoder features into slots.

        Arguments
        ---------
        features : torch.Tensor
            Encoder layers, float, shape (N, T, L, D). Padding may hold any finite value.
        num_frames : torch.Tensor
            Valid frames, int64, shape (N,), each at least 1.
        noise_seeds : Sequence of int, optional
            Not used: nothing is drawn here but the dropout.
        kinds : Sequence of str, optional
            Slot kinds to fill. Default: all.

        Returns
        -------
        FrontEndOutput
            Slots and their lengths.

        Raises
        ------
        ValueError
            If an audio has no frame, or shapes disagree.
        """
        num_audios, max_frames = features.shape[:2]
        if features.dim() != 4 or features.shape[3] != self.input_size:
            raise ValueError(
                f"DualAdapters: features of shape {tuple(features.shape)} given, but (N, T, L,"
                f" {self.input_size}) expected; input_size must be the encoder's hidden_size"
            )
        lengths = num_frames.tolist()
        if len(lengths) != num_audios or any(not 1 <= n <= max_frames for n in lengths):
            raise ValueError(
                f"DualAdapters: num_frames is {lengths} for {num_audios} audios of at most {max_frames} frames;"
                " every audio needs between 1 and T valid frames"
            )
        num_frames = num_frames.to(features.device)
        mask = frame_mask(num_frames, max_frames)
        frames = features[:, :, self.layer].to(self.linguistic.adapter.hidden.weight.dtype)
        frames = frames.masked_fill(~mask[..., None], 0.0)
        output = FrontEndOutput(slots={}, slot_lengths={})
        if kinds is None or PARALINGUISTIC in kinds:
            if self.paralinguistic is None:
                slots = frames.new_zeros(num_audios, 0, self.llm_size)
            else:
                slots = self.paralinguistic(frames, num_frames)
            output.slots[PARALINGUISTIC] = slots
            output.slot_lengths[PARALINGUISTIC] = torch.full_like(num_frames, slots.shape[1])
        if kinds is None or LINGUISTIC in kinds:
            output.slots[LINGUISTIC], output.slot_lengths[LINGUISTIC] = self.linguistic(frames, num_frames)
        return output
