"""Front end of VIB-SER: encoder layers -> Gaussian bottlenecks -> stacked frames -> slots of an LLM.

Axes: N audios, T encoder frames, L encoder layers, D feature size, Z latent size, S slot positions.
Source: arXiv 2505.23236, section 2 and figure 1 (no code was released).
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from speechbrain_emo.lobes.feature_statistics import FeatureStatistics
from speechbrain_emo.lobes.information_bottleneck import (
    LOG_VAR_RANGE,
    FrameStacker,
    GaussianBottleneck,
    KLTerm,
    LayerMix,
    SlotAdapter,
    check_seeds,
    derive_seed,
    frame_mask,
    keyed_noise,
    kl_to_standard_normal,
)


@dataclass
class FrontEndOutput:
    """What a front end gives to the packer and to the loss.

    Arguments
    ---------
    slots : dict of str to torch.Tensor
        Slot kind -> pseudo-embeddings, float, shape (N, S, d_llm), exactly 0 beyond ``slot_lengths``.
    slot_lengths : dict of str to torch.Tensor
        Slot kind -> valid positions, int64, shape (N,).
    kl : dict of str to KLTerm
        Branch -> divergence to the prior; empty where no branch is variational.
    latents : dict of str to torch.Tensor
        Branch -> posterior means (mixed features where there is no encoder), float, shape (N, T, Z), 0 at
        padding.
    """

    slots: dict[str, torch.Tensor]
    slot_lengths: dict[str, torch.Tensor]
    kl: dict[str, KLTerm] = field(default_factory=dict)
    latents: dict[str, torch.Tensor] = field(default_factory=dict)


class UtterancePosition(nn.Module):
    """One slot position for the whole utterance: statistics of its features -> Gaussian bottleneck -> adapter.

    Beyond the paper: with few utterances to learn from, what holds for the whole utterance need not be found by
    attention over frames.

    Arguments
    ---------
    bottleneck : GaussianBottleneck
        Encoder of the 2 D standardised statistics.
    adapter : SlotAdapter
        Projection to the language model.
    """

    def __init__(self, bottleneck, adapter):
        super().__init__()
        self.bottleneck = bottleneck
        self.adapter = adapter

    def forward(self, statistics, noise):
        """Statistics (N, 2 D), noise (N, Z) or None -> slot (N, d_llm), mu and log_var or None (N, Z)."""
        latents = self.bottleneck(statistics[:, None], None if noise is None else noise[:, None])
        log_var = None if latents.log_var is None else latents.log_var[:, 0]
        return self.adapter(latents.z)[:, 0], latents.mu[:, 0], log_var


class VIBBranch(nn.Module):
    """One branch: optional layer mix, optional encoder, stacker and adapter.

    Arguments
    ---------
    layer_mix : LayerMix or None
        Mix of the branch's own; None where the branches share one.
    bottleneck : GaussianBottleneck or None
        Encoder of a frame; None feeds the mixed features to the stacker.
    stacker : FrameStacker
        Down-sampling.
    adapter : SlotAdapter or None
        Projection to the language model; None for a branch without positions of frames.
    utterance : UtterancePosition, optional
        Makes the first position from statistics of the utterance.

    Example
    -------
    >>> branch = VIBBranch(LayerMix(2), None, FrameStacker(2), SlotAdapter(8, 8, 6))
    >>> slots, lengths, latents = branch(torch.randn(1, 3, 2, 4), torch.tensor([3]), None)
    >>> slots.shape, lengths.tolist()
    (torch.Size([1, 2, 6]), [2])
    """

    def __init__(self, layer_mix, bottleneck, stacker, adapter, utterance=None):
        super().__init__()
        self.layer_mix = layer_mix
        self.bottleneck = bottleneck
        self.stacker = stacker
        self.adapter = adapter
        self.utterance = utterance

    @property
    def samples(self):
        """Whether the branch draws noise now: variational and in training mode."""
        bottleneck = self.bottleneck if self.utterance is None else self.utterance.bottleneck
        return bottleneck is not None and bottleneck.variational and self.training

    def forward(self, features, num_frames, noise):
        """Run the branch.

        Arguments
        ---------
        features : torch.Tensor
            (N, T, L, D), or (N, T, D) where the mix is shared.
        num_frames : torch.Tensor
            int64, shape (N,).
        noise : torch.Tensor or None
            (N, T, Z) where ``samples``.

        Returns
        -------
        tuple
            Slots (N, S, d_llm), slot lengths int64 (N,) and a pair (mu, log_var or None), each (N, T, Z).
        """
        mixed = features if self.layer_mix is None else self.layer_mix(features)
        mask = frame_mask(num_frames, mixed.shape[1])
        # Whatever stands at padding must reach neither the latents nor a gradient.
        mixed = mixed.masked_fill(~mask[..., None], 0.0)
        if self.bottleneck is None:
            z, mu, log_var = mixed, mixed, None
        else:
            latents = self.bottleneck(mixed, noise)
            z, mu, log_var = latents.z, latents.mu, latents.log_var
        stacks, lengths = self.stacker(z, num_frames)
        slots = self.adapter(stacks)
        slots = slots.masked_fill(~frame_mask(lengths, slots.shape[1])[..., None], 0.0)
        return slots, lengths, (mu, log_var)


class VIBFrontEnd(nn.Module):
    """Named branches with an information bottleneck each, from encoder layers to slots of a language model.

    arXiv 2505.23236, section 2. Open in the paper and therefore arguments: one layer mix a branch or a shared
    one, all sizes, the stack, whether the latent or the adapter is normalised (neither is here). Parameters
    of a branch are named ``branches.<name>.*``, those of a shared mix ``layer_mix.*``.

    Arguments
    ---------
    num_layers : int
        Encoder layers L of the features; 1 for features that are mixed already (``cache: weighted``).
    input_size : int
        Feature size D.
    llm_size : int
        Embedding size of the language model.
    branches : Sequence of str
        Names of the branches; each is also a slot kind. One name gives the one-branch ablation.
    layer_weights : str
        "per_branch" or "shared".
    hidden_size : int
        Hidden size of the two-layer encoder.
    latent_size : int or None
        Latent size Z. None leaves the encoder out altogether: mixed features are stacked and projected, the
        plain LLM-SER baseline; ``bottleneck`` has no meaning then.
    stack : int
        Frames of a position.
    adapter_size : int
        Hidden size of the adapter.
    bottleneck : bool
        False gives the ablation z = mu without noise and KL (and without the variance layer).
    output_scale : float
        Initial root mean square of an entry of the slots, see ``SlotAdapter``.
    fill : str
        Filling of an incomplete last stack: "zero" or "edge".
    normalize_layers : bool
        See ``LayerMix``.
    standardize : bool
        Whether features are standardised with statistics of the training set, see ``FeatureStatistics``;
        :meth:`fit_statistics` measures them. Beyond the paper.
    utterance_position : bool
        Whether each branch has one more position, before the others, made from mean and deviation of all frames,
        see ``UtterancePosition``. Needs ``standardize`` and a ``latent_size``.
    frame_positions : Sequence of str, optional
        Branches that have positions of frames; default: all. The others have the utterance's position alone, a
        bottleneck in time too: where recordings are few, frames are learned by heart.
    initial_log_var : float
        See ``GaussianBottleneck``.
    log_var_range : tuple of float
        See ``GaussianBottleneck``.

    Raises
    ------
    ValueError
        If ``layer_weights`` is unknown or the branches are empty, repeated or not valid names.

    Example
    -------
    >>> front_end = VIBFrontEnd(num_layers=3, input_size=8, llm_size=6, latent_size=4, stack=2)
    >>> features, num_frames = torch.randn(2, 5, 3, 8), torch.tensor([5, 2])
    >>> output = front_end(features, num_frames, noise_seeds=[1, 2])
    >>> output.slots["content"].shape, output.slot_lengths["content"].tolist()
    (torch.Size([2, 3, 6]), [3, 1])
    >>> output.kl["descriptor"].count
    tensor(7)
    """

    def __init__(
        self,
        num_layers,
        input_size,
        llm_size,
        branches=("content", "descriptor"),
        layer_weights="per_branch",
        hidden_size=512,
        latent_size=256,
        stack=5,
        adapter_size=1024,
        bottleneck=True,
        output_scale=0.02,
        fill="zero",
        normalize_layers=False,
        standardize=False,
        utterance_position=False,
        frame_positions=None,
        initial_log_var=-2.0,
        log_var_range=LOG_VAR_RANGE,
    ):
        super().__init__()
        if layer_weights not in ("per_branch", "shared"):
            raise ValueError(
                f"VIBFrontEnd: layer_weights is {layer_weights!r}; allowed are 'per_branch' and 'shared'"
            )
        if isinstance(branches, str):
            raise ValueError(f"VIBFrontEnd: branches is the string {branches!r}; give a list of names")
        branches = tuple(branches)
        if not branches or len(set(branches)) != len(branches) or not all(b.isidentifier() for b in branches):
            raise ValueError(
                f"VIBFrontEnd: branches is {list(branches)}; give one or more different names of letters and"
                " digits"
            )
        if utterance_position and (not standardize or latent_size is None):
            raise ValueError(
                f"VIBFrontEnd: utterance_position needs standardize=True and a latent_size; they are {standardize}"
                f" and {latent_size}"
            )
        frame_positions = branches if frame_positions is None else tuple(frame_positions)
        if set(frame_positions) - set(branches) or (set(frame_positions) != set(branches) and not utterance_position):
            raise ValueError(
                f"VIBFrontEnd: frame_positions is {list(frame_positions)}; allowed are branches of {list(branches)},"
                " and all of them where utterance_position is False"
            )
        self.frame_positions = frame_positions
        self.slot_kinds = branches
        self.input_size = input_size
        self.llm_size = llm_size
        self.layer_weights = layer_weights
        self.layer_mix = LayerMix(num_layers, normalize_layers) if layer_weights == "shared" else None
        self.stacker = FrameStacker(stack, fill)
        self.statistics = FeatureStatistics(num_layers, input_size) if standardize else None
        self.utterance_position = bool(utterance_position)
        self.branches = nn.ModuleDict()
        for name in branches:

            def encoder(size):
                return GaussianBottleneck(
                    size,
                    hidden_size,
                    latent_size,
                    variational=bottleneck,
                    initial_log_var=initial_log_var,
                    log_var_range=log_var_range,
                )

            utterance = None
            if utterance_position:
                adapter = SlotAdapter(latent_size, adapter_size, llm_size, output_scale)
                utterance = UtterancePosition(encoder(2 * input_size), adapter)
            size = input_size if latent_size is None else latent_size
            self.branches[name] = VIBBranch(
                layer_mix=LayerMix(num_layers, normalize_layers) if layer_weights == "per_branch" else None,
                bottleneck=encoder(input_size) if latent_size and name in frame_positions else None,
                stacker=FrameStacker(stack, fill),
                adapter=SlotAdapter(stack * size, adapter_size, llm_size, output_scale)
                if name in frame_positions
                else None,
                utterance=utterance,
            )

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
            ceil(num_frames / stack), one more with ``utterance_position``; that one alone without
            ``frame_positions``.

        Raises
        ------
        KeyError
            If the front end has no such slot.
        """
        if kind not in self.slot_kinds:
            raise KeyError(f"VIBFrontEnd: no slot kind {kind!r}; it has {list(self.slot_kinds)}")
        frames = self.stacker.num_positions(num_frames) if kind in self.frame_positions else 0
        return frames + int(self.utterance_position)

    def fit_statistics(self, utterances):
        """Measure what ``standardize`` needs; without it, nothing happens and nothing is read.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            Encoder layers of one training utterance each, float, shape (T, L, D).
        """
        if self.statistics is not None:
            self.statistics.fit(utterances)

    def trainable_groups(self):
        """Modules that a phase can train, by name.

        Returns
        -------
        dict of str to list of nn.Module
            "front_end.<branch>" for each branch (its own layer mix included) and "front_end.layer_mix" where
            the mix is shared. Together they hold every parameter once.

        Example
        -------
        >>> list(VIBFrontEnd(2, 4, 4, layer_weights="shared").trainable_groups())
        ['front_end.content', 'front_end.descriptor', 'front_end.layer_mix']
        """
        groups = {f"front_end.{name}": [branch] for name, branch in self.branches.items()}
        if self.layer_mix is not None:
            groups["front_end.layer_mix"] = [self.layer_mix]
        return groups

    def mixing_weights(self):
        """Layer weights of each branch, for reports and pictures.

        Returns
        -------
        dict of str to torch.Tensor
            Branch ("shared" where the mix is shared) -> float32 (L,) on the CPU, without gradient.

        Example
        -------
        >>> VIBFrontEnd(2, 4, 4).mixing_weights()["content"]
        tensor([0.5000, 0.5000])
        """
        if self.layer_mix is not None:
            return {"shared": self.layer_mix.weights.detach().cpu()}
        return {name: branch.layer_mix.weights.detach().cpu() for name, branch in self.branches.items()}

    def forward(self, features, num_frames, noise_seeds=None, kinds=None):
        """Turn encoder layers into slots.

        Arguments
        ---------
        features : torch.Tensor
            Encoder layers, float, shape (N, T, L, D). Padding may hold any finite value.
        num_frames : torch.Tensor
            Valid frames, int64, shape (N,), each at least 1.
        noise_seeds : Sequence of int or torch.Tensor, optional
            One int an audio; the noise of an audio depends on its seed (and the branch) only. Needed where a
            variational branch is in training mode.
        kinds : Sequence of str, optional
            Slot kinds to fill; the other branches are not computed. Default: all.

        Returns
        -------
        FrontEndOutput
            Slots, their lengths, KL terms and posterior means.

        Raises
        ------
        ValueError
            If seeds are missing in training mode, an audio has no frame, or shapes disagree.
        """
        num_audios, max_frames = features.shape[:2]
        if features.dim() != 4 or features.shape[3] != self.input_size:
            raise ValueError(
                f"VIBFrontEnd: features of shape {tuple(features.shape)} given, but (N, T, L,"
                f" {self.input_size}) expected; input_size must be the encoder's hidden_size"
            )
        lengths = num_frames.tolist()
        if len(lengths) != num_audios or any(not 1 <= n <= max_frames for n in lengths):
            raise ValueError(
                f"VIBFrontEnd: num_frames is {lengths} for {num_audios} audios of at most {max_frames}"
                " frames; every audio needs between 1 and T valid frames"
            )
        num_frames = num_frames.to(features.device)
        branches = {name: b for name, b in self.branches.items() if kinds is None or name in kinds}
        sampling = [name for name, branch in branches.items() if branch.samples]
        if sampling and noise_seeds is None:
            raise ValueError(
                f"VIBFrontEnd: branches {sampling} are in training mode and draw z = mu + sigma * eps, but"
                " noise_seeds is None; pass one int an audio, or call .eval() on the branches to use z = mu"
            )
        seeds = check_seeds(noise_seeds, num_audios) if sampling else []
        mask = frame_mask(num_frames, max_frames)
        summary = None
        if self.statistics is not None:
            if self.utterance_position:
                summary = self.statistics.utterance(features, mask)
            features = self.statistics.frames(features)
        mixed = features if self.layer_mix is None else self.layer_mix(features)
        output = FrontEndOutput(slots={}, slot_lengths={})
        for name, branch in branches.items():
            slots = []
            if name in self.frame_positions:
                noise = None
                if branch.samples:
                    keys = [derive_seed(seed, name) for seed in seeds]
                    noise = keyed_noise(keys, lengths, max_frames, branch.bottleneck.latent_size)
                    noise = noise.to(features.device)
                frames, slot_lengths, (mu, log_var) = branch(mixed, num_frames, noise)
                slots.append(frames)
                if log_var is not None:
                    output.kl[name] = kl_to_standard_normal(mu, log_var, mask)
            else:
                slot_lengths = torch.zeros_like(num_frames)
            if summary is not None:
                mix = self.layer_mix if branch.layer_mix is None else branch.layer_mix
                noise = None
                if branch.samples:
                    keys = [derive_seed(seed, f"{name}.utterance") for seed in seeds]
                    noise = keyed_noise(keys, [1] * num_audios, 1, branch.utterance.bottleneck.latent_size)[:, 0]
                    noise = noise.to(features.device)
                first, own_mu, own_log_var = branch.utterance(mix(summary[:, None])[:, 0], noise)
                slots.insert(0, first[:, None])
                slot_lengths = slot_lengths + 1
                if own_log_var is not None:
                    every = torch.ones(num_audios, 1, dtype=torch.bool, device=features.device)
                    own = kl_to_standard_normal(own_mu[:, None], own_log_var[:, None], every)
                    # The count stays that of the frames: it is what the Brain divides by.
                    before = output.kl.get(name)
                    output.kl[name] = KLTerm(own.sum + (before.sum if before else 0.0), mask.sum())
                if name not in self.frame_positions:
                    mu = own_mu[:, None].expand(-1, max_frames, -1)
            output.slots[name] = torch.cat(slots, 1)
            output.slot_lengths[name] = slot_lengths
            output.latents[name] = mu.masked_fill(~mask[..., None], 0.0)
        return output
