"""What a causal network remembers between chunks: inputs of convolutions, keys and values of attentions.

Axes: B batch, H heads, T positions, D size of a head, C channels.
"""

import torch


class KeyValueBuffer:
    """Keys and values of one attention layer, in memory that grows by doubling.

    Arguments
    ---------
    keep_first : int
        Positions at the start that are never dropped (a voice prompt).
    keep_last : int, optional
        Positions behind these that stay after :meth:`trim`; None keeps all.

    Example
    -------
    >>> buffer = KeyValueBuffer(keep_first=1, keep_last=2)
    >>> keys = torch.arange(5.0).reshape(1, 1, 5, 1)
    >>> buffer.extend(keys, keys)[0].shape
    torch.Size([1, 1, 5, 1])
    >>> buffer.trim()
    >>> buffer.positions.tolist()
    [0, 3, 4]
    """

    def __init__(self, keep_first=0, keep_last=None):
        self.keep_first, self.keep_last = keep_first, keep_last
        self.length = 0
        self.seen = 0
        self._keys = self._values = self._positions = None

    def extend(self, keys, values):
        """Append a chunk.

        Arguments
        ---------
        keys, values : torch.Tensor
            Shape (B, H, T, D).

        Returns
        -------
        tuple of torch.Tensor
            All keys and all values that are kept, the chunk's included, shape (B, H, kept, D).
        """
        added = keys.shape[2]
        needed = self.length + added
        if self._keys is None or needed > self._keys.shape[2]:
            self._grow(keys, values, max(needed, 2 * self.length))
        self._keys[:, :, self.length : needed] = keys
        self._values[:, :, self.length : needed] = values
        self._positions[self.length : needed] = torch.arange(self.seen, self.seen + added)
        self.length, self.seen = needed, self.seen + added
        return self._keys[:, :, :needed], self._values[:, :, :needed]

    def _grow(self, keys, values, capacity):
        shape = (*keys.shape[:2], capacity, keys.shape[3])
        new_keys, new_values = keys.new_empty(shape), values.new_empty(shape)
        new_positions = torch.empty(capacity, dtype=torch.int64)
        if self.length:
            new_keys[:, :, : self.length] = self._keys[:, :, : self.length]
            new_values[:, :, : self.length] = self._values[:, :, : self.length]
            new_positions[: self.length] = self._positions[: self.length]
        self._keys, self._values, self._positions = new_keys, new_values, new_positions

    @property
    def positions(self):
        """Absolute positions of what is kept, int64 (kept,)."""
        return self._positions[: self.length]

    def trim(self):
        """Drop what lies between the first and the last positions that are kept."""
        if self.keep_last is None:
            return
        first = min(self.keep_first, self.length)
        last = min(self.keep_last, self.length - first)
        if first + last < self.length:
            old = slice(self.length - last, self.length)
            new = slice(first, first + last)
            self._keys[:, :, new] = self._keys[:, :, old].clone()
            self._values[:, :, new] = self._values[:, :, old].clone()
            self._positions[new] = self._positions[old].clone()
            self.length = first + last

    def clone(self):
        """A copy that can go on by itself."""
        copy = KeyValueBuffer(self.keep_first, self.keep_last)
        copy.length, copy.seen = self.length, self.seen
        if self._keys is not None:
            copy._keys, copy._values = self._keys.clone(), self._values.clone()
            copy._positions = self._positions.clone()
        return copy

    def num_bytes(self):
        """Memory that is allocated."""
        if self._keys is None:
            return 0
        return 2 * self._keys.numel() * self._keys.element_size()


class ChunkCache:
    """Left contexts of one causal network between its calls on consecutive chunks.

    Layers ask for their own state; which layer asks is told by the module itself.

    Arguments
    ---------
    keep_first, keep_last : int, int or None
        Of :class:`KeyValueBuffer`, for the layers of this network.

    Example
    -------
    >>> cache, layer = ChunkCache(), torch.nn.Identity()
    >>> cache.left(layer, torch.ones(1, 1, 3), 2)
    tensor([[[0., 0., 1., 1., 1.]]])
    >>> cache.left(layer, torch.ones(1, 1, 1), 2)
    tensor([[[1., 1., 1.]]])
    """

    def __init__(self, keep_first=0, keep_last=None):
        self.keep_first, self.keep_last = keep_first, keep_last
        self._left = {}
        self._buffers = {}

    def left(self, module, x, size):
        """The chunk with the frames before it; zeros stand before the first chunk.

        Arguments
        ---------
        module : torch.nn.Module
            Whose context it is.
        x : torch.Tensor
            Shape (B, C, T).
        size : int
            Frames of context.

        Returns
        -------
        torch.Tensor
            Shape (B, C, size + T).
        """
        before = self._left.get(module)
        if before is None:
            before = x.new_zeros(*x.shape[:2], size)
        joined = torch.cat([before, x], dim=2)
        self._left[module] = joined[:, :, joined.shape[2] - size :].clone()
        return joined

    def buffer(self, module):
        """The keys and values of an attention layer."""
        if module not in self._buffers:
            self._buffers[module] = KeyValueBuffer(self.keep_first, self.keep_last)
        return self._buffers[module]

    def trim(self):
        """Drop keys and values that lie further back than is kept."""
        for buffer in self._buffers.values():
            buffer.trim()

    def clone(self):
        """A copy that can go on by itself."""
        copy = ChunkCache(self.keep_first, self.keep_last)
        copy._left = {module: x.clone() for module, x in self._left.items()}
        copy._buffers = {module: buffer.clone() for module, buffer in self._buffers.items()}
        return copy

    def num_bytes(self):
        """Memory of all layers."""
        left = sum(x.numel() * x.element_size() for x in self._left.values())
        return left + sum(buffer.num_bytes() for buffer in self._buffers.values())


def chunk_mask(size, chunk_size, left_chunks=None, keep_first=0, device=None):
    """Which positions see which: those of the own chunk and of chunks before it.

    Arguments
    ---------
    size : int
        Positions T.
    chunk_size : int
        Positions of a chunk.
    left_chunks : int, optional
        How many chunks before the own one are seen; None: all.
    keep_first : int
        Positions at the start that are seen however far back they are.
    device : torch.device, optional

    Returns
    -------
    torch.Tensor
        bool (T, T): row (query) sees column (key).

    Example
    -------
    >>> chunk_mask(4, 2).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    position = torch.arange(size, device=device)
    chunk = position // chunk_size
    seen = chunk[None, :] <= chunk[:, None]
    if left_chunks is not None:
        near = chunk[None, :] >= chunk[:, None] - left_chunks
        seen = seen & (near | (position < keep_first)[None, :])
    return seen


def frame_mask(num_frames, size):
    """True at valid frames.

    Arguments
    ---------
    num_frames : torch.Tensor
        int64 (B,).
    size : int
        Frames T of the padded batch.

    Returns
    -------
    torch.Tensor
        bool (B, T).

    Example
    -------
    >>> frame_mask(torch.tensor([1, 2]), 2).tolist()
    [[True, False], [True, True]]
    """
    return torch.arange(size, device=num_frames.device)[None, :] < num_frames[:, None]
