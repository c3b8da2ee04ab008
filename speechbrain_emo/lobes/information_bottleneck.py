"""Parts of the information bottleneck: layer mixing, Gaussian latents, masked KL, stacking, adapter.

Axes: N audios, T encoder frames, L encoder layers, D feature size, Z latent size, S slot positions.

The system is VIB-SER (arXiv 2505.23236, section 2); the bottleneck is that of Alemi et al. 2017, "Deep
Variational Information Bottleneck", https://arxiv.org/abs/1612.00410. The authors of VIB-SER released no
code: sizes that the paper leaves open are arguments here.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

LOG_VAR_RANGE = (-10.0, 10.0)
ACTIVE_UNIT_THRESHOLD = 0.01


def frame_mask(num_frames, max_frames):
    """Mask that is true on valid frames.

    Arguments
    ---------
    num_frames : torch.Tensor
        Valid frames of each audio, int64, shape (N,).
    max_frames : int
        Length T of the padded axis.

    Returns
    -------
    torch.Tensor
        bool, shape (N, T).

    Example
    -------
    >>> frame_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    positions = torch.arange(max_frames, device=num_frames.device)
    return positions[None, :] < num_frames[:, None]


class LayerMix(nn.Module):
    """Softmax-weighted sum over the hidden states of an encoder.

    The weighting of VIB-SER (arXiv 2505.23236, section 2), as in ELMo and SUPERB (arXiv 2105.01051, section
    3). All layers start with equal weight.

    Arguments
    ---------
    num_layers : int
        Number of hidden states L. With 1 the sum is the identity.
    normalize_layers : bool
        Whether each layer is brought to zero mean and unit variance over D first (no parameters), so that a
        layer of large norm does not dominate the equal start. Not in the paper.

    Raises
    ------
    ValueError
        If ``num_layers`` is below 1.

    Example
    -------
    >>> mix = LayerMix(num_layers=3)
    >>> mix(torch.ones(2, 5, 3, 4)).shape
    torch.Size([2, 5, 4])
    >>> mix.weights.detach().sum().item()
    1.0
    """

    def __init__(self, num_layers, normalize_layers=False):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"LayerMix: num_layers is {num_layers}; it must be at least 1")
        self.num_layers = num_layers
        self.normalize_layers = normalize_layers
        self.logits = nn.Parameter(torch.zeros(num_layers))

    @property
    def weights(self):
        """Weight of each layer, float32 (L,), summing to 1."""
        return torch.softmax(self.logits.float(), dim=0)

    def forward(self, features):
        """Mix the layers.

        Arguments
        ---------
        features : torch.Tensor
            Hidden states, float, shape (N, T, L, D).

        Returns
        -------
        torch.Tensor
            Weighted sum in the dtype of ``features``, shape (N, T, D).

        Raises
        ------
        ValueError
            If the shape does not have L layers on axis 2.
        """
        if features.dim() != 4 or features.shape[2] != self.num_layers:
            raise ValueError(
                f"LayerMix: features of shape {tuple(features.shape)} given, but (N, T, {self.num_layers}, D)"
                " expected; num_layers of the front end must be the number of layers that the encoder (or the"
                " cache) returns"
            )
        if self.normalize_layers:
            features = nn.functional.layer_norm(features, features.shape[-1:])
        return torch.einsum("ntld,l->ntd", features, self.weights.to(features.dtype))


@dataclass
class KLTerm:
    """Divergence of one branch, with sum and count apart so that several ranks normalise by the global count.

    Arguments
    ---------
    sum : torch.Tensor
        KL divergence summed over latent dimensions and valid frames, in nats, float32, shape ().
    count : torch.Tensor
        Number of valid frames, int64, shape ().
    """

    sum: torch.Tensor
    count: torch.Tensor

    @property
    def mean(self):
        """KL divergence of a valid frame in nats, shape (); 0 where there is no valid frame."""
        return self.sum / self.count.clamp(min=1)


def kl_to_standard_normal(mu, log_var, mask):
    """KL divergence from N(mu, sigma^2) to N(0, I), summed over latent dimensions and valid frames.

    Kingma and Welling 2014, "Auto-Encoding Variational Bayes", appendix B: 1/2 sum(mu^2 + sigma^2 - 1 - log
    sigma^2).

    Arguments
    ---------
    mu : torch.Tensor
        Means, float, shape (N, T, Z).
    log_var : torch.Tensor
        Logarithm of the variances, float, shape (N, T, Z).
    mask : torch.Tensor
        True on valid frames, bool, shape (N, T). Padding may hold any value, also NaN.

    Returns
    -------
    KLTerm
        ``sum`` in nats (computed in float32) and ``count`` of valid frames.

    Example
    -------
    >>> kl_to_standard_normal(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]]))
    KLTerm(sum=tensor(1.5000), count=tensor(1))
    """
    # A masked product would let NaN at padding through, in the value as in the gradient: select before
    # computing.
    mu = torch.where(mask[..., None], mu.float(), 0.0)
    log_var = torch.where(mask[..., None], log_var.float(), 0.0)
    per_frame = 0.5 * (mu.square() + log_var.exp() - 1.0 - log_var).sum(dim=-1)
    return KLTerm(sum=per_frame.sum(), count=mask.sum())


def derive_seed(seed, name):
    """Seed of a named stream of random numbers below an audio's seed.

    Two branches that share the seed of an audio must not share its noise.

    Arguments
    ---------
    seed : int
        Seed of the audio.
    name : str
        Name of the stream, such as the branch.

    Returns
    -------
    int
        In [0, 2**63), the same on every machine.

    Example
    -------
    >>> derive_seed(3, "content") == derive_seed(3, "content")
    True
    >>> derive_seed(3, "content") == derive_seed(3, "descriptor")
    False
    """
    digest = hashlib.blake2b(f"{int(seed)}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_noise(seeds, num_frames, max_frames, latent_size):
    """Standard normal noise that depends on the seed and length of each audio only.

    Exactly ``num_frames[n] * latent_size`` values are drawn for audio n from a CPU generator of its own, so
    that the batch it is in, its padding, its rank and the device make no difference.

    Arguments
    ---------
    seeds : Sequence of int
        One seed an audio, length N.
    num_frames : Sequence of int
        Valid frames of each audio, length N.
    max_frames : int
        Length T of the padded axis.
    latent_size : int
        Latent size Z.

    Returns
    -------
    torch.Tensor
        float32 on the CPU, shape (N, T, Z), 0 at padding.

    Example
    -------
    >>> alone = keyed_noise([7], [2], 2, 4)
    >>> beside = keyed_noise([1, 7], [5, 2], 5, 4)
    >>> torch.equal(alone[0], beside[1, :2])
    True
    """
    noise = torch.zeros(len(seeds), max_frames, latent_size)
    for row, (seed, length) in enumerate(zip(seeds, num_frames, strict=True)):
        generator = torch.Generator(device="cpu").manual_seed(int(seed))
        noise[row, :length] = torch.randn(length, latent_size, generator=generator)
    return noise


@dataclass
class Latents:
    """What a bottleneck gives for each frame; all float32, shape (N, T, Z), arbitrary at padding.

    Arguments
    ---------
    z : torch.Tensor
        Sample in training mode, ``mu`` in eval mode.
    mu : torch.Tensor
        Mean.
    log_var : torch.Tensor or None
        Logarithm of the variance; None where the encoder is not variational.
    """

    z: torch.Tensor
    mu: torch.Tensor
    log_var: torch.Tensor | None


class GaussianBottleneck(nn.Module):
    """Two-layer perceptron from a frame to a diagonal Gaussian and, in training mode, a sample of it.

    VIB-SER (arXiv 2505.23236, section 2): (mu, log sigma^2) = MLP(x); z = mu + sigma * eps in training, z =
    mu at inference. The hidden activation is ReLU. ``log_var`` is limited to ``log_var_range`` in the
    forward pass, while the gradient passes as if it were not: the KL term then always pulls a value that
    left the range back into it, where a plain clamp would leave it there for good.

    Arguments
    ---------
    input_size : int
        Feature size D.
    hidden_size : int
        Size of the hidden layer.
    latent_size : int
        Latent size Z.
    variational : bool
        False gives the ablation without a bottleneck: the same perceptron with ``mu`` as its only output.
    initial_log_var : float
        Bias of ``log_var`` at the start. Open in the paper. Around 0 the noise has the size of the signal at
        the first step.
    log_var_range : tuple of float
        Lowest and highest ``log_var``; the default (-10, 10) bounds sigma to (0.0067, 148).

    Example
    -------
    >>> bottleneck = GaussianBottleneck(input_size=8, hidden_size=16, latent_size=4).eval()
    >>> latents = bottleneck(torch.randn(2, 5, 8))
    >>> torch.equal(latents.z, latents.mu), latents.log_var.shape
    (True, torch.Size([2, 5, 4]))
    """

    def __init__(
        self,
        input_size,
        hidden_size=512,
        latent_size=256,
        variational=True,
        initial_log_var=-2.0,
        log_var_range=LOG_VAR_RANGE,
    ):
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "latent_size": latent_size}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"GaussianBottleneck: {name} is {value}; it must be at least 1")
        low, high = log_var_range
        if not low < high or not low <= initial_log_var <= high:
            raise ValueError(
                f"GaussianBottleneck: log_var_range is {tuple(log_var_range)} and initial_log_var"
                f" {initial_log_var}; the range must rise and hold the initial value"
            )
        self.latent_size = latent_size
        self.variational = variational
        self.log_var_range = (float(low), float(high))
        self.hidden = nn.Linear(input_size, hidden_size)
        self.mean = nn.Linear(hidden_size, latent_size)
        # He and LeCun scales: features of unit variance give a mu of unit variance, which is the prior's.
        nn.init.normal_(self.hidden.weight, std=math.sqrt(2.0 / input_size))
        nn.init.zeros_(self.hidden.bias)
        nn.init.normal_(self.mean.weight, std=math.sqrt(1.0 / hidden_size))
        nn.init.zeros_(self.mean.bias)
        self.log_variance = None
        if variational:
            self.log_variance = nn.Linear(hidden_size, latent_size)
            nn.init.normal_(self.log_variance.weight, std=0.1 * math.sqrt(1.0 / hidden_size))
            nn.init.constant_(self.log_variance.bias, initial_log_var)

    def forward(self, features, noise=None):
        """Encode frames.

        Arguments
        ---------
        features : torch.Tensor
            Mixed features, float, shape (N, T, D).
        noise : torch.Tensor, optional
            Standard normal values, shape (N, T, Z); needed in training mode by a variational bottleneck, see
            ``keyed_noise``. Not used in eval mode.

        Returns
        -------
        Latents
            ``z``, ``mu`` and ``log_var``.

        Raises
        ------
        ValueError
            If the noise is missing in training mode.
        """
        hidden = torch.relu(self.hidden(features.to(self.hidden.weight.dtype)))
        mu = self.mean(hidden).float()
        if not self.variational:
            return Latents(z=mu, mu=mu, log_var=None)
        raw = self.log_variance(hidden).float()
        log_var = raw + (raw.clamp(*self.log_var_range) - raw).detach()
        if not self.training:
            return Latents(z=mu, mu=mu, log_var=log_var)
        if noise is None:
            raise ValueError(
                "GaussianBottleneck: in training mode but no noise was given; pass keyed_noise(...)"
                " (noise_seeds of the front end) or call .eval() to use z = mu"
            )
        return Latents(z=mu + torch.exp(0.5 * log_var) * noise.to(mu), mu=mu, log_var=log_var)


class FrameStacker(nn.Module):
    """Concatenate every k neighbouring frames into one position.

    VIB-SER stacks frames before its adapter; k is open in the paper, 5 turns 50 Hz into 10 Hz (as in arXiv
    2508.08095). ``num_frames`` frames give ceil(num_frames / k) positions, so one frame gives one position.
    The remainder of the last stack is filled; frames beyond the valid ones are never read.

    Arguments
    ---------
    stack : int
        Frames k of a position.
    fill : str
        What fills an incomplete last stack: "zero", or "edge" for copies of the last valid frame.

    Example
    -------
    >>> stacker = FrameStacker(stack=2)
    >>> frames = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> stacker(frames, torch.tensor([3]))
    (tensor([[[1., 2.],
             [3., 0.]]]), tensor([2]))
    """

    def __init__(self, stack=5, fill="zero"):
        super().__init__()
        if stack < 1:
            raise ValueError(f"FrameStacker: stack is {stack}; it must be at least 1")
        if fill not in ("zero", "edge"):
            raise ValueError(f"FrameStacker: fill is {fill!r}; allowed are 'zero' and 'edge'")
        self.stack = stack
        self.fill = fill

    def num_positions(self, num_frames):
        """Positions that a number of frames gives.

        Arguments
        ---------
        num_frames : int or torch.Tensor
            Valid frames; a number or int64 of any shape.

        Returns
        -------
        int or torch.Tensor
            ceil(num_frames / k), of the same kind.
        """
        return (num_frames + self.stack - 1) // self.stack

    def forward(self, frames, num_frames):
        """Stack.

        Arguments
        ---------
        frames : torch.Tensor
            float, shape (N, T, D). Padding may hold any value.
        num_frames : torch.Tensor
            Valid frames of each audio, int64, shape (N,).

        Returns
        -------
        tuple of torch.Tensor
            Stacks, shape (N, S, k * D) with S = ceil(T / k), 0 beyond the valid positions, and the number of
            valid positions, int64, shape (N,).
        """
        num_audios, max_frames, size = frames.shape
        positions = self.num_positions(max_frames)
        length = positions * self.stack
        frames = nn.functional.pad(frames, (0, 0, 0, length - max_frames))
        lengths = self.num_positions(num_frames)
        if self.fill == "edge":
            index = torch.arange(length, device=frames.device)[None, :]
            index = torch.minimum(index.expand(num_audios, -1), (num_frames - 1).clamp(min=0)[:, None])
            frames = torch.gather(frames, 1, index[..., None].expand(-1, -1, size))
            mask = frame_mask(lengths * self.stack, length)
        else:
            mask = frame_mask(num_frames, length)
        frames = frames.masked_fill(~mask[..., None], 0.0)
        return frames.reshape(num_audios, positions, self.stack * size), lengths


class SlotAdapter(nn.Module):
    """Perceptron with one ReLU layer from stacked frames to pseudo-embeddings of a language model.

    The adapter of VIB-SER (arXiv 2505.23236, section 2) and of arXiv 2508.08095, section 2.2.

    Arguments
    ---------
    input_size : int
        Size of a stack.
    hidden_size : int
        Size of the ReLU layer.
    output_size : int
        Embedding size of the language model.
    output_scale : float
        Root mean square that an entry of the output has at the start when the input has unit root mean
        square: set it to that of the language model's embedding matrix (0.02 is the initial value of Llama
        and Qwen), so that pseudo-embeddings start at the norm of token embeddings. It only scales the initial
        weights of the last layer; no normalisation layer is added, and the scale is free to change in
        training.

    Example
    -------
    >>> adapter = SlotAdapter(input_size=20, hidden_size=32, output_size=16)
    >>> adapter(torch.randn(2, 3, 20)).shape
    torch.Size([2, 3, 16])
    """

    def __init__(self, input_size, hidden_size, output_size, output_scale=0.02):
        super().__init__()
        if not output_scale > 0:
            raise ValueError(f"SlotAdapter: output_scale is {output_scale}; it must be above 0")
        self.hidden = nn.Linear(input_size, hidden_size)
        self.output = nn.Linear(hidden_size, output_size)
        nn.init.normal_(self.hidden.weight, std=math.sqrt(2.0 / input_size))
        nn.init.zeros_(self.hidden.bias)
        nn.init.normal_(self.output.weight, std=output_scale / math.sqrt(hidden_size))
        nn.init.zeros_(self.output.bias)

    def forward(self, stacks):
        """Project.

        Arguments
        ---------
        stacks : torch.Tensor
            float, shape (N, S, input_size).

        Returns
        -------
        torch.Tensor
            Pseudo-embeddings, shape (N, S, output_size).
        """
        return self.output(torch.relu(self.hidden(stacks.to(self.hidden.weight.dtype))))


class ActiveUnits:
    """Running count of latent dimensions that carry information about the data.

    Burda et al. 2016, "Importance Weighted Autoencoders", https://arxiv.org/abs/1509.00519, section 5.2:
    dimension u is active where the variance over the data of its posterior mean exceeds 0.01. Moments are
    kept in float64.

    Arguments
    ---------
    threshold : float
        Variance above which a dimension is active.

    Example
    -------
    >>> units = ActiveUnits()
    >>> units.update(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.tensor([[True, True]]))
    >>> units.active.tolist()
    [True, False]
    """

    def __init__(self, threshold=ACTIVE_UNIT_THRESHOLD):
        self.threshold = threshold
        self.count = 0
        self.mean = None
        self.squares = None

    def update(self, mu, mask):
        """Add a batch.

        Arguments
        ---------
        mu : torch.Tensor
            Posterior means, float, shape (N, T, Z).
        mask : torch.Tensor
            True on valid frames, bool, shape (N, T).
        """
        values = mu.detach()[mask].double().cpu()
        if not len(values):
            return
        mean = values.mean(dim=0)
        squares = (values - mean).square().sum(dim=0)
        if self.mean is None:
            self.count, self.mean, self.squares = len(values), mean, squares
            return
        # Chan et al. 1979: merging centred moments loses no digits where the mean is large.
        total = self.count + len(values)
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * len(values) / total)
        self.mean = self.mean + delta * (len(values) / total)
        self.count = total

    @property
    def variance(self):
        """Variance over the data of each mean, float64, shape (Z,)."""
        if self.mean is None:
            raise ValueError("ActiveUnits: no valid frame was added; call update first")
        return self.squares / self.count

    @property
    def active(self):
        """True for each active dimension, bool, shape (Z,)."""
        return self.variance > self.threshold


def active_units(mu, mask, threshold=ACTIVE_UNIT_THRESHOLD):
    """Latent dimensions whose posterior mean varies over the frames given.

    ``ActiveUnits`` on one batch; see there for the source.

    Arguments
    ---------
    mu : torch.Tensor
        Posterior means, float, shape (N, T, Z).
    mask : torch.Tensor
        True on valid frames, bool, shape (N, T).
    threshold : float
        Variance above which a dimension is active.

    Returns
    -------
    torch.Tensor
        bool, shape (Z,); its sum is the number of active units.

    Example
    -------
    >>> active_units(torch.tensor([[[1.0, 0.0], [-1.0, 0.05]]]), torch.tensor([[True, True]])).sum().item()
    1
    """
    units = ActiveUnits(threshold)
    units.update(mu, mask)
    return units.active


def check_seeds(noise_seeds, num_audios):
    """Seeds of a batch as a list of int.

    Arguments
    ---------
    noise_seeds : Sequence of int or torch.Tensor
        One integer an audio.
    num_audios : int
        Number of audios N.

    Returns
    -------
    list of int
        The seeds.

    Raises
    ------
    ValueError
        If their number is not N.

    Example
    -------
    >>> check_seeds(torch.tensor([3, 4]), 2)
    [3, 4]
    """
    seeds: Sequence[int] = (
        noise_seeds.tolist() if isinstance(noise_seeds, torch.Tensor) else list(noise_seeds)
    )
    if len(seeds) != num_audios:
        raise ValueError(
            f"noise_seeds: {len(seeds)} seeds for {num_audios} audios; give exactly one int an audio"
        )
    return [int(seed) for seed in seeds]
