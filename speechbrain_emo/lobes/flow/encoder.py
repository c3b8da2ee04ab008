"""Conformer encoder of speech tokens that looks a few tokens ahead and doubles the frame rate.

Layers, names and shapes are those of CosyVoice2 (Du et al. 2024, https://arxiv.org/abs/2412.10117, section 2.3).
Axes: B batch, T tokens, D feature size, H heads.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.flow.caches import chunk_mask, frame_mask


def relative_sinusoids(distances, size):
    """Sinusoids of signed distances (Dai et al. 2019, https://arxiv.org/abs/1901.02860, appendix B).

    Arguments
    ---------
    distances : torch.Tensor
        Query position less key position, shape (N,).
    size : int
        Feature size, even; sines and cosines alternate.

    Returns
    -------
    torch.Tensor
        float32 (N, size).

    Example
    -------
    >>> relative_sinusoids(torch.tensor([0]), 4)
    tensor([[0., 1., 0., 1.]])
    """
    rate = torch.exp(
        torch.arange(0, size, 2, dtype=torch.float32, device=distances.device) * -(math.log(10000.0) / size)
    )
    angle = distances.to(torch.float32)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class RelativeAttention(nn.Module):
    """Multi-head self-attention with relative positions (Transformer-XL, eq. of section 3.3).

    Arguments
    ---------
    size : int
        D, divisible by ``num_heads``.
    num_heads : int
    dropout : float
        Of the attention weights.

    Example
    -------
    >>> layer = RelativeAttention(8, 2)
    >>> layer(torch.randn(1, 3, 8), None, torch.arange(3)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, size, num_heads, dropout=0.0):
        super().__init__()
        if size % num_heads:
            raise ValueError(f"size is {size}, which num_heads = {num_heads} does not divide")
        self.num_heads, self.dropout = num_heads, dropout
        self.linear_q = nn.Linear(size, size)
        self.linear_k = nn.Linear(size, size)
        self.linear_v = nn.Linear(size, size)
        self.linear_out = nn.Linear(size, size)
        self.linear_pos = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(num_heads, size // num_heads))
        self.pos_bias_v = nn.Parameter(torch.empty(num_heads, size // num_heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x, mask, positions, position_dropout=0.0, cache=None):
        """Attend.

        Arguments
        ---------
        x : torch.Tensor
            float (B, T, D).
        mask : torch.Tensor, optional
            bool (B, 1 or T, T): True where a query sees a key. None: everything.
        positions : torch.Tensor
            int64 (T,): absolute positions of x, consecutive.
        position_dropout : float
            Of the position features.
        cache : ChunkCache, optional
            Holds keys and values of what came before; all of it is seen.

        Returns
        -------
        torch.Tensor
            float (B, T, D).
        """
        q, k, v = (self._heads(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        key_positions = positions
        if cache is not None:
            buffer = cache.buffer(self)
            k, v = buffer.extend(k, v)
            key_positions = buffer.positions.to(positions.device)
        distance = positions[:, None] - key_positions[None, :]
        farthest, nearest = int(positions[-1] - key_positions[0]), int(positions[0] - key_positions[-1])
        table = torch.arange(farthest, nearest - 1, -1, device=x.device)
        features = F.dropout(
            relative_sinusoids(table, x.shape[-1]).to(x.dtype), position_dropout, self.training
        )
        p = self._heads(self.linear_pos(features)[None])
        by_distance = (q + self.pos_bias_v[:, None]) @ p.transpose(-2, -1)
        index = (farthest - distance).expand(*by_distance.shape[:2], -1, -1)
        bias = by_distance.gather(-1, index) / math.sqrt(q.shape[-1])
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None], -torch.inf)
        out = F.scaled_dot_product_attention(
            q + self.pos_bias_u[:, None],
            k,
            v,
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.linear_out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a swish between them.

    Arguments
    ---------
    size, hidden_size : int
    dropout : float

    Example
    -------
    >>> FeedForward(4, 8)(torch.randn(1, 2, 4)).shape
    torch.Size([1, 2, 4])
    """

    def __init__(self, size, hidden_size, dropout=0.0):
        super().__init__()
        self.w_1 = nn.Linear(size, hidden_size)
        self.w_2 = nn.Linear(hidden_size, size)
        self.dropout = dropout

    def forward(self, x):
        """float (B, T, D) to the same shape."""
        return self.w_2(F.dropout(F.silu(self.w_1(x)), self.dropout, self.training))


class ConformerLayer(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside a residual.

    CosyVoice2's conformer has neither the convolution module nor the second feed-forward of Gulati et al. 2020.

    Arguments
    ---------
    size, num_heads, hidden_size : int
    dropout, attention_dropout : float

    Example
    -------
    >>> ConformerLayer(8, 2, 16)(torch.randn(1, 3, 8), None, torch.arange(3)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, size, num_heads, hidden_size, dropout=0.0, attention_dropout=0.0):
        super().__init__()
        self.self_attn = RelativeAttention(size, num_heads, attention_dropout)
        self.feed_forward = FeedForward(size, hidden_size, dropout)
        self.norm_ff = nn.LayerNorm(size, eps=1e-12)
        self.norm_mha = nn.LayerNorm(size, eps=1e-12)
        self.dropout = dropout

    def forward(self, x, mask, positions, position_dropout=0.0, cache=None):
        """As :meth:`RelativeAttention.forward`."""
        attended = self.self_attn(self.norm_mha(x), mask, positions, position_dropout, cache)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.norm_ff(x)), self.dropout, self.training)


class ScaledInput(nn.Module):
    """Linear layer and norm, scaled by the square root of the size.

    Arguments
    ---------
    input_size, size : int
    dropout, position_dropout : float

    Example
    -------
    >>> ScaledInput(4, 8)(torch.randn(1, 3, 4)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, input_size, size, dropout=0.0, position_dropout=0.0):
        super().__init__()
        self.out = nn.Sequential(nn.Linear(input_size, size), nn.LayerNorm(size), nn.Dropout(dropout))
        self.position_dropout = position_dropout

    def forward(self, x):
        """float (B, T, input_size) to (B, T, size)."""
        x = self.out(x)
        return F.dropout(x * math.sqrt(x.shape[-1]), self.position_dropout, self.training)


class LookAhead(nn.Module):
    """A convolution over the next tokens, then a causal one, beside a residual.

    Arguments
    ---------
    size : int
    look_ahead : int
        Tokens ahead.

    Example
    -------
    >>> LookAhead(4, 3)(torch.randn(1, 5, 4)).shape
    torch.Size([1, 5, 4])
    """

    def __init__(self, size, look_ahead):
        super().__init__()
        self.look_ahead = look_ahead
        self.conv1 = nn.Conv1d(size, size, look_ahead + 1)
        self.conv2 = nn.Conv1d(size, size, 3)

    def forward(self, x, given=False, cache=None):
        """Mix in what comes next.

        Arguments
        ---------
        x : torch.Tensor
            float (B, T, D), zero at padding.
        given : bool
            The last ``look_ahead`` tokens of x are only looked at. False: zeros stand behind x.
        cache : ChunkCache, optional

        Returns
        -------
        torch.Tensor
            float (B, T, D), or (B, T - look_ahead, D) where they are given.
        """
        ahead = x.transpose(1, 2)
        if not given:
            ahead = F.pad(ahead, (0, self.look_ahead))
        ahead = F.leaky_relu(self.conv1(ahead))
        context = self.conv2.kernel_size[0] - 1
        ahead = F.pad(ahead, (context, 0)) if cache is None else cache.left(self.conv2, ahead, context)
        ahead = self.conv2(ahead).transpose(1, 2)
        return ahead + x[:, : ahead.shape[1]]


class CausalUpsampling(nn.Module):
    """Repeats each frame and smooths with a convolution over what came before.

    Arguments
    ---------
    size : int
    factor : int

    Example
    -------
    >>> CausalUpsampling(4, 2)(torch.randn(1, 3, 4)).shape
    torch.Size([1, 6, 4])
    """

    def __init__(self, size, factor):
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv1d(size, size, 2 * factor + 1)

    def forward(self, x, cache=None):
        """float (B, T, D) to (B, factor * T, D)."""
        x = x.transpose(1, 2).repeat_interleave(self.factor, dim=2)
        context = self.conv.kernel_size[0] - 1
        x = F.pad(x, (context, 0)) if cache is None else cache.left(self.conv, x, context)
        return self.conv(x).transpose(1, 2)


class UpsamplingConformer(nn.Module):
    """Speech tokens to frames at twice their rate.

    Look-ahead convolution, conformer layers at token rate, up-sampling, conformer layers at frame rate. Differs
    from the published code in padded batches alone: padding is set to zero before the look-ahead convolution, so
    that the last tokens of a short row are what they would be alone.

    Arguments
    ---------
    input_size : int
        Size of the token embeddings.
    size : int
        D.
    num_heads, hidden_size, num_layers, num_up_layers : int
        Of the conformer; layers before and behind the up-sampling.
    look_ahead : int
        Tokens that the first layer sees ahead.
    chunk_size : int
        Tokens of a chunk in streaming.
    upsampling : int
        Frames a token.
    dropout, position_dropout, attention_dropout : float

    Example
    -------
    >>> encoder = UpsamplingConformer(input_size=8, size=8, num_heads=2, hidden_size=16, num_layers=1, num_up_layers=1)
    >>> frames, num_frames = encoder(torch.randn(2, 5, 8), torch.tensor([5, 3]))
    >>> frames.shape, num_frames.tolist()
    (torch.Size([2, 10, 8]), [10, 6])
    """

    def __init__(
        self,
        input_size=512,
        size=512,
        num_heads=8,
        hidden_size=2048,
        num_layers=6,
        num_up_layers=4,
        look_ahead=3,
        chunk_size=25,
        upsampling=2,
        dropout=0.1,
        position_dropout=0.1,
        attention_dropout=0.1,
    ):
        super().__init__()
        self.size, self.chunk_size, self.look_ahead, self.upsampling = (
            size,
            chunk_size,
            look_ahead,
            upsampling,
        )
        layer = (size, num_heads, hidden_size, dropout, attention_dropout)
        self.embed = ScaledInput(input_size, size, dropout, position_dropout)
        self.after_norm = nn.LayerNorm(size)
        self.pre_lookahead_layer = LookAhead(size, look_ahead)
        self.encoders = nn.ModuleList([ConformerLayer(*layer) for _ in range(num_layers)])
        self.up_layer = CausalUpsampling(size, upsampling)
        self.up_embed = ScaledInput(size, size, dropout, position_dropout)
        self.up_encoders = nn.ModuleList([ConformerLayer(*layer) for _ in range(num_up_layers)])

    def forward(self, x, num_tokens, look_ahead_given=False, streaming=False, left_chunks=None, keep_first=0):
        """Encode whole sequences.

        Arguments
        ---------
        x : torch.Tensor
            Embedded tokens, float (B, T, input_size). Padding may hold any value.
        num_tokens : torch.Tensor
            int64 (B,), at least 1; at least ``look_ahead + 1`` where ``look_ahead_given``.
        look_ahead_given : bool
            The last ``look_ahead`` tokens of each row are context for those before and give no frames.
        streaming : bool
            A token sees its own chunk and those before it; otherwise everything.
        left_chunks : int, optional
            Chunks that are seen behind the own one in streaming; None: all.
        keep_first : int
            Tokens at the start that are always seen.

        Returns
        -------
        tuple of torch.Tensor
            Frames, float (B, upsampling * T', D), and their numbers, int64 (B,).

        Raises
        ------
        ValueError
            If a row has too few tokens.
        """
        fewest = 1 + (self.look_ahead if look_ahead_given else 0)
        if int(num_tokens.min()) < fewest:
            raise ValueError(
                f"num_tokens is {num_tokens.tolist()}; each must be {fewest} or more"
                + (f", of which the last {self.look_ahead} are looked at only" if look_ahead_given else "")
            )
        x = self.embed(x) * frame_mask(num_tokens, x.shape[1])[..., None]
        x = self.pre_lookahead_layer(x, look_ahead_given)
        num_frames = num_tokens - self.look_ahead if look_ahead_given else num_tokens
        x = self._layers(self.encoders, x, num_frames, streaming, 1, left_chunks, keep_first)
        x = self.up_embed(self.up_layer(x))
        num_frames = num_frames * self.upsampling
        x = self._layers(self.up_encoders, x, num_frames, streaming, self.upsampling, left_chunks, keep_first)
        return self.after_norm(x), num_frames

    def _layers(self, layers, x, num_frames, streaming, rate, left_chunks, keep_first):
        size = x.shape[1]
        mask = frame_mask(num_frames, size)[:, None]
        if streaming:
            mask = mask & chunk_mask(size, self.chunk_size * rate, left_chunks, keep_first * rate, x.device)
        elif bool(mask.all()):
            mask = None
        positions = torch.arange(size, device=x.device)
        for layer in layers:
            x = layer(x, mask, positions, self.embed.position_dropout)
        return x

    def encode_chunk(self, x, start, caches, num_missing=0):
        """Encode one chunk of one sequence behind those that the caches hold.

        Arguments
        ---------
        x : torch.Tensor
            Embedded tokens, float (B, chunk + look_ahead - num_missing, input_size); no padding.
        start : int
            Position of the first token.
        caches : tuple of ChunkCache
            Of the layers at token rate and at frame rate.
        num_missing : int
            Tokens of the look-ahead that do not exist, because the sequence ends.

        Returns
        -------
        torch.Tensor
            Frames, float (B, upsampling * chunk, D).
        """
        token_cache, frame_cache = caches
        x = F.pad(self.embed(x), (0, 0, 0, num_missing))
        x = self.pre_lookahead_layer(x, given=True, cache=token_cache)
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        for layer in self.encoders:
            x = layer(x, None, positions, cache=token_cache)
        x = self.up_embed(self.up_layer(x, frame_cache))
        first = start * self.upsampling
        positions = torch.arange(first, first + x.shape[1], device=x.device)
        for layer in self.up_encoders:
            x = layer(x, None, positions, cache=frame_cache)
        token_cache.trim()
        frame_cache.trim()
        return self.after_norm(x)
