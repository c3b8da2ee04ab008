"""The composite model that every language-model system of the toolkit trains: encoder, front end, LLM.

One module with one ``forward`` is what distributed training wraps. Axis letters as in
``docs/architecture.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from speechbrain_emo.prompts.packer import PackedBatch


@dataclass(frozen=True)
class AudioBatch:
    """The audios of a micro-batch, as waveforms or as features of the frozen encoder.

    Arguments
    ---------
    lengths : torch.Tensor
        int64 (N,): samples when ``waveforms`` is given, frames when ``features`` is.
    waveforms : torch.Tensor, optional
        float32 (N, samples), zero padded.
    features : torch.Tensor, optional
        (N, T, L, D), any value on padding.
    noise_seeds : tuple of int
        One an audio: keys the noise of the bottleneck.

    Example
    -------
    >>> AudioBatch(torch.tensor([3]), waveforms=torch.zeros(1, 3)).num_audios
    1
    """

    lengths: torch.Tensor
    waveforms: torch.Tensor | None = None
    features: torch.Tensor | None = None
    noise_seeds: tuple[int, ...] = ()

    @property
    def num_audios(self):
        """N."""
        return len(self.lengths)

    def to(self, device):
        """Copy on ``device``."""

        def move(x):
            return None if x is None else x.to(device, non_blocking=True)

        return replace(
            self, lengths=move(self.lengths), waveforms=move(self.waveforms), features=move(self.features)
        )


@dataclass(frozen=True)
class MicroBatch:
    """What fits in memory at once: packed prompts with answers and their audios.

    Arguments
    ---------
    packed : PackedBatch
        Prompts with answers, padded right.
    audio : AudioBatch or None
        None where no slot takes speech.
    speech_kinds : tuple of str
        Slot kinds that take speech in this micro-batch.
    num_frames : int
        Valid encoder frames of all audios.
    tasks : tuple of str
        Task of every row.
    sources : tuple of str
        For every row, the drawn slot sources, for the log (``content=speech``).

    Example
    -------
    >>> MicroBatch.__dataclass_fields__["tasks"].name
    'tasks'
    """

    packed: PackedBatch
    audio: AudioBatch | None
    speech_kinds: tuple[str, ...] = ()
    num_frames: int = 0
    tasks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def to(self, device):
        """Copy on ``device``."""
        audio = None if self.audio is None else self.audio.to(device)
        return replace(self, packed=self.packed.to(device), audio=audio)


@dataclass
class LossTerms:
    """Sums of a micro-batch; the brain divides them by the counts of the whole optimiser step.

    Arguments
    ---------
    answer : torch.Tensor
        Weighted sum of the negative log-likelihood of answer tokens, scalar.
    kl : dict of str to torch.Tensor
        For every branch of this micro-batch, KL summed over latent dimensions and valid frames, in nats.
    nll_sum, num_tokens, num_correct : torch.Tensor
        Unweighted sum, number of answer tokens, and how many have the highest score; no gradient.
    latents : dict of str to torch.Tensor
        Means of the branches (N, T, D), detached, for diagnoses.
    num_frames : torch.Tensor, optional
        Valid frames of the latents, int64 (N,).

    Example
    -------
    >>> LossTerms(torch.zeros(()), {}, torch.zeros(()), torch.ones(()), torch.ones(()), {}).kl
    {}
    """

    answer: torch.Tensor
    kl: dict[str, torch.Tensor]
    nll_sum: torch.Tensor
    num_tokens: torch.Tensor
    num_correct: torch.Tensor
    latents: dict[str, torch.Tensor] = field(default_factory=dict)
    num_frames: torch.Tensor | None = None


class SpeechLanguageModel(torch.nn.Module):
    """Encoder, front end and speech LLM as one module.

    Everything is frozen until :meth:`set_trainable` names groups; frozen modules stay in eval mode although
    SpeechBrain calls ``train()`` every epoch (a frozen HuBERT would apply SpecAugment and layer drop).

    Arguments
    ---------
    llm : SpeechLLM
        The language model.
    front_end : torch.nn.Module, optional
        For example VIBFrontEnd; None in a text-only experiment.
    encoder : SpeechEncoder, optional
        None when all features come from the cache, or in a text-only experiment.

    Example
    -------
    >>> SpeechLanguageModel(torch.nn.Linear(2, 2)).trainable_names
    ()
    """

    def __init__(self, llm, front_end=None, encoder=None):
        super().__init__()
        self.llm = llm
        self.front_end = front_end
        self.encoder = encoder
        self.trainable_names = ()
        self.requires_grad_(False)
        self.train(False)

    def groups(self):
        """All groups that can train: dict of str to list of torch.nn.Module."""
        groups = dict(self.llm.trainable_groups())
        if self.front_end is not None:
            groups.update(self.front_end.trainable_groups())
        return groups

    def set_trainable(self, names: Sequence[str]):
        """Let the named groups train and freeze all else.

        Raises
        ------
        ValueError
            If a name is unknown.
        """
        groups = self.groups()
        unknown = [n for n in names if n not in groups]
        if unknown:
            raise ValueError(f"unknown groups {unknown} to train; this model has {sorted(groups)}")
        self.trainable_names = tuple(names)
        self.requires_grad_(False)
        for name in names:
            for module in groups[name]:
                module.requires_grad_(True)
        for p in self.parameters():
            if not p.requires_grad:
                # A stale gradient would still move the weight through an optimiser that holds it.
                p.grad = None
        self.train(self.training)

    def train(self, mode=True):
        """Training mode for the trainable groups only."""
        super().train(False)
        self.training = mode
        if mode and self.trainable_names:
            groups = self.groups()
            for name in self.trainable_names:
                if name.startswith("llm."):
                    # Knows which of its parts train by what requires a gradient.
                    self.llm.train(True)
                else:
                    for module in groups[name]:
                        module.train(True)
        return self

    def group_parameters(self, name):
        """Parameters of a group."""
        return [p for module in self.groups()[name] for p in module.parameters()]

    def features(self, audio):
        """Encoder features of a batch: those from the cache, or live from the frozen encoder.

        Arguments
        ---------
        audio : AudioBatch
            On the model's device.

        Returns
        -------
        tuple of torch.Tensor
            Features (N, T, L, D) and valid frames int64 (N,).

        Raises
        ------
        ValueError
            If the batch holds waveforms and there is no encoder.
        """
        if audio.features is not None:
            return audio.features, audio.lengths
        if self.encoder is None:
            raise ValueError(
                "the batch holds waveforms but the model has no encoder to turn them into features"
            )
        encoded = self.encoder(audio.waveforms, audio.lengths)
        return encoded.features, encoded.num_frames

    def forward(self, micro, mode="loss"):
        """Loss terms of a micro-batch.

        Arguments
        ---------
        micro : MicroBatch
            On the model's device.
        mode : str
            ``loss``; generation and scoring run on the unwrapped module (see ``explainer.py``).

        Returns
        -------
        LossTerms

        Raises
        ------
        ValueError
            If the mode is unknown.
        """
        if mode != "loss":
            raise ValueError(f"mode is {mode!r}; allowed: loss")
        slots, kl, latents, num_frames = {}, {}, {}, None
        if micro.audio is not None:
            features, num_frames = self.features(micro.audio)
            speech = self.front_end(
                features, num_frames, noise_seeds=micro.audio.noise_seeds, kinds=micro.speech_kinds
            )
            slots = speech.slots
            kl = {branch: term.sum for branch, term in speech.kl.items()}
            latents = {branch: z.detach() for branch, z in speech.latents.items()}
        embeddings = self.llm.embed(micro.packed, slots)
        answer = self.llm.answer_loss(embeddings, micro.packed)
        weighted = answer.weighted_sum
        if self.training:
            # Every trainable weight takes part in every backward pass, with a zero gradient where a
            # micro-batch has no use for it: the result is the same on any number of processes, and
            # DistributedDataParallel needs no search for unused parameters.
            for p in self.parameters():
                if p.requires_grad:
                    weighted = weighted + 0.0 * p.flatten()[0]
        return LossTerms(
            weighted, kl, answer.nll_sum, answer.num_tokens, answer.num_correct, latents, num_frames
        )
