"""EQ-former: all layers of a frozen Whisper, pooled in time, into a fixed number of emotion embeddings.

Axes: N audios, T pooled encoder frames, L encoder layers, D feature size, Q queries, H Q-Former size, d LLM size.
Source: JELLY, arXiv 2501.04904, section 2.2. The time-and-layer-wise Transformer (TLTR) is that of Whisper-AT (Gong et
al. 2023, arXiv 2307.03183, section 3), the Q-Former that of BLIP-2 (Li et al. 2023, arXiv 2301.12597), of which
transformers' own class is used. Beyond the paper: audio need not have a fixed length, padding in time is masked.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from speechbrain_emo.lobes.feature_statistics import FeatureStatistics
from speechbrain_emo.lobes.information_bottleneck import frame_mask
from speechbrain_emo.lobes.vib_front_end import FrontEndOutput

EMOTION = "emotion"


class ResidualAttentionBlock(nn.Module):
    """Pre-norm self-attention and perceptron, each with a residual connection, as in Whisper's encoder.

    Arguments
    ---------
    size : int
        Feature size D.
    num_heads : int
        Attention heads; must divide ``size``.

    Example
    -------
    >>> ResidualAttentionBlock(8, 2)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, size, num_heads):
        super().__init__()
        if size % num_heads:
            raise ValueError(
                f"EQ-former: {num_heads} attention heads do not divide the feature size {size}: change time_heads or "
                "layer_heads"
            )
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        # A bias of the keys adds the same to all scores of a query, which the softmax takes out.
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.perceptron_norm = nn.LayerNorm(size)
        self.perceptron = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x, mask=None):
        """x (B, S, D) and a mask of valid positions, bool (B, S) -> (B, S, D)."""
        y = self.attention_norm(x)
        heads = [f(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for f in self._projections()]
        keys = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(*heads, attn_mask=keys)
        x = x + self.output(y.transpose(1, 2).flatten(-2))
        return x + self.perceptron(self.perceptron_norm(x))

    def _projections(self):
        return self.query, self.key, self.value


class TLTR(nn.Module):
    """Attention over time within each layer, then over the layers at each time, then the mean over the layers.

    Whisper-AT, section 3: one block over time serves all layers, one block over layers all times.

    Arguments
    ---------
    size : int
        Feature size D.
    time_heads, layer_heads : int
        Attention heads (1 and 8 in the paper).

    Example
    -------
    >>> TLTR(8, 1, 2)(torch.randn(2, 5, 3, 8), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, size, time_heads=1, layer_heads=8):
        super().__init__()
        self.time = ResidualAttentionBlock(size, time_heads)
        self.layer = ResidualAttentionBlock(size, layer_heads)

    def forward(self, features, mask):
        """features (N, T, L, D), mask of valid frames bool (N, T) -> (N, T, D)."""
        n, t, count, _ = features.shape
        x = features.transpose(1, 2).flatten(0, 1)  # (N L, T, D)
        x = self.time(x, mask.repeat_interleave(count, 0))
        x = x.unflatten(0, (n, count)).transpose(1, 2).flatten(0, 1)  # (N T, L, D)
        return self.layer(x).unflatten(0, (n, t)).mean(2)


class EQFormer(nn.Module):
    """Front end with one kind of slot, ``emotion``, of as many positions as there are queries.

    arXiv 2501.04904, section 2.2: TLTR, layer norm, a Q-Former of two layers with learned queries that attend to the
    frames, and a linear layer. The encoder gives its block outputs, pooled in time (``SpeechEncoder``: ``layers``
    1 and above, ``pool: 40``); 20 s at 50 Hz are 25 frames then.

    Arguments
    ---------
    num_layers : int
        Encoder layers L of the features.
    input_size : int
        Feature size D.
    llm_size : int
        Embedding size of the language model.
    num_queries : int
        Q, the positions of the slot.
    qformer_size, qformer_layers, qformer_heads, qformer_feed_forward : int
        Of the Q-Former; BERT-base's width in the paper.
    time_heads, layer_heads : int
        Of the TLTR.
    dropout : float
        In the Q-Former.
    tltr : bool
        False for the ablation: the plain mean over layers goes on.
    q_former : bool
        False for the ablation: the frames themselves are projected, one position a pooled frame.
    output_scale : float
        Initial root mean square of an entry of the slot, see ``SlotAdapter``.
    standardize : bool
        Whether features are standardised with statistics of the training set, see ``FeatureStatistics``;
        :meth:`fit_statistics` measures them. Beyond the paper: for few recordings.

    Raises
    ------
    ValueError
        If a size does not fit.

    Example
    -------
    >>> front_end = EQFormer(3, 16, 8, num_queries=4, qformer_size=12, qformer_heads=2, qformer_feed_forward=24).eval()
    >>> output = front_end(torch.randn(2, 5, 3, 16), torch.tensor([5, 2]))
    >>> output.slots["emotion"].shape, output.slot_lengths["emotion"].tolist()
    (torch.Size([2, 4, 8]), [4, 4])
    """

    slot_kinds = (EMOTION,)

    def __init__(
        self,
        num_layers,
        input_size,
        llm_size,
        num_queries=25,
        qformer_size=768,
        qformer_layers=2,
        qformer_heads=12,
        qformer_feed_forward=3072,
        time_heads=1,
        layer_heads=8,
        dropout=0.1,
        tltr=True,
        q_former=True,
        output_scale=0.02,
        standardize=False,
    ):
        super().__init__()
        if num_queries < 1 or qformer_size % qformer_heads:
            raise ValueError(
                f"EQFormer: num_queries is {num_queries} (allowed: 1 and above), qformer_heads {qformer_heads} must "
                f"divide qformer_size {qformer_size}"
            )
        self.num_layers, self.input_size, self.llm_size = num_layers, input_size, llm_size
        self.statistics = FeatureStatistics(num_layers, input_size) if standardize else None
        self.tltr = TLTR(input_size, time_heads, layer_heads) if tltr else None
        self.norm = nn.LayerNorm(input_size)
        self.queries = self.q_former = None
        out_size = input_size
        if q_former:
            config = Blip2QFormerConfig(
                hidden_size=qformer_size,
                num_hidden_layers=qformer_layers,
                num_attention_heads=qformer_heads,
                intermediate_size=qformer_feed_forward,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                cross_attention_frequency=1,
                encoder_hidden_size=input_size,
            )
            # An embedding table is a module, as what a phase trains has to be.
            self.queries = nn.Embedding(num_queries, qformer_size)
            nn.init.normal_(self.queries.weight, std=0.02)
            self.q_former = Blip2QFormerModel(config)
            out_size = qformer_size
        self.projection = nn.Linear(out_size, llm_size)
        # What comes in went through a layer norm: unit variance.
        nn.init.normal_(self.projection.weight, std=output_scale / math.sqrt(out_size))
        nn.init.zeros_(self.projection.bias)

    def num_positions(self, kind, num_frames):
        """Slot positions that a number of (pooled) encoder frames gives.

        Arguments
        ---------
        kind : str
            ``emotion``.
        num_frames : int
            Encoder frames.

        Returns
        -------
        int
            The number of queries; without a Q-Former the number of frames.

        Raises
        ------
        KeyError
            If the front end has no such slot.
        """
        if kind != EMOTION:
            raise KeyError(f"EQFormer: no slot kind {kind!r}; it has {list(self.slot_kinds)}")
        return int(num_frames) if self.queries is None else self.queries.num_embeddings

    def trainable_groups(self):
        """Modules that a phase can train, by name.

        Returns
        -------
        dict of str to list of nn.Module
            ``front_end.tltr`` (empty without one) and ``front_end.q_former``: norm, queries, Q-Former, projection.

        Example
        -------
        >>> sorted(EQFormer(2, 8, 4, qformer_size=8, qformer_heads=2, qformer_feed_forward=8).trainable_groups())
        ['front_end.q_former', 'front_end.tltr']
        """
        rest = [self.norm, self.projection]
        if self.q_former is not None:
            rest += [self.q_former, self.queries]
        return {"front_end.tltr": [] if self.tltr is None else [self.tltr], "front_end.q_former": rest}

    def fit_statistics(self, utterances):
        """Measure what ``standardize`` needs; without it, nothing happens and nothing is read.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            Training features of one utterance each, float, shape (T, L, D).
        """
        if self.statistics is not None:
            self.statistics.fit(utterances)

    def frames(self, features, num_frames):
        """What the queries attend to.

        Arguments
        ---------
        features : torch.Tensor
            Encoder layers, float, shape (N, T, L, D). Padding may hold any finite value.
        num_frames : torch.Tensor
            Valid frames, int64, shape (N,), each at least 1.

        Returns
        -------
        tuple of torch.Tensor
            Float (N, T, D), 0 at padding, and the mask of valid frames, bool (N, T).
        """
        mask = frame_mask(num_frames, features.shape[1])
        x = features.to(self.norm.weight.dtype)
        if self.statistics is not None:
            x = self.statistics.frames(x)
        x = x.masked_fill(~mask[..., None, None], 0.0)
        x = x.mean(2) if self.tltr is None else self.tltr(x, mask)
        return self.norm(x).masked_fill(~mask[..., None], 0.0), mask

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
            Slot kinds to fill; there is one.

        Returns
        -------
        FrontEndOutput
            Slots (N, Q, d) and their lengths.

        Raises
        ------
        ValueError
            If an audio has no frame, or shapes disagree.
        """
        if features.dim() != 4 or features.shape[2:] != (self.num_layers, self.input_size):
            raise ValueError(
                f"EQFormer: features of shape {tuple(features.shape)} given, but (N, T, {self.num_layers}, "
                f"{self.input_size}) expected: the layers and the size of the encoder"
            )
        lengths = num_frames.tolist()
        if len(lengths) != len(features) or any(not 1 <= n <= features.shape[1] for n in lengths):
            raise ValueError(
                f"EQFormer: num_frames is {lengths} for {len(features)} audios of at most {features.shape[1]} frames; "
                "every audio needs between 1 and T valid frames"
            )
        output = FrontEndOutput(slots={}, slot_lengths={})
        if kinds is not None and EMOTION not in kinds:
            return output
        num_frames = num_frames.to(features.device)
        x, mask = self.frames(features, num_frames)
        if self.q_former is None:
            slots = self.projection(x).masked_fill(~mask[..., None], 0.0)
            output.slot_lengths[EMOTION] = num_frames
        else:
            queries = self.queries.weight[None].expand(len(x), -1, -1)
            attended = self.q_former(
                query_embeds=queries, encoder_hidden_states=x, encoder_attention_mask=mask.long()
            ).last_hidden_state
            slots = self.projection(attended)
            output.slot_lengths[EMOTION] = torch.full_like(num_frames, slots.shape[1])
        output.slots[EMOTION] = slots
        return output
