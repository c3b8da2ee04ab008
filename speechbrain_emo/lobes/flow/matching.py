"""Conditional flow matching with classifier-free guidance.

Lipman et al. 2023, https://arxiv.org/abs/2210.02747 (optimal-transport path, section 4), with the guidance, the cosine
steps and the fixed start noise of CosyVoice2 (Du et al. 2024, https://arxiv.org/abs/2412.10117, section 2.3).
Axes: B batch, F mel bins, T frames.
"""

from dataclasses import dataclass

import torch
from torch import nn

PUBLISHED_GUIDANCE = 0.7
SCHEDULES = ("cosine", "linear")


def flow_times(num_steps, schedule="cosine", device=None):
    """Times of the Euler steps, both ends included.

    Arguments
    ---------
    num_steps : int
        Steps of the solver, at least 1.
    schedule : str
        ``cosine`` (small steps first) or ``linear``.
    device : torch.device, optional

    Returns
    -------
    torch.Tensor
        float32 (num_steps + 1,) from 0 to 1.

    Raises
    ------
    ValueError
        If the number or the schedule is not allowed.

    Example
    -------
    >>> flow_times(2, "linear")
    tensor([0.0000, 0.5000, 1.0000])
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; allowed: 1 and above")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed are {SCHEDULES}")
    times = torch.linspace(0, 1, num_steps + 1, device=device)
    return 1 - torch.cos(times * 0.5 * torch.pi) if schedule == "cosine" else times


def prior_velocity(x, mu, t, deviation):
    """Velocity of the path from a standard normal to independent normals around mu: E[mel - noise | x at time t].

    With x = (1 - t) noise + t mel and D = (1 - t)^2 + (t s)^2 it is ((1 - t) mu + (t s^2 - (1 - t)) x) / D: the
    regression of jointly normal variables (Bishop 2006, Pattern Recognition and Machine Learning, section 2.3.1).
    The path's ``sigma_min`` is taken as 0.

    Arguments
    ---------
    x : torch.Tensor
        Point of the path, float (B, F, T).
    mu : torch.Tensor
        Mean of the end, float (B, F, T).
    t : torch.Tensor
        Flow time in [0, 1], float, scalar or (B, 1, 1).
    deviation : float
        s, above 0.

    Returns
    -------
    torch.Tensor
        float (B, F, T)

    Example
    -------
    >>> mu = torch.full((1, 1, 1), 3.0)
    >>> prior_velocity(torch.zeros(1, 1, 1), mu, torch.zeros(1, 1, 1), 0.5)
    tensor([[[3.]]])
    """
    rest = 1 - t
    return (rest * mu + (t * deviation**2 - rest) * x) / (rest.square() + (t * deviation).square())


@dataclass
class FlowDraws:
    """What one training step draws for each row; rows depend on their own seeds alone.

    Arguments
    ---------
    times : torch.Tensor
        Flow time in [0, 1), float (B,).
    noise : torch.Tensor
        Start of the path, float (B, F, T).
    keep : torch.Tensor
        bool (B,): the conditions are kept (False trains the unconditional half).
    prompt_frames : torch.Tensor
        int64 (B,): first frames whose mel is given as a prompt.

    Example
    -------
    >>> draws = FlowDraws.of_seeds([1, 2], torch.tensor([10, 8]), num_mels=4)
    >>> draws.noise.shape
    torch.Size([2, 4, 10])
    """

    times: torch.Tensor
    noise: torch.Tensor
    keep: torch.Tensor
    prompt_frames: torch.Tensor

    @classmethod
    def of_seeds(cls, seeds, num_frames, num_mels=80, drop=0.2, no_prompt=0.5, longest_prompt=0.3):
        """Draw for rows with these seeds.

        Arguments
        ---------
        seeds : sequence of int
            One for each row.
        num_frames : torch.Tensor
            int64 (B,).
        num_mels : int
            F.
        drop : float
            Share of rows that lose their conditions.
        no_prompt : float
            Share of rows without a prompt.
        longest_prompt : float
            Largest share of a row's frames that a prompt takes.

        Returns
        -------
        FlowDraws
            On the CPU; noise is zero at padding.
        """
        lengths = [int(n) for n in num_frames]
        noise = torch.zeros(len(lengths), num_mels, max(lengths))
        scalars = torch.zeros(len(lengths), 4)
        for row, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
            generator = torch.Generator().manual_seed(int(seed))
            scalars[row] = torch.rand(4, generator=generator)
            noise[row, :, :length] = torch.randn(num_mels, length, generator=generator)
        largest = (longest_prompt * num_frames.cpu()).long()
        prompt = (scalars[:, 3] * (largest + 1)).long() * (scalars[:, 2] >= no_prompt)
        return cls(scalars[:, 0], noise, scalars[:, 1] >= drop, prompt)

    def to(self, device):
        """The draws on a device."""
        return FlowDraws(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class FlowMatching(nn.Module):
    """Straight paths from noise to mel, their loss and the solver that follows them.

    Arguments
    ---------
    estimator : torch.nn.Module
        Velocity network with the signature of :class:`~speechbrain_emo.lobes.flow.estimator.CausalUNet`.
    sigma_min : float
        Deviation that the path keeps at its end.
    num_steps : int
        Euler steps.
    schedule : str
        Of the solver: ``cosine`` or ``linear``.
    guidance : float
        Weight w of classifier-free guidance, (1 + w) conditional - w unconditional; 0 saves half of the work.
    num_noise_frames : int
        Length of the fixed start noise, and so the longest sequence.
    prior_deviation : float, optional
        Not in the paper, for small models: the network gives only what is to be added to the velocity that leads to
        independent normal values around mu with this deviation, which has a closed form
        (:func:`prior_velocity`). None: the whole velocity, as published.
    temperature : float
        Factor on :meth:`fixed_noise`, the start in synthesis where no other is given; published: 1. Below it a small
        model leaves out what it does not know how to draw.

    Raises
    ------
    ValueError
        If the schedule, the number of steps, the deviation or the temperature is not allowed.

    Example
    -------
    >>> from speechbrain_emo.lobes.flow.estimator import CausalUNet
    >>> net = CausalUNet(num_mels=4, channels=8, num_blocks=1, num_mid_blocks=1, num_heads=2, head_size=4)
    >>> flow = FlowMatching(net, num_noise_frames=100)
    >>> mu = torch.randn(1, 4, 6)
    >>> flow.solve(mu, None, torch.randn(1, 4), torch.zeros(1, 4, 6), num_steps=2).shape
    torch.Size([1, 4, 6])
    """

    def __init__(
        self,
        estimator,
        sigma_min=1e-6,
        num_steps=10,
        schedule="cosine",
        guidance=PUBLISHED_GUIDANCE,
        num_noise_frames=15000,
        prior_deviation=None,
        temperature=1.0,
    ):
        super().__init__()
        flow_times(num_steps, schedule)
        if prior_deviation is not None and prior_deviation <= 0:
            raise ValueError(f"prior_deviation is {prior_deviation}; allowed: above 0, or null for none")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; allowed: 0 (no noise) and above")
        self.prior_deviation, self.temperature = prior_deviation, float(temperature)
        self.estimator = estimator
        self.sigma_min, self.num_steps, self.schedule = sigma_min, num_steps, schedule
        self.guidance, self.num_noise_frames = guidance, num_noise_frames
        self._noise = None

    def fixed_noise(self, start, stop, like):
        """The start noise of the published model: normal from a generator with seed 0, times the temperature.

        Arguments
        ---------
        start, stop : int
            Frames.
        like : torch.Tensor
            Says device and dtype.

        Returns
        -------
        torch.Tensor
            (1, F, stop - start)

        Raises
        ------
        ValueError
            If there is not as much of it.
        """
        if stop > self.num_noise_frames:
            raise ValueError(
                f"{stop} frames are asked for, the start noise has {self.num_noise_frames}: "
                "synthesise the text in parts, or raise num_noise_frames"
            )
        if self._noise is None:
            generator = torch.Generator().manual_seed(0)
            self._noise = torch.randn(1, self.estimator.num_mels, self.num_noise_frames, generator=generator)
        return self.temperature * self._noise[:, :, start:stop].to(like)

    def solve(
        self,
        mu,
        mask,
        speaker,
        cond,
        noise=None,
        num_steps=None,
        guidance=None,
        streaming=False,
        left_chunks=None,
        keep_first=0,
        caches=None,
    ):
        """Follow the flow from noise to mel with Euler steps.

        Arguments
        ---------
        mu, mask, speaker, cond, streaming, left_chunks, keep_first
            As in the velocity network.
        noise : torch.Tensor, optional
            Start, float (B or 1, F, T). None: :meth:`fixed_noise`, the same for every row.
        num_steps : int, optional
            Default: that of the module.
        guidance : float, optional
            Default: that of the module.
        caches : list of ChunkCache, optional
            One for each step: mu and cond are then one chunk behind what the caches hold, and noise is given.

        Returns
        -------
        torch.Tensor
            Mel, float (B, F, T); zero at padding it is not.
        """
        guidance = self.guidance if guidance is None else guidance
        times = flow_times(self.num_steps if num_steps is None else num_steps, self.schedule, mu.device)
        batch = mu.shape[0]
        if noise is None:
            noise = self.fixed_noise(0, mu.shape[2], mu)
        x = noise.expand(batch, -1, -1)
        if guidance:
            # Both halves in one batch; the second is without conditions.
            mu, speaker, cond = (torch.cat([c, torch.zeros_like(c)]) for c in (mu, speaker, cond))
            mask = None if mask is None else torch.cat([mask, mask])
        t, step = times[0], times[1] - times[0]
        for number in range(1, len(times)):
            velocity = self.estimator(
                torch.cat([x, x]) if guidance else x,
                mask,
                mu,
                t.expand(mu.shape[0]),
                speaker,
                cond,
                streaming=streaming,
                left_chunks=left_chunks,
                keep_first=keep_first,
                cache=None if caches is None else caches[number - 1],
            )
            if guidance:
                conditional, unconditional = velocity[:batch], velocity[batch:]
                velocity = (1.0 + guidance) * conditional - guidance * unconditional
            # Guidance is between two answers of the network; the prior is added once.
            x = x + step * self._with_prior(velocity, x, mu[:batch], t)
            t = t + step
            if number < len(times) - 1:
                # From the accumulated time: what rounding loses in one step the next makes up.
                step = times[number + 1] - t
        return x

    def _with_prior(self, velocity, x, mu, t):
        if self.prior_deviation is None:
            return velocity
        return velocity + prior_velocity(x, mu, t, self.prior_deviation)

    def loss(self, mel, mask, mu, speaker, cond, draws, streaming=False):
        """Squared error of the velocity at one random time of the path (Lipman et al. 2023, eq. 23).

        Arguments
        ---------
        mel : torch.Tensor
            End of the path, float (B, F, T).
        mask : torch.Tensor
            1 where a frame counts and is seen, float (B, 1, T).
        mu, speaker, cond, streaming
            As in the velocity network.
        draws : FlowDraws

        Returns
        -------
        tuple of torch.Tensor
            Sum of the squared errors, scalar, and the number of values in it, scalar: their quotient is the
            mean over valid frames and bins, whatever the batch was split into.
        """
        t = draws.times.to(mel)[:, None, None]
        keep = draws.keep.to(mel)
        noise = draws.noise.to(mel)
        point = (1 - (1 - self.sigma_min) * t) * noise + t * mel
        velocity = mel - (1 - self.sigma_min) * noise
        predicted = self.estimator(
            point,
            mask,
            mu * keep[:, None, None],
            draws.times.to(mel),
            speaker * keep[:, None],
            cond * keep[:, None, None],
            streaming=streaming,
        )
        predicted = self._with_prior(predicted, point, mu * keep[:, None, None], t)
        error = ((predicted - velocity) * mask).square().sum()
        return error, mask.sum() * mel.shape[1]
