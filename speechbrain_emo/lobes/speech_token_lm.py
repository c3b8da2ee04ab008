"""The speech-token language model of CosyVoice 2 with E-FiLM on its text embeddings.

CosyVoice 2 (Du et al. 2024, https://arxiv.org/abs/2412.10117, section 2.3): a Qwen2 body, an embedding of two
markers (sos 0, task 1), an embedding and a head of the V speech tokens and three more: V ends, V + 2 asks for text,
V + 1 is not used. "Emo-FiLM" (arXiv 2509.20378): text embeddings are modulated by the emotion of each token
(``e_film.py``). Names and shapes of parameters are those of the published ``llm.pt``; the modulation is ``film.*``.

Axis letters: B batch, S text tokens, T speech tokens, P positions, D embedding, V speech tokens, W words.
"""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from speechbrain_emo.lobes import token_layout
from speechbrain_emo.lobes.e_film import EFiLM
from speechbrain_emo.lobes.fsq import spread_levels
from speechbrain_emo.lobes.stored import CONFIG, WEIGHTS, save_stored

#: What only the body's own text output uses; tied to the embedding in the published model and never needed here.
UNUSED = "llm.model.lm_head.weight"
#: Qwen2.5-0.5B, the body of CosyVoice2-0.5B; a test holds it to hparams/backbones/cosyvoice2.yaml.
PUBLISHED_ARCHITECTURE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
#: Of :func:`with_precision`.
PRECISIONS = ("fp32", "bf16", "int8")
#: What ``config.json`` of a stored model says.
KIND = "speech_token_lm"


@dataclass(frozen=True)
class TokenBatch:
    """Sentences with their speech tokens.

    Arguments
    ---------
    text : torch.Tensor
        int64 (B, S), any value on padding.
    text_lengths : torch.Tensor
        int64 (B,).
    emotions : torch.Tensor
        int64 (B, S).
    intensities : torch.Tensor
        (B, S): int64 levels, or float32 in [0, 1].
    speech : torch.Tensor
        int64 (B, T) below V, any value below V on padding.
    speech_lengths : torch.Tensor
        int64 (B,).
    interleave : torch.Tensor
        bool (B,): rows in which text and speech take turns (:mod:`token_layout`).
    text_words, speech_words : torch.Tensor
        int64 (B, S) and (B, T): number of the word that a token belongs to, -1 for none.
    word_labels : torch.Tensor
        int64 (B, W): emotion of each word, -100 where unknown or padding.
    keys : tuple of str
        Ids of the records.
    """

    text: torch.Tensor
    text_lengths: torch.Tensor
    emotions: torch.Tensor
    intensities: torch.Tensor
    speech: torch.Tensor
    speech_lengths: torch.Tensor
    interleave: torch.Tensor
    text_words: torch.Tensor
    speech_words: torch.Tensor
    word_labels: torch.Tensor
    keys: tuple = ()

    def to(self, device, **options):
        """The batch on a device."""
        tensors = {k: v.to(device, **options) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **tensors)


@dataclass
class TokenOutput:
    """What the model says about a batch with the true tokens as history.

    Arguments
    ---------
    logits : torch.Tensor
        (M, V + 3): every position that predicts something, rows one after another.
    targets : torch.Tensor
        int64 (M,): speech token, V (end) or V + 2 (fill).
    text : torch.Tensor
        Modulated text embeddings, (B, S, D).
    states : torch.Tensor
        (B, T, D): the body's state that predicts each speech token; it has not seen that token.
    spoken : torch.Tensor
        bool (M,): which of them are speech tokens.
    places : tuple of torch.Tensor
        Row and number of the speech token of each of those.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    text: torch.Tensor
    states: torch.Tensor
    spoken: torch.Tensor
    places: tuple

    def speech_logits(self):
        """Scores of speech tokens in the states that predict them: (B, T, V), zero on padding.

        Made on request: at V = 6561 it is the largest tensor of a training step, and one objective alone needs it.
        """
        size = self.logits.shape[1] - 3
        made = self.logits.new_zeros(*self.states.shape[:2], size)
        return made.index_put(self.places, self.logits[self.spoken][:, :size])


class _Body(nn.Module):
    """Holds the Qwen2 model under the published name ``llm.model``."""

    def __init__(self, model):
        super().__init__()
        self.model = model


class SpeechTokenLM(nn.Module):
    """Text tokens with emotions to speech tokens.

    Arguments
    ---------
    architecture : mapping
        Arguments of ``transformers.Qwen2Config``, as in ``hparams/backbones/cosyvoice2.yaml``. Weights are random until
        they are loaded.
    num_emotions : int
        Labels of the markup.
    num_speech_tokens : int
        V. Published: 6561.
    num_intensities : int
        Levels of the markup.
    film_mode : str
        ``film`` (the paper's), ``addition`` (its ablation) or ``none``: emotions change nothing.
    intensity : str
        ``discrete`` or ``continuous``.
    film_init_std : float
        See :class:`EFiLM`.
    attn_implementation : str
        ``sdpa`` or ``eager``.
    token_dropout : float
        Share of speech tokens that are blank to the model while their embedding trains, each by chance. Speech tells so
        much about the next token that a small model hardly reads its text; what is missing must be read. Not in the
        papers; a property of the training that is not stored.

    Raises
    ------
    ValueError
        If the architecture is no Qwen2 or a number does not fit.

    Example
    -------
    >>> tiny = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    ...         "num_attention_heads": 2, "num_key_value_heads": 1}
    >>> model = SpeechTokenLM(tiny, num_emotions=5, num_speech_tokens=27)
    >>> model.end_token, model.fill_token, model.size
    (27, 29, 16)
    """

    def __init__(
        self,
        architecture,
        num_emotions,
        num_speech_tokens=6561,
        num_intensities=3,
        film_mode="film",
        intensity="discrete",
        film_init_std=1e-3,
        attn_implementation="sdpa",
        token_dropout=0.0,
    ):
        super().__init__()
        architecture = dict(architecture)
        if architecture.pop("model_type", "qwen2") != "qwen2":
            raise ValueError("the body of a speech-token language model is a qwen2; give its architecture")
        if film_mode not in ("film", "addition", "none"):
            raise ValueError(f"film_mode is {film_mode!r}; allowed: film, addition, none")
        if not 0 <= token_dropout < 1:
            raise ValueError(f"token_dropout is {token_dropout}; it lies in [0, 1)")
        self.token_dropout = float(token_dropout)
        if num_speech_tokens < 1:
            raise ValueError(f"num_speech_tokens is {num_speech_tokens}; it must be at least 1")
        self.arguments = {
            "architecture": _plain(architecture),
            "num_emotions": int(num_emotions),
            "num_speech_tokens": int(num_speech_tokens),
            "num_intensities": int(num_intensities),
            "film_mode": film_mode,
            "intensity": intensity,
            "film_init_std": float(film_init_std),
        }
        config = Qwen2Config(**architecture)
        self.size, self.num_speech_tokens = int(config.hidden_size), int(num_speech_tokens)
        self.num_emotions, self.num_intensities = int(num_emotions), int(num_intensities)
        self.llm = _Body(AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation))
        # The body only ever predicts speech tokens.
        self.llm.model.lm_head.requires_grad_(config.tie_word_embeddings)
        self.llm_embedding = nn.Embedding(2, self.size)
        self.llm_decoder = nn.Linear(self.size, self.num_speech_tokens + 3)
        self.speech_embedding = nn.Embedding(self.num_speech_tokens + 3, self.size)
        std = config.initializer_range
        for embedding in (self.llm_embedding, self.speech_embedding):
            nn.init.normal_(embedding.weight, std=std)
        self.film = None
        if film_mode != "none":
            self.film = EFiLM(
                self.size,
                num_emotions,
                num_intensities,
                intensity,
                film_mode,
                film_init_std,
                embedding_scale=std,
            )

    @torch.no_grad()
    def start_from_levels(self, levels):
        """Start embedding and head of speech tokens from what the tokens are made of.

        Random rows must learn each of V tokens by itself, and small data hold most of them a few times only. Here
        tokens that share levels of the quantiser start alike, in the input and in the scores. Not in the papers, whose
        data are large; names and shapes stay.

        Arguments
        ---------
        levels : sequence of int
            Of the quantiser (``lobes/fsq.py``).

        Raises
        ------
        ValueError
            If they make another number of tokens.

        Example
        -------
        >>> model = SpeechTokenLM({"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        ...                        "num_attention_heads": 2, "num_key_value_heads": 1}, 4, num_speech_tokens=9)
        >>> model.start_from_levels([3, 3])
        >>> row = model.speech_embedding.weight
        >>> torch.allclose(row[1] - row[0], row[4] - row[3], atol=1e-6)  # the same step of the first dimension
        True
        """
        for weight in (self.speech_embedding.weight, self.llm_decoder.weight):
            spread_levels(weight[: self.num_speech_tokens], levels)

    # -- facts ---------------------------------------------------------------------------------------------

    @property
    def end_token(self):
        """V: the utterance is over."""
        return self.num_speech_tokens

    @property
    def fill_token(self):
        """V + 2: more text, please."""
        return self.num_speech_tokens + 2

    @property
    def body(self):
        """The Qwen2 model without its own head."""
        return self.llm.model.model

    def trainable_groups(self):
        """What a phase may train: name -> list of modules.

        ``film`` the emotion encoder and the modulation, ``head`` the head of speech tokens (the paper's two),
        ``speech_embedding``, ``markers``, ``text_embedding`` and ``body`` (the layers).
        """
        groups = {
            "head": [self.llm_decoder],
            "speech_embedding": [self.speech_embedding],
            "markers": [self.llm_embedding],
            "text_embedding": [self.body.embed_tokens],
            "body": [self.body.layers, self.body.norm],
        }
        if self.film is not None:
            groups["film"] = [self.film]
        return groups

    def weights(self):
        """Parameters by name, without the body's unused text output; what is saved."""
        return {k: v for k, v in self.state_dict().items() if k != UNUSED}

    def save(self, folder):
        """Write the folder that :func:`load_speech_token_lm` reads."""
        save_stored(_Weights(self), folder, KIND, self.arguments)

    def load_weights(self, state, without_film=False):
        """Load :meth:`weights`, or those of a published ``llm.pt``.

        Arguments
        ---------
        state : dict
            Name -> tensor. The unused text output may be there or not.
        without_film : bool
            Whether the modulation may be missing (it is, in published files); it keeps its weights then.

        Raises
        ------
        ValueError
            With the names that are missing or unknown, or have another shape.
        """
        own = self.weights()
        state = {k: v for k, v in state.items() if k != UNUSED}
        missing = [k for k in own if k not in state and not (without_film and k.startswith("film."))]
        unknown = [k for k in state if k not in own]
        shapes = [
            f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ]
        if missing or unknown or shapes:
            raise ValueError(
                f"the weights do not fit the language model: {len(missing)} missing {missing[:3]}, {len(unknown)} "
                f"unknown {unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}"
            )
        self.load_state_dict(state, strict=False)
        if self.film is not None and without_film and not any(k.startswith("film.") for k in state):
            # beta starts in proportion to the embeddings that it is added to, which are known only now.
            scale = float(self.body.embed_tokens.weight.detach().float().square().mean().sqrt())
            std = float(self.film.projection.weight[: self.size].detach().float().std())
            self.film.reset(std, scale)

    # -- embeddings ----------------------------------------------------------------------------------------

    def embed_text(self, text, emotions, intensities):
        """Text embeddings modulated by emotion.

        Arguments
        ---------
        text, emotions : torch.Tensor
            int64 (..., S).
        intensities : torch.Tensor
            int64 levels or float in [0, 1], (..., S).

        Returns
        -------
        torch.Tensor
            (..., S, D).
        """
        embedded = self.body.embed_tokens(text)
        return embedded if self.film is None else self.film(embedded, emotions, intensities)

    def marker(self, number):
        """Embedding (1, D) of sos (0) or task (1)."""
        return self.llm_embedding.weight[number : number + 1]

    def run_body(self, embeddings, mask=None, positions=None, cache=None):
        """States of the body.

        Arguments
        ---------
        embeddings : torch.Tensor
            (B, P, D).
        mask : torch.Tensor, optional
            int64 (B, past + P): 1 on what may be attended to.
        positions : torch.Tensor, optional
            int64 (B, P).
        cache : transformers.Cache, optional
            Keys and values of the past; gets those of these positions.

        Returns
        -------
        torch.Tensor
            (B, P, D), after the last norm.
        """
        return self.body(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def pack(self, batch, text):
        """Sequences of a batch, padded right.

        Arguments
        ---------
        batch : TokenBatch
            On the model's device.
        text : torch.Tensor
            Modulated text embeddings (B, S, D).

        Returns
        -------
        tuple
            Embeddings (B, P, D); mask int64 (B, P); targets int64 (B, P) as of :class:`token_layout.Layout`, on the
            CPU.
        """
        layouts = [
            (token_layout.interleaved if turns else token_layout.whole_text)(num_text, num_speech)
            for num_text, num_speech, turns in zip(
                batch.text_lengths.tolist(), batch.speech_lengths.tolist(), batch.interleave.tolist()
            )
        ]
        longest = max(len(layout.kinds) for layout in layouts)
        num_rows, num_text, num_speech = len(layouts), batch.text.shape[1], batch.speech.shape[1]
        speech = self.speech_embedding(batch.speech)
        if self.token_dropout and self.speech_embedding.training:
            speech = (
                speech
                * (torch.rand(batch.speech.shape, device=speech.device) >= self.token_dropout)[..., None]
            )
        # One table: the two markers, all text, all speech, and a zero for padding.
        table = torch.cat(
            [
                self.llm_embedding.weight,
                text.reshape(-1, self.size),
                speech.reshape(-1, self.size),
                text.new_zeros(1, self.size),
            ]
        )
        padding = len(table) - 1
        index = np.full((num_rows, longest), padding)
        targets = np.full((num_rows, longest), token_layout.IGNORE)
        mask = np.zeros((num_rows, longest), dtype=np.int64)
        for row, layout in enumerate(layouts):
            size = len(layout.kinds)
            places = np.where(layout.kinds == token_layout.TASK, 1, 0)
            is_text, is_speech = layout.kinds == token_layout.TEXT, layout.kinds == token_layout.SPEECH
            places = np.where(is_text, 2 + row * num_text + layout.indices, places)
            first = 2 + num_rows * num_text + row * num_speech
            places = np.where(is_speech, first + layout.indices, places)
            index[row, :size], targets[row, :size], mask[row, :size] = places, layout.targets, 1
        device = table.device
        embeddings = table[torch.from_numpy(index).to(device)]
        return embeddings, torch.from_numpy(mask).to(device), torch.from_numpy(targets)

    def forward(self, batch):
        """Scores of every token that is to be predicted.

        Arguments
        ---------
        batch : TokenBatch
            On the model's device.

        Returns
        -------
        TokenOutput
        """
        text = self.embed_text(batch.text, batch.emotions, batch.intensities)
        embeddings, mask, targets = self.pack(batch, text)
        states = self.run_body(embeddings, mask)
        device = states.device
        row, position = torch.nonzero(targets != token_layout.IGNORE, as_tuple=True)
        which = targets[row, position].to(device)
        row, position = row.to(device), position.to(device)
        chosen = states[row, position]
        logits = self.llm_decoder(chosen)
        spoken = which >= 0
        true = batch.speech[row, which.clamp(min=0)]
        special = torch.where(which == token_layout.END, self.end_token, self.fill_token)
        where = (row[spoken], which[spoken])
        shape = (len(batch.speech), batch.speech.shape[1])
        return TokenOutput(
            logits=logits,
            targets=torch.where(spoken, true, special),
            text=text,
            states=states.new_zeros(*shape, self.size).index_put(where, chosen[spoken]),
            spoken=spoken,
            places=where,
        )


def with_precision(model, precision):
    """A copy of a language model with smaller weights, for speech on a CPU: reading them is what a token waits for.

    Arguments
    ---------
    model : SpeechTokenLM
        In eval mode; stays as it is.
    precision : str
        ``fp32``: the model itself; ``bf16``: all weights in bfloat16; ``int8``: the weights of linear layers as int8
        with a scale each, activations quantised as they come (torch's dynamic quantisation).

    Returns
    -------
    SpeechTokenLM
        Cannot be trained or saved unless fp32.

    Raises
    ------
    ValueError
        If the precision is unknown.

    Example
    -------
    >>> with_precision(None, "fp8")
    Traceback (most recent call last):
    ValueError: precision is 'fp8'; allowed: fp32, bf16, int8
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return model
    if precision == "bf16":
        return copy.deepcopy(model).to(torch.bfloat16)
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class _Weights:
    """What is saved: tied weights once, the unused text output not at all."""

    def __init__(self, lm):
        self.state_dict = lm.weights


def _plain(value):
    """Data that JSON holds, from what a YAML reader wraps."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise ValueError(f"{value!r} is no plain data")


def load_speech_token_lm(folder, **changes):
    """A language model from the folder that a training or ``speechbrain_emo convert`` wrote.

    Arguments
    ---------
    folder : str or pathlib.Path
        With ``config.json`` and ``model.safetensors``.
    **changes
        Arguments of :class:`SpeechTokenLM` that differ from the stored ones, such as ``attn_implementation``.

    Returns
    -------
    SpeechTokenLM
        In eval mode.

    Raises
    ------
    ValueError
        If it is no such folder, or the weights do not fit.

    Example
    -------
    >>> load_speech_token_lm("nowhere")
    Traceback (most recent call last):
    ValueError: nowhere lacks config.json or model.safetensors: ...
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} lacks {CONFIG} or {WEIGHTS}: give the folder that a training or `speechbrain_emo convert` wrote"
        )
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("kind") != KIND:
        raise ValueError(f"{folder / CONFIG}: kind is {config.get('kind')!r}; a {KIND} is needed")
    model = SpeechTokenLM(**{**config["arguments"], **changes})
    model.load_weights(load_file(str(folder / WEIGHTS)))
    return model.eval()
