"""Causal conditional U-Net: the velocity network of flow matching.

Layers, names and shapes are those of CosyVoice2 (Du et al. 2024, https://arxiv.org/abs/2412.10117, figure 3), whose
blocks go back to Matcha-TTS (Mehta et al. 2024). The published network has one resolution.
Axes: B batch, T frames, C channels, F mel bins.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.flow.caches import chunk_mask


def time_sinusoids(t, size, scale=1000.0):
    """Sines, then cosines of the scaled flow time.

    Arguments
    ---------
    t : torch.Tensor
        In [0, 1], float (B,).
    size : int
        Even.
    scale : float
        What the time is multiplied by.

    Returns
    -------
    torch.Tensor
        float (B, size).

    Example
    -------
    >>> time_sinusoids(torch.zeros(1), 4)
    tensor([[0., 0., 1., 1.]])
    """
    half = size // 2
    rate = torch.exp(torch.arange(half, device=t.device).float() * -(math.log(10000) / (half - 1)))
    angle = scale * t[:, None] * rate[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(t.dtype)


class CausalConv1d(nn.Conv1d):
    """Convolution over a frame and those before it.

    Example
    -------
    >>> CausalConv1d(2, 4, 3)(torch.randn(1, 2, 5)).shape
    torch.Size([1, 4, 5])
    """

    def forward(self, x, cache=None):
        """float (B, in, T) to (B, out, T); the cache holds the frames before."""
        context = self.kernel_size[0] - 1
        x = F.pad(x, (context, 0)) if cache is None else cache.left(self, x, context)
        return super().forward(x)


class CausalBlock(nn.Module):
    """Causal convolution, layer norm over channels, mish.

    Example
    -------
    >>> CausalBlock(2, 4)(torch.randn(1, 2, 5), None).shape
    torch.Size([1, 4, 5])
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        # The published numbering: a transposition stands between the two.
        self.block = nn.ModuleList(
            [CausalConv1d(in_channels, out_channels, 3), nn.Identity(), nn.LayerNorm(out_channels)]
        )

    def forward(self, x, mask, cache=None):
        """float (B, in, T), mask (B, 1, T) or None, to (B, out, T)."""
        conv, _, norm = self.block
        x = conv(_masked(x, mask), cache)
        return _masked(F.mish(norm(x.transpose(1, 2))).transpose(1, 2), mask)


class CausalResnetBlock(nn.Module):
    """Two causal blocks with the flow time added between them, beside a residual.

    Example
    -------
    >>> CausalResnetBlock(2, 4, 8)(torch.randn(1, 2, 5), None, torch.randn(1, 8)).shape
    torch.Size([1, 4, 5])
    """

    def __init__(self, in_channels, out_channels, time_size):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_size, out_channels))
        self.block1 = CausalBlock(in_channels, out_channels)
        self.block2 = CausalBlock(out_channels, out_channels)
        self.res_conv = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x, mask, time, cache=None):
        """float (B, in, T), time (B, time_size), to (B, out, T)."""
        h = self.block1(x, mask, cache) + self.mlp(time)[..., None]
        return self.block2(h, mask, cache) + self.res_conv(_masked(x, mask))


class SelfAttention(nn.Module):
    """Multi-head self-attention whose projections have no bias.

    Example
    -------
    >>> SelfAttention(8, 2, 4)(torch.randn(1, 3, 8), None).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, channels, num_heads, head_size, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, num_heads * head_size, bias=False)
        self.to_k = nn.Linear(channels, num_heads * head_size, bias=False)
        self.to_v = nn.Linear(channels, num_heads * head_size, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(num_heads * head_size, channels), nn.Dropout(dropout)])

    def forward(self, x, mask, cache=None):
        """float (B, T, C), mask bool (B, 1, 1 or T, T) or None, to (B, T, C)."""
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        if cache is not None:
            k, v = cache.buffer(self).extend(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        linear, dropout = self.to_out
        return dropout(linear(out))


class GELUProjection(nn.Module):
    """Linear layer and GELU.

    Example
    -------
    >>> GELUProjection(2, 4)(torch.randn(1, 2)).shape
    torch.Size([1, 4])
    """

    def __init__(self, in_size, out_size):
        super().__init__()
        self.proj = nn.Linear(in_size, out_size)

    def forward(self, x):
        """float (..., in) to (..., out)."""
        return F.gelu(self.proj(x))


class FourfoldFeedForward(nn.Module):
    """Feed-forward with four times the channels inside.

    Example
    -------
    >>> FourfoldFeedForward(4)(torch.randn(1, 3, 4)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(self, channels, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            GELUProjection(channels, 4 * channels), nn.Dropout(dropout), nn.Linear(4 * channels, channels)
        )

    def forward(self, x):
        """float (B, T, C) to the same shape."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward, each behind a norm and beside a residual.

    Example
    -------
    >>> TransformerBlock(8, 2, 4)(torch.randn(1, 3, 8), None).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, channels, num_heads, head_size, dropout=0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, num_heads, head_size, dropout)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FourfoldFeedForward(channels, dropout)

    def forward(self, x, mask, cache=None):
        """float (B, T, C), mask as in :class:`SelfAttention`, to (B, T, C)."""
        x = x + self.attn1(self.norm1(x), mask, cache)
        return x + self.ff(self.norm3(x))


class TimeEmbedding(nn.Module):
    """Two linear layers with a SiLU between them.

    Example
    -------
    >>> TimeEmbedding(4, 8)(torch.zeros(1, 4)).shape
    torch.Size([1, 8])
    """

    def __init__(self, in_size, size):
        super().__init__()
        self.linear_1 = nn.Linear(in_size, size)
        self.linear_2 = nn.Linear(size, size)

    def forward(self, x):
        """float (B, in) to (B, size)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class CausalUNet(nn.Module):
    """Velocity of the flow at a point, its time and its conditions.

    Arguments
    ---------
    num_mels : int
        F: of the point, of the encoder's frames, of the prompt and of the speaker vector.
    channels : int
        C inside.
    num_blocks : int
        Transformer blocks of each stage.
    num_mid_blocks : int
        Stages between the first and the last.
    num_heads, head_size : int
        Of the attention.
    dropout : float
    chunk_size : int
        Frames of a chunk in streaming.

    Example
    -------
    >>> net = CausalUNet(num_mels=4, channels=8, num_blocks=1, num_mid_blocks=1, num_heads=2, head_size=4)
    >>> x = torch.randn(2, 4, 6)
    >>> net(x, None, x, torch.zeros(2), torch.randn(2, 4), x).shape
    torch.Size([2, 4, 6])
    """

    def __init__(
        self,
        num_mels=80,
        channels=256,
        num_blocks=4,
        num_mid_blocks=12,
        num_heads=8,
        head_size=64,
        dropout=0.0,
        chunk_size=50,
    ):
        super().__init__()
        self.num_mels, self.chunk_size = num_mels, chunk_size
        in_channels = 4 * num_mels
        self.time_size = in_channels
        self.time_mlp = TimeEmbedding(in_channels, 4 * channels)

        def stage(stage_channels, *last):
            blocks = [TransformerBlock(channels, num_heads, head_size, dropout) for _ in range(num_blocks)]
            resnet = CausalResnetBlock(stage_channels, channels, 4 * channels)
            return nn.ModuleList([resnet, nn.ModuleList(blocks), *last])

        self.down_blocks = nn.ModuleList([stage(in_channels, CausalConv1d(channels, channels, 3))])
        self.mid_blocks = nn.ModuleList([stage(channels) for _ in range(num_mid_blocks)])
        self.up_blocks = nn.ModuleList([stage(2 * channels, CausalConv1d(channels, channels, 3))])
        self.final_block = CausalBlock(channels, channels)
        self.final_proj = nn.Conv1d(channels, num_mels, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x, mask, mu, t, speaker, cond, streaming=False, left_chunks=None, keep_first=0, cache=None
    ):
        """Velocity.

        Arguments
        ---------
        x : torch.Tensor
            Point of the flow, float (B, F, T).
        mask : torch.Tensor, optional
            1 at valid frames, (B, 1, T). None: all are valid.
        mu : torch.Tensor
            Frames of the encoder, float (B, F, T).
        t : torch.Tensor
            Flow time in [0, 1], float (B,).
        speaker : torch.Tensor
            Projected speaker vector, float (B, F).
        cond : torch.Tensor
            Mel of the prompt, zero behind it, float (B, F, T).
        streaming : bool
            A frame sees its own chunk and those before it; otherwise everything.
        left_chunks : int, optional
            Chunks that are seen behind the own one in streaming; None: all.
        keep_first : int
            Frames at the start that are always seen.
        cache : ChunkCache, optional
            What came before: x is then one chunk, which sees all of it, and the mask is None.

        Returns
        -------
        torch.Tensor
            float (B, F, T), zero at padding.
        """
        time = self.time_mlp(time_sinusoids(t, self.time_size))
        length = x.shape[2]
        seen = self._seen(mask, length, streaming and cache is None, left_chunks, keep_first, x.device)
        h = torch.cat([x, mu, speaker[..., None].expand(-1, -1, length), cond], dim=1)
        (resnet, blocks, down), (up_resnet, up_blocks, up) = self.down_blocks[0], self.up_blocks[0]
        h = skip = self._stage(resnet, blocks, h, mask, time, seen, cache)
        h = down(_masked(h, mask), cache)
        for mid_resnet, mid_blocks in self.mid_blocks:
            h = self._stage(mid_resnet, mid_blocks, h, mask, time, seen, cache)
        h = self._stage(up_resnet, up_blocks, torch.cat([h, skip], dim=1), mask, time, seen, cache)
        h = up(_masked(h, mask), cache)
        h = self.final_block(h, mask, cache)
        return _masked(self.final_proj(_masked(h, mask)), mask)

    @staticmethod
    def _stage(resnet, blocks, x, mask, time, seen, cache):
        x = resnet(x, mask, time, cache).transpose(1, 2)
        for block in blocks:
            x = block(x, seen, cache)
        return x.transpose(1, 2)

    def _seen(self, mask, length, streaming, left_chunks, keep_first, device):
        seen = None if mask is None else mask.bool()[:, :, None]
        if streaming:
            chunks = chunk_mask(length, self.chunk_size, left_chunks, keep_first, device)[None, None]
            seen = chunks if seen is None else seen & chunks
        return seen


def _masked(x, mask):
    return x if mask is None else x * mask
