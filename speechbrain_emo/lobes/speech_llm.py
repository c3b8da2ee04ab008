"""A frozen causal language model that reads speech in open positions of its prompt.

The model itself comes from ``transformers``, its low-rank adapters from ``peft``. What is added here: speech
embeddings put in place of token embeddings, a loss that never computes logits of the prompt, batched
generation, and label scores that compute the shared prompt once.

Axis letters: B rows, P packed positions, N audios, S positions of a slot, d embedding size, V vocabulary,
K candidates, A answer positions of a batch.
"""

import contextlib
import copy
import functools
import importlib.util
import json
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from speechbrain_emo.lobes.partial_lora import PartialLoRA, is_partial

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
IGNORED_LABEL = -100
ROW_MULTIPLE = 64  # of hidden states in one computation of logits
ADAPTER_WEIGHTS, ADAPTER_CONFIG, BASE_WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "model.safetensors",
)

# The sizes in the models' published config.json files; what a dry run builds without downloading anything.
PUBLISHED_ARCHITECTURES = {
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "lmsys/vicuna-7b-v1.5": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}

# A decoder layer that applies dropout of its own would draw another mask when it is recomputed in eval mode.
_LAYER_DROPOUTS = ("hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "residual_dropout", "dropout")
# Settings of an adapter that its weights' shapes do not show, but that change what they compute.
_ADAPTER_SETTINGS = (
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
)
# Models that change the logits after the output layer; the answer-only loss would skip that.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class AnswerLoss:
    """Sums over the answer tokens of a batch. The caller divides, by the number of its choice.

    Arguments
    ---------
    weighted_sum : torch.Tensor
        Sum of weight times negative log-likelihood (nats); float32 scalar with a gradient.
    weight : torch.Tensor
        Sum of the weights, float32 scalar.
    nll_sum : torch.Tensor
        Unweighted sum of the negative log-likelihoods (nats); float32 scalar, detached.
    num_tokens : torch.Tensor
        Number A of answer tokens, int64 scalar.
    num_correct : torch.Tensor
        How many of them the arg-max predicts, int64 scalar.

    Example
    -------
    >>> one = torch.ones(())
    >>> AnswerLoss(2 * one, one, 2 * one, one, one).weighted_sum.item()
    2.0
    """

    weighted_sum: torch.Tensor
    weight: torch.Tensor
    nll_sum: torch.Tensor
    num_tokens: torch.Tensor
    num_correct: torch.Tensor


def _plain(value):
    """YAML containers as the plain ones that peft writes to JSON."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    return value


def _lora_config(lora):
    """peft's configuration from a mapping, with what this class relies on."""
    settings = {**DEFAULT_LORA, **_plain(dict(lora))}
    allowed = LoraConfig.__dataclass_fields__
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(f"lora has the unknown keys {unknown}; allowed are the keywords of peft.LoraConfig")
    if settings.get("bias", "none") != "none":
        raise ValueError(
            f"lora.bias is {settings['bias']!r}; only 'none' is supported: biases belong to the frozen base"
        )
    for key in ("modules_to_save", "trainable_token_indices"):
        if settings.get(key):
            raise ValueError(f"lora.{key} is {settings[key]!r}; it is not supported: leave it out")
    settings["task_type"] = "CAUSAL_LM"
    return LoraConfig(**settings)


def _load_base(source, revision, dtype, quantization, attn_implementation):
    """The causal language model of a hub name or a folder."""
    keywords = {"revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    if quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "quantization='4bit' needs the package bitsandbytes, which is not installed: run "
                "`pip install bitsandbytes` on a machine with a CUDA GPU, or set quantization to null"
            )
        if not torch.cuda.is_available():
            raise ValueError(
                "quantization='4bit' needs a CUDA GPU and none is visible: set quantization to null"
            )
        from transformers import BitsAndBytesConfig

        keywords["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype if dtype is not torch.float32 else torch.bfloat16,
        )
        keywords["device_map"] = {"": torch.cuda.current_device()}
    try:
        return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **keywords)
    except (OSError, ValueError) as error:
        raise OSError(
            f"language model source={str(source)!r} (revision={revision!r}) could not be loaded: {error} "
            "Give the name of a model on the hub that this machine can reach, or a local folder with "
            "config.json and model.safetensors"
        ) from error


@register_checkpoint_hooks
class SpeechLLM(nn.Module):
    """Causal language model with optional LoRA whose prompt positions may be filled by speech.

    Implements the language-model side of VIB-SER (arXiv 2505.23236): pseudo-embeddings in the input space of
    a frozen LLM with low-rank adapters (Hu et al. 2021, arXiv 2106.09685). Nothing trains until the caller
    says so through :meth:`trainable_groups`: all parameters start with ``requires_grad=False``, in eval mode.

    As a SpeechBrain recoverable it writes a folder with the trainable weights only: the adapter in peft's
    own layout, and ``model.safetensors`` when the base has trained.

    Arguments
    ---------
    source : str or path, optional
        Name on the hub or a local folder. None builds ``architecture`` with random weights and no tokenizer.
    revision : str, optional
        Revision on the hub.
    lora : mapping, optional
        Keywords of ``peft.LoraConfig`` (``r``, ``lora_alpha``, ``lora_dropout``, ``target_modules``, ...),
        over the defaults 16, 32, 0.05, q/k/v/o. None for no adapter. Its weights are float32 always. Or a mapping of
        names to adapters, each with ``kinds``, the kinds of positions that it acts at: a partial LoRA (see
        ``partial_lora.py``).
    dtype : str
        ``float32``, ``bfloat16`` or ``float16``: of the base weights. A base that trains must be float32.
    gradient_checkpointing : bool
        Whether the decoder layers are recomputed in the backward pass, in training and in eval mode alike.
    quantization : str, optional
        ``4bit`` (NF4 through bitsandbytes) or None.
    architecture : mapping, optional
        Fields of the transformers configuration with ``model_type``; used where there is no ``source`` and on
        the meta device.
    attn_implementation : str
        As in transformers: ``sdpa``, ``eager``, ``flash_attention_2``.
    logit_chunk : int
        Most positions whose logits are held at one time; a loss over more recomputes them when it goes back.
    chat_template : str, optional
        Jinja template of a conversation, for a tokenizer that ships none (Vicuna).

    Raises
    ------
    ValueError
        If a setting is unknown or not possible on this machine.
    OSError
        If the source cannot be loaded.

    Example
    -------
    >>> import tempfile
    >>> from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
    >>> from speechbrain_emo.prompts import AnswerField, Example, Packer, Slot, Turn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     llm = SpeechLLM(build_tiny_llm(folder, ["the sky is blue"], 280, 16, 1, 2, 1, 32), lora={"r": 2})
    >>> packer = Packer(llm.tokenizer, ["content"])
    >>> example = Example("u", "asr", (Turn("user", (Slot("content"),)),), (AnswerField("t", "", "blue"),))
    >>> packed = packer.collate([packer.encode(example, [{"content": 3}])])
    >>> embeddings = llm.embed(packed, {"content": torch.randn(1, 3, llm.hidden_size)})
    >>> embeddings.shape == (*packed.token_ids.shape, 16)
    True
    >>> int(llm.answer_loss(embeddings, packed).num_tokens) == int((packed.labels >= 0).sum())
    True
    """

    def __init__(
        self,
        source=None,
        revision=None,
        lora=None,
        dtype="float32",
        gradient_checkpointing=False,
        quantization=None,
        architecture=None,
        attn_implementation="sdpa",
        logit_chunk=4096,
        chat_template=None,
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
        if quantization not in (None, "4bit"):
            raise ValueError(f"quantization is {quantization!r}; allowed: '4bit' or null")
        if logit_chunk < 1:
            raise ValueError(f"logit_chunk is {logit_chunk}; allowed: 1 and above")
        on_meta = torch.get_default_device().type == "meta"
        if source is None and architecture is None:
            raise ValueError("neither source nor architecture is given: name a model or describe one")
        if source is None or on_meta:
            if architecture is None:
                architecture = PUBLISHED_ARCHITECTURES.get(str(source))
            if architecture is None:
                config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            else:
                settings = _plain(dict(architecture))
                if "model_type" not in settings:
                    raise ValueError(f"architecture {settings} has no model_type (llama, qwen2, ...): add it")
                config = AutoConfig.for_model(**settings)
            base = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], attn_implementation=attn_implementation
            )
        else:
            base = _load_base(source, revision, DTYPES[dtype], quantization, attn_implementation)
        for name in _LOGIT_CHANGES:
            if getattr(base.config, name, None) not in (None, 1, 1.0):
                raise ValueError(
                    f"model {source!r} has {name}={getattr(base.config, name)}: its logits are changed after "
                    "the output layer, which the answer-only loss does not do; use a model like Llama "
                    "or Qwen2"
                )
        self.tokenizer = None
        if source is not None and (not on_meta or os.path.isdir(source)):
            self.tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
            if chat_template is not None:
                self.tokenizer.chat_template = str(chat_template)
            if self.tokenizer.eos_token_id is None:
                raise ValueError(
                    f"the tokenizer of {source!r} has no eos_token: an answer needs an end token"
                )
        # The published generation settings (temperature, repetition penalty) would fill every field that a
        # call leaves open, and so change greedy search.
        base.generation_config = GenerationConfig()
        self.source = None if source is None else str(source)
        self.logit_chunk = logit_chunk
        self._base_changed = False
        self.partial = None
        if lora is None:
            self.model = base
        elif is_partial(lora):
            self.model = base
            self.partial = PartialLoRA(base, _plain(dict(lora)))
        else:
            self.model = get_peft_model(base, _lora_config(lora), autocast_adapter_dtype=True)
        self.gradient_checkpointing = bool(gradient_checkpointing)
        if self.gradient_checkpointing:
            self._enable_checkpointing()
        self.requires_grad_(False)
        self.eval()

    def _enable_checkpointing(self):
        for name in _LAYER_DROPOUTS:
            value = getattr(self.causal_lm.config, name, 0.0)
            if value:
                raise ValueError(
                    f"gradient_checkpointing with {name}={value}: a frozen model is in eval mode and "
                    "its layers cannot be recomputed with dropout; set it to 0"
                )
        if not self._checkpointed_layers:
            raise ValueError(
                f"gradient_checkpointing: {type(self.causal_lm).__name__} has no layers that support it; "
                "set it to False"
            )
        for layer in self._checkpointed_layers:
            # Not reentrant: a frozen front end gives embeddings without a gradient, which the reentrant kind
            # takes for nothing to train.
            keywords = {"use_reentrant": False}
            if self.partial is not None:
                # The backward pass computes the layer again when the kinds of the positions are long gone.
                keywords["context_fn"] = self.partial.state.recompute_context
            layer._gradient_checkpointing_func = functools.partial(checkpoint, **keywords)

    @property
    def _checkpointed_layers(self):
        return [m for m in self.causal_lm.modules() if isinstance(m, GradientCheckpointingLayer)]

    @contextlib.contextmanager
    def _checkpointing(self):
        """Recompute the decoder layers of the forward pass inside, whether they are in eval mode or not.

        transformers recomputes a layer only in training mode, but frozen layers are in eval mode. The flag is
        set on the layer alone: its children, which hold the dropout, keep their own.
        """
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            yield
            return
        layers = [(layer, layer.training) for layer in self._checkpointed_layers]
        try:
            for layer, _ in layers:
                layer.training = layer.gradient_checkpointing = True
            yield
        finally:
            for layer, training in layers:
                layer.training = training
                layer.gradient_checkpointing = False

    @property
    def has_lora(self):
        """Whether the model carries low-rank adapters, plain or partial."""
        return self.partial is not None or isinstance(self.model, PeftModel)

    @property
    def causal_lm(self):
        """The transformers model itself, adapters in place."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _kinds(self, packed):
        """Context in which a partial LoRA knows the kinds of a packed batch."""
        if self.partial is None:
            return contextlib.nullcontext()
        return self.partial.state.scope(packed.kinds, packed.kind_names)

    @property
    def hidden_size(self):
        """Embedding size d."""
        return self.causal_lm.get_input_embeddings().embedding_dim

    @property
    def end_of_answer_id(self):
        """Token that ends an answer: the tokenizer's ``eos_token``."""
        if self.tokenizer is None:
            raise ValueError("this language model was built without a source and has no tokenizer")
        return self.tokenizer.eos_token_id

    def lora_modules(self):
        """Modules of all low-rank adapters, plain or partial: list of torch.nn.Module."""
        if self.partial is not None:
            return self.partial.all_modules()
        modules = []
        for layer in self.causal_lm.modules():
            if isinstance(layer, LoraLayer):
                for name in (*layer.adapter_layer_names, "lora_dropout"):
                    # The dictionaries for embedding layers are there on linear ones too, and empty.
                    module = getattr(layer, name, None)
                    if isinstance(module, nn.Module) and len(module):
                        modules.append(module)
        return modules

    def _lora_ids(self):
        return {id(p) for module in self.lora_modules() for p in module.parameters()}

    def trainable_groups(self):
        """Modules that a phase may train, by name.

        Returns
        -------
        dict of str to list of torch.nn.Module
            ``llm.lora``: the adapters' own modules (empty without LoRA); of a partial LoRA, ``llm.lora.<name>`` for
            each adapter instead. ``llm.base``: the model, or, with LoRA, its modules that hold weights, without the
            adapters. No parameter is in two groups.

        Example
        -------
        >>> llm = build_meta("lmsys/vicuna-7b-v1.5", lora={"r": 4})
        >>> sum(p.numel() for m in llm.trainable_groups()["llm.lora"] for p in m.parameters())
        4194304
        """
        if not self.has_lora:
            return {"llm.lora": [], "llm.base": [self.model]}
        adapters = self.lora_modules()
        inside = {id(m) for module in adapters for m in module.modules()}
        base = [
            module
            for module in self.causal_lm.modules()
            if id(module) not in inside and next(module.parameters(recurse=False), None) is not None
        ]
        if self.partial is not None:
            named = {f"llm.lora.{name}": self.partial.modules(name) for name in self.partial.names}
            return {**named, "llm.base": base}
        return {"llm.lora": adapters, "llm.base": base}

    def train(self, mode=True):
        """Set training mode on the parts whose parameters train; frozen parts stay in eval mode.

        Arguments
        ---------
        mode : bool
            False for eval mode everywhere.

        Returns
        -------
        SpeechLLM
            Itself.
        """
        super().train(False)
        if not mode:
            return self
        self.training = True
        adapters = self.lora_modules()
        inside = {id(m) for module in adapters for m in module.modules()}
        lora_ids = self._lora_ids()
        if any(p.requires_grad and id(p) not in lora_ids for p in self.causal_lm.parameters()):
            for module in self.causal_lm.modules():
                if id(module) not in inside:
                    module.training = True
        for group in [adapters] if self.partial is None else map(self.partial.modules, self.partial.settings):
            if any(p.requires_grad for module in group for p in module.parameters()):
                for module in group:
                    module.train(True)
        return self

    def embed(self, packed, slots):
        """Input embeddings of a packed batch, with the front end's outputs in the open positions.

        Arguments
        ---------
        packed : PackedBatch
            ``token_ids`` of shape (B, P) and ``slots``.
        slots : mapping of str to torch.Tensor
            Per slot kind, the front end's output, float, shape (N, S, d). Cast to the embeddings' dtype.

        Returns
        -------
        torch.Tensor
            Shape (B, P, d), in the base's dtype. Its gradient flows to ``slots``.

        Raises
        ------
        ValueError
            If a slot kind of the batch is missing in ``slots`` or has another embedding size.
        """
        embeddings = self.causal_lm.get_input_embeddings()(packed.token_ids)
        for kind, index in packed.slots.items():
            if kind not in slots:
                raise ValueError(
                    f"the batch has slots of kind {kind!r} and no embeddings for them; given: {sorted(slots)}"
                )
            filling = slots[kind]
            if filling.dim() != 3 or filling.shape[-1] != embeddings.shape[-1]:
                raise ValueError(
                    f"slot embeddings of kind {kind!r} have shape {tuple(filling.shape)}; needed: "
                    f"(audios, positions, {embeddings.shape[-1]})"
                )
            values = filling[index.audio, index.position].to(embeddings.dtype)
            embeddings = embeddings.index_put((index.row, index.column), values)
        return embeddings

    def _hidden(self, embeddings, attention_mask, position_ids, cache=None, use_cache=False):
        """Last hidden states (B, P, d) of the decoder body, and its cache."""
        out = self.causal_lm.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
        )
        return out.last_hidden_state, out.past_key_values if use_cache else None

    @staticmethod
    def _causal_inputs(packed):
        """Mask and positions; no mask where padding is only on the right.

        A causal model never looks at padding on the right, and without a mask the attention kernel may use
        its own causal one, which is faster. Positions then count through the padding: transformers takes a
        jump in them for the border of packed sequences.
        """
        mask = packed.attention_mask.bool()
        count = torch.arange(mask.shape[1], device=mask.device)[None]
        plain = ((packed.position_ids == count) | ~mask).all() & (mask[:, 1:] <= mask[:, :-1]).all()
        if bool(plain):
            return None, count
        return packed.attention_mask, packed.position_ids

    def _token_nll(self, hidden, targets):
        """Negative log-likelihood (float32) and correctness of ``targets`` (A,) given ``hidden`` (A, d)."""
        # Rows of zeros round the shape up: oneDNN compiles a kernel for every new one.
        padded = F.pad(hidden, (0, 0, 0, -len(targets) % ROW_MULTIPLE))
        logits = self.causal_lm.get_output_embeddings()(padded)[: len(targets)].float()
        nll = F.cross_entropy(logits, targets, reduction="none")
        return nll, logits.detach().argmax(-1) == targets

    def _chunked_nll(self, hidden, targets):
        """:meth:`_token_nll` with at most ``logit_chunk`` rows of logits alive."""
        if len(targets) <= self.logit_chunk:
            return self._token_nll(hidden, targets)
        parts = []
        for h, t in zip(hidden.split(self.logit_chunk), targets.split(self.logit_chunk)):
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._token_nll, h, t, use_reentrant=False))
            else:
                parts.append(self._token_nll(h, t))
        return tuple(torch.cat(p) for p in zip(*parts))

    def answer_loss(self, embeddings, packed):
        """Cross-entropy of the answer tokens, with logits computed at their positions only.

        Equals the cross-entropy over all logits with the other labels ignored. The token at position p is
        predicted by the hidden state at p - 1; a labelled token with nothing before it has no prediction
        and is not counted.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of :meth:`embed`, shape (B, P, d).
        packed : PackedBatch
            Padded on either side.

        Returns
        -------
        AnswerLoss
            Sums, not means.

        Raises
        ------
        ValueError
            If the base trains in less than float32.
        """
        self._check_trained_base()
        mask, position_ids = self._causal_inputs(packed)
        with self._checkpointing(), self._kinds(packed):
            hidden, _ = self._hidden(embeddings, mask, position_ids)
        predicted = (packed.labels[:, 1:] != IGNORED_LABEL) & packed.attention_mask[:, :-1].bool()
        row, column = predicted.nonzero(as_tuple=True)
        targets = packed.labels[row, column + 1]
        weights = packed.label_weights[row, column + 1].float()
        nll, correct = self._chunked_nll(hidden[row, column], targets)
        return AnswerLoss(
            weighted_sum=(nll * weights).sum(),
            weight=weights.sum(),
            nll_sum=nll.detach().sum(),
            num_tokens=torch.tensor(len(targets), device=nll.device),
            num_correct=correct.sum(),
        )

    @torch.no_grad()
    def answer_log_probs(self, embeddings, packed):
        """Log-probabilities of the whole vocabulary at the answer positions, for comparing two prompts.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of :meth:`embed`, shape (B, P, d).
        packed : PackedBatch
            With answers.

        Returns
        -------
        list of torch.Tensor
            For each row, float32 (answer tokens, V): entry t predicts the answer's token t, the end token included.
        """
        mask, position_ids = self._causal_inputs(packed)
        with self._kinds(packed):
            hidden, _ = self._hidden(embeddings, mask, position_ids)
        predicted = (packed.labels[:, 1:] != IGNORED_LABEL) & packed.attention_mask[:, :-1].bool()
        head = self.causal_lm.get_output_embeddings()
        return [head(h[p]).float().log_softmax(-1) for h, p in zip(hidden[:, :-1], predicted)]

    def _check_trained_base(self):
        weight = self.causal_lm.get_input_embeddings().weight
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return
        self._base_changed = True
        if weight.dtype is not torch.float32:
            raise ValueError(
                f"the language model's base is set to train in {weight.dtype}: small steps would be lost; "
                "build it with dtype='float32' and use autocast for bfloat16 arithmetic"
            )

    @torch.no_grad()
    def generate(self, embeddings, packed, max_new_tokens, num_beams=1):
        """Continue every prompt, by greedy or beam search.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of :meth:`embed`, shape (B, P, d).
        packed : PackedBatch
            Without answer, padded on the left.
        max_new_tokens : int
            Most tokens to write.
        num_beams : int
            1 for greedy search.

        Returns
        -------
        list of list of int
            Token ids of each row, without the end token.

        Raises
        ------
        ValueError
            If a row ends in padding, or a number is below 1.
        """
        if max_new_tokens < 1 or num_beams < 1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens} and num_beams {num_beams}; allowed: 1 and above"
            )
        if not bool(packed.attention_mask[:, -1].all()):
            raise ValueError(
                "the prompts are padded on the right; generation needs padding on the left: "
                "collate(rows, side='left')"
            )
        end = self.end_of_answer_id
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        # A tokenizer may use one token for both, so rows are cut at the first end token.
        with self._kinds(packed):
            written = self.causal_lm.generate(
                inputs_embeds=embeddings,
                attention_mask=packed.attention_mask,
                position_ids=packed.position_ids,
                generation_config=GenerationConfig(
                    do_sample=False,
                    num_beams=num_beams,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=end,
                    pad_token_id=pad,
                    use_cache=True,
                ),
            )
        rows = []
        for ids in written.tolist():
            rows.append(ids[: ids.index(end)] if end in ids else ids)
        return rows

    @torch.no_grad()
    def extend(self, embeddings, cache=None, packed=None):
        """Read on in one row and predict the token that follows, with the keys and values of what came before.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of :meth:`embed`, shape (1, P, d), P at least 1: only the positions that are new.
        cache : transformers.Cache, optional
            Of an earlier call; it grows in place. ``cache.crop(-n)`` takes off its last n positions.
        packed : PackedBatch, optional
            The whole prompt, of one row; a partial LoRA needs it for the kinds of the positions. Positions beyond it
            are the answer's.

        Returns
        -------
        tuple
            Logits float32, shape (V,), and the cache.

        Raises
        ------
        ValueError
            If there is no position, or more than one row, or a partial LoRA is not given ``packed``.
        """
        if embeddings.dim() != 3 or embeddings.shape[0] != 1 or embeddings.shape[1] < 1:
            raise ValueError(
                f"embeddings have shape {tuple(embeddings.shape)}; needed: (1, P, d) with P at least 1"
            )
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(past, past + embeddings.shape[1], device=embeddings.device)[None]
        if self.partial is not None and packed is None:
            raise ValueError("extend: a partial LoRA needs the packed prompt for the kinds of its positions")
        with self._kinds(packed):
            hidden, cache = self._hidden(embeddings, None, positions, cache, use_cache=True)
        return self.causal_lm.get_output_embeddings()(hidden[0, -1]).float(), cache

    @torch.no_grad()
    def score(self, embeddings, packed, candidates, max_rows=256):
        """Length-normalised log-likelihood of each candidate answer after each prompt.

        The prompt is computed once; its keys and values are shared by the candidates. Equals the mean of the
        log-probabilities of the candidate's tokens and the end token in one full forward pass.

        Arguments
        ---------
        embeddings : torch.Tensor
            Of :meth:`embed`, shape (B, P, d).
        packed : PackedBatch
            Without answer (tokens of an answer that are already there have no label). Left padding is the
            cheaper side.
        candidates : list of list of int
            K answers as token ids, without the end token.
        max_rows : int
            Most (prompt, candidate) pairs in one forward pass.

        Returns
        -------
        torch.Tensor
            Mean log-likelihood (nats a token), end token included; float32, shape (B, K).

        Raises
        ------
        ValueError
            If there is no candidate, one is empty, or the batch holds an answer with labels.
        """
        if not candidates or not all(len(c) for c in candidates):
            raise ValueError(f"candidates are {candidates}: at least one is needed and none may be empty")
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; allowed: 1 and above")
        if bool((packed.labels != IGNORED_LABEL).any()):
            raise ValueError("the batch to score holds an answer: encode(example, with_answer=False)")
        device = embeddings.device
        end = self.end_of_answer_id
        num_rows, width = packed.attention_mask.shape
        prompt_lengths = packed.attention_mask.sum(1)
        last = (packed.attention_mask * torch.arange(1, width + 1, device=device)).argmax(1)
        next_position = packed.position_ids.gather(1, last[:, None])[:, 0] + 1
        if not bool((prompt_lengths > 0).all()):
            raise ValueError("a row of the batch to score has no position: every prompt needs at least one")

        with self._kinds(packed):
            hidden, cache = self._hidden(
                embeddings, packed.attention_mask, packed.position_ids, use_cache=True
            )
        hidden = hidden[torch.arange(num_rows, device=device), last]
        lengths = torch.tensor([len(c) for c in candidates], device=device)
        longest = int(lengths.max())
        ids = torch.full((len(candidates), longest + 1), end, dtype=torch.long, device=device)
        for k, candidate in enumerate(candidates):
            ids[k, : len(candidate)] = torch.as_tensor(candidate, device=device)

        first = torch.empty(num_rows, len(candidates), dtype=torch.float32, device=device)
        for start in range(0, num_rows, self.logit_chunk):
            rows = slice(start, start + self.logit_chunk)
            logits = self.causal_lm.get_output_embeddings()(hidden[rows]).float()
            first[rows] = logits.log_softmax(-1)[:, ids[:, 0]]
        scores = torch.empty_like(first)

        # Candidates of like length stand together, so that a chunk has little padding.
        order = torch.argsort(lengths, stable=True).repeat_interleave(num_rows)
        prompts = torch.arange(num_rows, device=device).repeat(len(candidates))
        for start in range(0, len(order), max_rows):
            k, b = order[start : start + max_rows], prompts[start : start + max_rows]
            steps = torch.arange(int(lengths[k].max()), device=device)
            there = steps < lengths[k, None]
            inputs, targets = ids[k, : len(steps)], ids[k, 1 : len(steps) + 1]
            with self._kinds(packed):
                hidden, _ = self._hidden(
                    self.causal_lm.get_input_embeddings()(inputs),
                    torch.cat([packed.attention_mask[b], there.to(packed.attention_mask.dtype)], 1),
                    next_position[b, None] + steps,
                    cache=_select_rows(cache, b),
                    use_cache=True,
                )
            nll, _ = self._chunked_nll(hidden[there], targets[there])
            later = torch.zeros(there.shape, dtype=torch.float32, device=device)
            later[there] = nll
            scores[b, k] = (first[b, k] - later.sum(1)) / (lengths[k] + 1)
        return scores

    def _adapter_state(self):
        if not self.has_lora:
            raise ValueError(
                "this language model has no LoRA (lora=None): there is no adapter to save or load"
            )
        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    def save_adapter(self, folder):
        """Write the adapter in peft's layout: ``adapter_model.safetensors`` and ``adapter_config.json``.

        A partial LoRA writes a folder of this kind for each of its adapters.

        Arguments
        ---------
        folder : str or path
            Made if it does not exist.

        Raises
        ------
        ValueError
            If there is no adapter.
        """
        if self.partial is not None:
            self.partial.save(folder)
            return
        state = {k: v.detach().cpu().contiguous() for k, v in self._adapter_state().items()}
        os.makedirs(folder, exist_ok=True)
        save_file(state, os.path.join(folder, ADAPTER_WEIGHTS), metadata={"format": "pt"})
        config = copy.copy(self.model.peft_config[self.model.active_adapter])
        config.inference_mode = True
        config.save_pretrained(os.fspath(folder))

    def load_adapter(self, folder):
        """Read an adapter that fits exactly; the weights are copied into the present parameters.

        Arguments
        ---------
        folder : str or path
            Written by :meth:`save_adapter` or by peft.

        Raises
        ------
        ValueError
            If a weight is missing, unexpected or of another shape, or the settings differ.
        OSError
            If a file is missing.
        """
        if self.partial is not None:
            self.partial.load(folder)
            return
        own = self._adapter_state()
        with open(os.path.join(folder, ADAPTER_CONFIG), encoding="utf-8") as stream:
            settings = json.load(stream)
        present = self.model.peft_config[self.model.active_adapter]
        for name in _ADAPTER_SETTINGS:
            if name in settings and settings[name] != getattr(present, name):
                raise ValueError(
                    f"adapter {folder}: {name} is {settings[name]!r}, this model has "
                    f"{getattr(present, name)!r}; build the model with the adapter's settings"
                )
        state = load_file(os.path.join(folder, ADAPTER_WEIGHTS))
        _check_keys(f"adapter {folder}", own, state)
        set_peft_model_state_dict(self.model, state)

    def merge_adapter(self):
        """Add a plain LoRA to the weights that it adapts, and drop it: the same model, faster.

        Raises
        ------
        ValueError
            If there is no adapter, or it is a partial LoRA, which acts at some positions only.
        """
        if self.partial is not None:
            self.partial.merge()
        if not self.has_lora:
            raise ValueError("this language model has no LoRA (lora=None): there is nothing to merge")
        self.model = self.model.merge_and_unload()
        self.requires_grad_(False)
        self._base_changed = True
        self.eval()

    def _base_state(self):
        """Weights and buffers of the base without adapters; weights that are tied appear once."""
        seen, state = self._lora_ids(), {}
        for name, tensor in self.causal_lm.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                state[name] = tensor
        return state

    def save_pretrained(self, folder):
        """Write the base model and the tokenizer in the layout of a hub model.

        Arguments
        ---------
        folder : str or path
            Made if it does not exist; ``SpeechLLM(folder)`` reads it.

        Raises
        ------
        ValueError
            If there are adapters: their weights would stand in the middle of the base's.
        """
        if self.has_lora:
            raise ValueError("save_pretrained writes a base without LoRA; use save_adapter for the adapter")
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @mark_as_saver
    def save_checkpoint(self, path):
        """Write what has trained or may train: the adapter, and the base if it trains or has trained.

        Arguments
        ---------
        path : str or path
            Becomes a folder.
        """
        os.makedirs(path, exist_ok=True)
        lora_ids = self._lora_ids()
        base_trains = any(p.requires_grad and id(p) not in lora_ids for p in self.causal_lm.parameters())
        if self.has_lora:
            self.save_adapter(path)
        if base_trains or self._base_changed:
            state = {k: v.detach().cpu().contiguous() for k, v in self._base_state().items()}
            save_file(state, os.path.join(path, BASE_WEIGHTS), metadata={"format": "pt"})

    @mark_as_loader
    def load_checkpoint(self, path, end_of_epoch=True):
        """Read what :meth:`save_checkpoint` wrote.

        Arguments
        ---------
        path : str or path
            The folder.
        end_of_epoch : bool
            Not used; SpeechBrain passes it.

        Raises
        ------
        ValueError
            If the weights do not fit this model exactly.
        OSError
            If the folder is missing.
        """
        if not os.path.isdir(path):
            raise FileNotFoundError(f"checkpoint of the language model {path} is not a folder")
        if self.has_lora:
            self.load_adapter(path)
        weights = os.path.join(path, BASE_WEIGHTS)
        if os.path.exists(weights):
            own, state = self._base_state(), load_file(weights)
            _check_keys(f"base weights {weights}", own, state)
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(state[name])
            self._base_changed = True
        elif self._base_changed:
            raise ValueError(
                f"checkpoint {path} has no {BASE_WEIGHTS}, but the base of this model has trained since "
                "it was built: build the model anew from its source, then load"
            )


def _check_keys(what, own, state):
    """Raise unless ``state`` has exactly the names and shapes of ``own``."""
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{name}: {tuple(state[name].shape)}, needed {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{what} does not fit this model: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )


def _select_rows(cache, rows):
    """Copy of a key/value cache with the rows of an index (repeated rows allowed); the original is kept."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def build_meta(source=None, architecture=None, lora=None, **settings):
    """Build a language model on the meta device: parameter counts without weights or downloads.

    Arguments
    ---------
    source : str, optional
        A name in ``PUBLISHED_ARCHITECTURES``, or a folder whose ``config.json`` is read.
    architecture : mapping, optional
        Fields of a transformers configuration with ``model_type``; goes before ``source``.
    lora : mapping, optional
        As in :class:`SpeechLLM`.
    **settings
        Other arguments of :class:`SpeechLLM`.

    Returns
    -------
    SpeechLLM
        With all parameters on the meta device.

    Example
    -------
    >>> llm = build_meta("meta-llama/Llama-3.1-8B-Instruct")
    >>> sum(p.numel() for p in llm.parameters())
    8030261248
    """
    with torch.device("meta"):
        return SpeechLLM(source, lora=lora, architecture=architecture, **settings)
