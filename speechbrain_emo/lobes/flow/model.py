"""Speech tokens and a voice prompt to mel spectrograms: the flow of CosyVoice2, whole and in chunks.

Names and shapes of the weights are those of the published flow.pt (Du et al. 2024,
https://arxiv.org/abs/2412.10117); the emotion conditioning is this project's and adds names only where it is on.
Axes: B batch, T tokens, F mel bins, D feature size.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_emo.lobes.flow.caches import ChunkCache, frame_mask
from speechbrain_emo.lobes.flow.encoder import UpsamplingConformer
from speechbrain_emo.lobes.flow.estimator import CausalUNet
from speechbrain_emo.lobes.flow.matching import FlowMatching
from speechbrain_emo.lobes.fsq import spread_levels
from speechbrain_emo.lobes.stored import load_stored, save_stored

LAST_CHUNK = ("chunked", "full")


class TokenEmotion(nn.Module):
    """Emotion and strength of each token as a vector that is added to its embedding.

    vector = base[emotion] + intensity * direction[emotion]; it starts small, not at zero.

    Arguments
    ---------
    num_emotions : int
    size : int
        Size of the token embeddings.
    scale : float
        Deviation of the vectors at the start.

    Example
    -------
    >>> emotion = TokenEmotion(5, 8)
    >>> emotion(torch.tensor([[0, -1]]), torch.tensor([[0.5, 0.0]]))[0, 1].abs().sum()
    tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(self, num_emotions, size, scale=0.02):
        super().__init__()
        self.base = nn.Embedding(num_emotions, size)
        self.direction = nn.Embedding(num_emotions, size)
        nn.init.normal_(self.base.weight, std=scale)
        nn.init.normal_(self.direction.weight, std=scale)

    def forward(self, emotions, intensities):
        """Vectors of tokens.

        Arguments
        ---------
        emotions : torch.Tensor
            int64 (B, T); -1 where it is not known, which adds nothing.
        intensities : torch.Tensor
            In [0, 1], float (B, T).

        Returns
        -------
        torch.Tensor
            float (B, T, D).
        """
        index = emotions.clamp(min=0)
        vector = self.base(index) + intensities[..., None] * self.direction(index)
        return vector * (emotions >= 0)[..., None]


@dataclass
class MelBatch:
    """Mel spectrograms of a batch.

    Arguments
    ---------
    mel : torch.Tensor
        Natural logarithm, float (B, F, frames), zero at padding.
    num_frames : torch.Tensor
        int64 (B,).
    """

    mel: torch.Tensor
    num_frames: torch.Tensor


class TokenToMel(nn.Module):
    """Speech tokens at 25 Hz to mel frames at 50 Hz, in the voice of a prompt and a speaker vector.

    Arguments
    ---------
    vocab_size : int
        Speech tokens.
    token_size : int
        Size of their embeddings.
    speaker_size : int
        Size of the speaker vector.
    num_mels : int
        F.
    encoder : dict, optional
        Arguments of :class:`UpsamplingConformer` other than ``input_size``.
    estimator : dict, optional
        Arguments of :class:`CausalUNet` other than ``num_mels`` and ``chunk_size``.
    matching : dict, optional
        Arguments of :class:`FlowMatching` other than ``estimator``.
    num_emotions : int
        Above 0: the decoder is conditioned on the emotion of each token (:class:`TokenEmotion`).

    Example
    -------
    >>> flow = tiny_flow(vocab_size=10).eval()
    >>> tokens, prompt = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6]])
    >>> out = flow.generate(tokens, prompt, torch.zeros(1, 4, 8), torch.randn(1, 6))
    >>> out.mel.shape, out.num_frames.tolist()
    (torch.Size([1, 8, 8]), [8])
    """

    def __init__(
        self,
        vocab_size=6561,
        token_size=512,
        speaker_size=192,
        num_mels=80,
        encoder=None,
        estimator=None,
        matching=None,
        num_emotions=0,
    ):
        super().__init__()
        self.arguments = {
            "vocab_size": int(vocab_size),
            "token_size": int(token_size),
            "speaker_size": int(speaker_size),
            "num_mels": int(num_mels),
            "encoder": dict(encoder or {}),
            "estimator": dict(estimator or {}),
            "matching": dict(matching or {}),
            "num_emotions": int(num_emotions),
        }
        self.input_embedding = nn.Embedding(vocab_size, token_size)
        self.spk_embed_affine_layer = nn.Linear(speaker_size, num_mels)
        self.encoder = UpsamplingConformer(input_size=token_size, **(encoder or {}))
        self.encoder_proj = nn.Linear(self.encoder.size, num_mels)
        net = CausalUNet(
            num_mels=num_mels,
            chunk_size=self.encoder.chunk_size * self.encoder.upsampling,
            **(estimator or {}),
        )
        self.decoder = FlowMatching(net, **(matching or {}))
        self.emotion = TokenEmotion(num_emotions, token_size) if num_emotions else None

    @property
    def vocab_size(self):
        """Speech tokens that are known."""
        return self.input_embedding.num_embeddings

    @property
    def num_mels(self):
        """Mel bins F."""
        return self.encoder_proj.out_features

    @property
    def speaker_size(self):
        """Size of the speaker vector."""
        return self.spk_embed_affine_layer.in_features

    def save(self, folder):
        """Write the folder that :func:`load_flow` reads."""
        save_stored(self, folder, "flow", self.arguments)

    def embed(self, tokens, emotions=None, intensities=None):
        """Token embeddings, with the emotion where the model takes one.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (B, T) below ``vocab_size``.
        emotions, intensities : torch.Tensor, optional
            Of :class:`TokenEmotion`. None: not known.

        Returns
        -------
        torch.Tensor
            float (B, T, token_size).

        Raises
        ------
        ValueError
            If a token does not exist, or emotions are given to a model without them.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise ValueError(
                f"tokens lie in [{int(tokens.min())}, {int(tokens.max())}]; allowed are 0 to "
                f"{self.vocab_size - 1}: take special tokens out first"
            )
        x = self.input_embedding(tokens)
        if emotions is None:
            return x
        if self.emotion is None:
            raise ValueError("emotions are given, but this flow has none: build it with num_emotions > 0")
        if intensities is None:
            intensities = torch.ones(emotions.shape, device=emotions.device)
        return x + self.emotion(emotions, intensities.to(x))

    def speaker_condition(self, speaker):
        """Speaker vector (B, speaker_size), scaled to length 1 and projected to (B, F)."""
        return self.spk_embed_affine_layer(F.normalize(speaker, dim=1))

    def loss(
        self,
        tokens,
        num_tokens,
        mel,
        num_frames,
        speaker,
        draws,
        streaming=False,
        emotions=None,
        intensities=None,
        prior_weight=0.0,
    ):
        """Flow-matching loss of a padded batch.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (B, T); padding may hold any token.
        num_tokens : torch.Tensor
            int64 (B,).
        mel : torch.Tensor
            Natural logarithm, float (B, frames, F).
        num_frames : torch.Tensor
            int64 (B,); at most ``upsampling`` frames a token, what is beyond is left out.
        speaker : torch.Tensor
            float (B, speaker_size).
        draws : FlowDraws
            Of this batch.
        streaming : bool
            Train with chunk masks.
        emotions, intensities : torch.Tensor, optional
            Of :meth:`embed`.
        prior_weight : float
            Of the squared error of the encoder's own frames (the prior loss of Grad-TTS, Popov et al. 2021,
            https://arxiv.org/abs/2105.06337, section 3.3). CosyVoice 2 has none; a small model that trains from
            nothing learns where the sounds are much sooner with it.

        Returns
        -------
        tuple of torch.Tensor
            Sum and count, as in :meth:`FlowMatching.loss`.
        """
        mu, available = self.encode(tokens, num_tokens, streaming, emotions, intensities)
        length = min(mu.shape[2], mel.shape[1])
        num_frames = torch.minimum(num_frames, available)
        mu, mel = mu[:, :, :length], mel[:, :length].transpose(1, 2)
        valid = frame_mask(num_frames, length)[:, None].to(mel)
        prompt = frame_mask(draws.prompt_frames.to(num_frames), length)[:, None].to(mel)
        draws = replace(draws, noise=draws.noise[:, :, :length])
        error, count = self.decoder.loss(
            mel * valid, valid, mu, self.speaker_condition(speaker), mel * prompt * valid, draws, streaming
        )
        if prior_weight:
            error = error + prior_weight * ((mu - mel).square() * valid).sum()
        return error, count

    @torch.no_grad()
    def start_from_levels(self, levels):
        """Start token embeddings from the levels that tokens are made of; see ``SpeechTokenLM.start_from_levels``.

        Arguments
        ---------
        levels : sequence of int
            Of the quantiser.

        Raises
        ------
        ValueError
            If they make another number of tokens.
        """
        spread_levels(self.input_embedding.weight, levels)

    def encode(self, tokens, num_tokens, streaming=False, emotions=None, intensities=None, **context):
        """Frames of the encoder, projected to mel bins.

        Arguments
        ---------
        tokens, num_tokens, streaming, emotions, intensities
            As in :meth:`loss`.
        **context
            ``look_ahead_given``, ``left_chunks`` and ``keep_first`` of :class:`UpsamplingConformer`.

        Returns
        -------
        tuple of torch.Tensor
            float (B, F, frames) and int64 (B,).
        """
        x = self.embed(tokens, emotions, intensities)
        h, num_frames = self.encoder(x, num_tokens, streaming=streaming, **context)
        return self.encoder_proj(h).transpose(1, 2), num_frames

    @torch.inference_mode()
    def generate(
        self,
        tokens,
        prompt_tokens,
        prompt_mel,
        speaker,
        num_tokens=None,
        num_prompt_tokens=None,
        num_prompt_frames=None,
        streaming=False,
        finalize=True,
        left_chunks=None,
        noise=None,
        num_steps=None,
        guidance=None,
        emotions=None,
        intensities=None,
    ):
        """Mel of the tokens that follow a prompt; a row is the same alone and in any batch.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (B, T).
        prompt_tokens : torch.Tensor
            int64 (B, P), P may be 0.
        prompt_mel : torch.Tensor
            Natural logarithm, float (B, prompt frames, F), ``upsampling`` frames a prompt token.
        speaker : torch.Tensor
            float (B, speaker_size).
        num_tokens, num_prompt_tokens, num_prompt_frames : torch.Tensor, optional
            int64 (B,). None: no padding.
        streaming : bool
            Chunk masks, as :class:`FlowStream` computes chunk by chunk.
        finalize : bool
            False: the last ``look_ahead`` tokens are only looked at.
        left_chunks : int, optional
            In streaming, chunks behind the own one that are seen beside those of the prompt; None: all.
        noise : torch.Tensor, optional
            Start of the flow, (B or 1, F, prompt frames + frames). None: the fixed noise of the model.
        num_steps, guidance : int, float, optional
            Of the solver.
        emotions, intensities : torch.Tensor, optional
            Of :meth:`embed`, for the tokens; those of the prompt are not known.

        Returns
        -------
        MelBatch
            Without the prompt.

        Raises
        ------
        ValueError
            If a row has too few tokens, or a voice prompt that is longer than what there is to say with it.
        """
        batch = tokens.shape[0]

        def counts(given, size):
            return torch.full((batch,), size, device=tokens.device) if given is None else given

        num_tokens = counts(num_tokens, tokens.shape[1])
        num_prompt_tokens = counts(num_prompt_tokens, prompt_tokens.shape[1])
        num_prompt_frames = counts(num_prompt_frames, prompt_mel.shape[1])
        joined = _join_rows(prompt_tokens, num_prompt_tokens, tokens, num_tokens)
        if emotions is not None:
            unknown = torch.full_like(prompt_tokens, -1)
            emotions = _join_rows(unknown, num_prompt_tokens, emotions, num_tokens)
            if intensities is not None:
                none = torch.zeros_like(unknown, dtype=intensities.dtype)
                intensities = _join_rows(none, num_prompt_tokens, intensities, num_tokens)
        keep_tokens = self._kept_of_prompt(int(num_prompt_tokens.max())) if left_chunks is not None else 0
        mu, num_frames = self.encode(
            joined,
            num_prompt_tokens + num_tokens,
            streaming,
            emotions,
            intensities,
            look_ahead_given=not finalize,
            left_chunks=left_chunks,
            keep_first=keep_tokens,
        )
        if bool((num_prompt_frames >= num_frames).any()):
            raise ValueError(
                f"the prompt's mel has {num_prompt_frames.tolist()} frames, prompt and text together have "
                f"{num_frames.tolist()}: give {self.encoder.upsampling} frames for each prompt token"
            )
        length = mu.shape[2]
        cond = torch.zeros_like(mu)
        shown = min(length, prompt_mel.shape[1])
        cond[:, :, :shown] = prompt_mel[:, :shown].transpose(1, 2)
        cond = cond * frame_mask(num_prompt_frames, length)[:, None]
        mask = frame_mask(num_frames, length)[:, None].to(mu)
        mel = self.decoder.solve(
            mu * mask,
            None if bool(mask.all()) else mask,
            self.speaker_condition(speaker),
            cond,
            noise=noise,
            num_steps=num_steps,
            guidance=guidance,
            streaming=streaming,
            left_chunks=left_chunks,
            keep_first=keep_tokens * self.encoder.upsampling,
        )
        left = num_frames - num_prompt_frames
        out = mel.new_zeros(batch, mel.shape[1], int(left.max()))
        for row, (first, last) in enumerate(
            zip(num_prompt_frames.tolist(), num_frames.tolist(), strict=True)
        ):
            out[row, :, : last - first] = mel[row, :, first:last]
        return MelBatch(out, left)

    def _kept_of_prompt(self, num_prompt_tokens):
        chunk = self.encoder.chunk_size
        return -(-num_prompt_tokens // chunk) * chunk

    def stream(self, prompt_tokens, prompt_mel, speaker, **options):
        """Begin a stream; see :class:`FlowStream`.

        Example
        -------
        >>> flow = tiny_flow(vocab_size=10).eval()
        >>> stream = flow.stream(torch.tensor([5, 6]), torch.zeros(4, 8), torch.randn(6))
        >>> first = stream.push(torch.tensor([1, 2, 3, 4, 5]))
        >>> first.shape[2] + stream.finish().shape[2]
        10
        """
        return FlowStream(self, prompt_tokens, prompt_mel, speaker, **options)


def _join_rows(first, num_first, second, num_second):
    """Valid parts of two padded batches behind each other, padded with zeros on the right."""
    rows = [
        torch.cat([a[:n], b[:m]])
        for a, n, b, m in zip(first, num_first.tolist(), second, num_second.tolist(), strict=True)
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class FlowStream:
    """Mel chunk by chunk while tokens arrive; nothing that was computed is computed again.

    A chunk is ``chunk_size`` tokens of the sequence that the prompt begins, computed as soon as the
    ``look_ahead`` tokens behind it are there. Convolutions, keys and values of every layer, and those of the
    velocity network at every Euler step, are kept; with ``left_chunks=None`` the result is that of
    ``generate(streaming=True)`` on everything at once. The chunks that the prompt fills are computed when the
    stream begins; :meth:`clone` a stream to begin many sentences in one voice.

    Arguments
    ---------
    flow : TokenToMel
        In eval mode.
    prompt_tokens : torch.Tensor
        int64 (P,), P may be 0.
    prompt_mel : torch.Tensor
        float (prompt frames, F).
    speaker : torch.Tensor
        float (speaker_size,).
    left_chunks : int, optional
        Chunks that are kept behind the current one beside those of the prompt; None keeps all. At the
        published size a frame takes 4.6 MB in float32.
    last_chunk : str
        ``chunked``: :meth:`finish` goes on from the caches. ``full``: it computes the sequence again without chunk
        masks and gives the frames that are still missing, as the published pipeline does.
    num_steps, guidance : int, float, optional
        Of the solver.

    Raises
    ------
    ValueError
        If an argument is not allowed.
    """

    def __init__(
        self,
        flow,
        prompt_tokens,
        prompt_mel,
        speaker,
        left_chunks=None,
        last_chunk="chunked",
        num_steps=None,
        guidance=None,
    ):
        if flow.training:
            raise ValueError("the flow is in training mode: call eval() before streaming")
        if last_chunk not in LAST_CHUNK:
            raise ValueError(f"last_chunk is {last_chunk!r}; allowed are {LAST_CHUNK}")
        if left_chunks is not None and left_chunks < 0:
            raise ValueError(f"left_chunks is {left_chunks}; allowed are 0 and above, or None for all")
        self.flow, self.last_chunk = flow, last_chunk
        self.options = {"num_steps": num_steps, "guidance": guidance}
        self.left_chunks = left_chunks
        self.prompt_tokens, self.prompt_mel, self.speaker = prompt_tokens, prompt_mel, speaker
        encoder = flow.encoder
        self.chunk, self.rate = encoder.chunk_size, encoder.upsampling
        kept = flow._kept_of_prompt(len(prompt_tokens))
        last = None if left_chunks is None else left_chunks * self.chunk
        steps = flow.decoder.num_steps if num_steps is None else num_steps

        def cache(rate):
            return ChunkCache(kept * rate, None if last is None else last * rate)

        self.encoder_caches = (cache(1), cache(self.rate))
        self.step_caches = [cache(self.rate) for _ in range(steps)]
        with torch.inference_mode():
            self.condition = flow.speaker_condition(speaker[None])
        self.tokens = torch.zeros(0, dtype=torch.int64, device=prompt_tokens.device)
        self.emotions = torch.zeros(0, dtype=torch.int64, device=prompt_tokens.device)
        self.intensities = torch.zeros(0, device=prompt_tokens.device)
        self.done = 0
        self.finished = False
        unknown = torch.full_like(prompt_tokens, -1)
        self._append(prompt_tokens, unknown, torch.zeros(len(unknown), device=unknown.device))
        self._early = self._complete_chunks()

    def _append(self, tokens, emotions, intensities):
        if emotions is None:
            emotions = torch.full_like(tokens, -1)
        if intensities is None:
            intensities = torch.ones(len(tokens), device=tokens.device)
        self.tokens = torch.cat([self.tokens, tokens])
        self.emotions = torch.cat([self.emotions, emotions])
        self.intensities = torch.cat([self.intensities, intensities.to(self.intensities)])

    def push(self, tokens, emotions=None, intensities=None):
        """Take tokens and give the frames that they complete.

        Arguments
        ---------
        tokens : torch.Tensor
            int64 (n,).
        emotions, intensities : torch.Tensor, optional
            (n,), of :class:`TokenEmotion`.

        Returns
        -------
        torch.Tensor
            Mel without the prompt, float (1, F, frames); often no frame.

        Raises
        ------
        ValueError
            If the stream has ended or a token does not exist.
        """
        if self.finished:
            raise ValueError("the stream has ended: begin another one")
        self._append(tokens, emotions, intensities)
        early, self._early = self._early, None
        parts = ([] if early is None else [early]) + [self._complete_chunks()]
        return torch.cat(parts, dim=2)

    def finish(self):
        """Give the frames that are still missing; the stream has then ended.

        Returns
        -------
        torch.Tensor
            float (1, F, frames).

        Raises
        ------
        ValueError
            If it has ended before, or no token was pushed.
        """
        if self.finished:
            raise ValueError("the stream has ended: begin another one")
        if len(self.tokens) == len(self.prompt_tokens):
            raise ValueError("no token was pushed: there is nothing to say")
        self.finished = True
        parts = [] if self._early is None else [self._early]
        self._early = None
        if self.last_chunk == "full":
            emitted = max(0, self.done * self.rate - len(self.prompt_mel))
            parts.append(self._again()[:, :, emitted:])
        else:
            while self.done < len(self.tokens):
                parts.append(self._chunk(min(self.chunk, len(self.tokens) - self.done)))
        return torch.cat(parts, dim=2)

    def _again(self):
        number = len(self.prompt_tokens)
        known = self.flow.emotion is not None
        return self.flow.generate(
            self.tokens[None, number:],
            self.prompt_tokens[None],
            self.prompt_mel[None],
            self.speaker[None],
            emotions=self.emotions[None, number:] if known else None,
            intensities=self.intensities[None, number:] if known else None,
            **self.options,
        ).mel

    @torch.inference_mode()
    def _complete_chunks(self):
        parts = [self.condition.new_zeros(1, self.flow.num_mels, 0)]
        while len(self.tokens) - self.done >= self.chunk + self.flow.encoder.look_ahead:
            parts.append(self._chunk(self.chunk))
        return torch.cat(parts, dim=2)

    @torch.inference_mode()
    def _chunk(self, size):
        flow, start = self.flow, self.done
        wanted = start + size + flow.encoder.look_ahead
        part = slice(start, wanted)
        known = flow.emotion is not None
        x = flow.embed(
            self.tokens[None, part],
            self.emotions[None, part] if known else None,
            self.intensities[None, part] if known else None,
        )
        missing = max(0, wanted - len(self.tokens))
        frames = flow.encoder.encode_chunk(x, start, self.encoder_caches, missing)
        mu = flow.encoder_proj(frames).transpose(1, 2)
        first, stop = start * self.rate, start * self.rate + mu.shape[2]
        cond = torch.zeros_like(mu)
        shown = self.prompt_mel[first:stop].T
        cond[0, :, : shown.shape[1]] = shown
        mel = flow.decoder.solve(
            mu,
            None,
            self.condition,
            cond,
            noise=flow.decoder.fixed_noise(first, stop, mu),
            caches=self.step_caches,
            **self.options,
        )
        for cache in self.step_caches:
            cache.trim()
        self.done += size
        return mel[:, :, max(0, len(self.prompt_mel) - first) :]

    def clone(self):
        """A copy that goes on by itself: the prompt is computed once, sentences begin from copies."""
        copy = object.__new__(FlowStream)
        copy.__dict__.update(self.__dict__)
        copy.encoder_caches = tuple(cache.clone() for cache in self.encoder_caches)
        copy.step_caches = [cache.clone() for cache in self.step_caches]
        return copy

    def num_bytes(self):
        """Memory of the caches."""
        return sum(cache.num_bytes() for cache in (*self.encoder_caches, *self.step_caches))


def load_flow(folder):
    """A flow from the folder that a training or ``speechbrain_emo convert`` wrote.

    Arguments
    ---------
    folder : str or pathlib.Path
        With ``config.json`` and ``model.safetensors``.

    Returns
    -------
    TokenToMel
        In eval mode.

    Raises
    ------
    ValueError
        If it is no such folder or the weights do not fit.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> tiny_flow(vocab_size=7).save(folder)
    >>> load_flow(folder).vocab_size
    7
    """
    return load_stored(folder, {"flow": TokenToMel})


def tiny_flow(vocab_size=6561, speaker_size=6, num_mels=8, num_emotions=0, chunk_size=4, **matching):
    """A flow of the same classes that computes in milliseconds, for examples and tests.

    Arguments
    ---------
    vocab_size, speaker_size, num_mels, num_emotions : int
        Of :class:`TokenToMel`.
    chunk_size : int
        Tokens of a chunk.
    **matching
        Arguments of :class:`FlowMatching`.

    Returns
    -------
    TokenToMel

    Example
    -------
    >>> tiny_flow(vocab_size=9).vocab_size
    9
    """
    return TokenToMel(
        vocab_size=vocab_size,
        token_size=16,
        speaker_size=speaker_size,
        num_mels=num_mels,
        encoder={
            "size": 16,
            "num_heads": 2,
            "hidden_size": 32,
            "num_layers": 2,
            "num_up_layers": 1,
            "chunk_size": chunk_size,
        },
        estimator={"channels": 16, "num_blocks": 1, "num_mid_blocks": 2, "num_heads": 2, "head_size": 8},
        matching={"num_steps": 3, "num_noise_frames": 400, **matching},
        num_emotions=num_emotions,
    )
