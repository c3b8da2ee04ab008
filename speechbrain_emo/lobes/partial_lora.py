"""Partial LoRA: low-rank adapters that act at some positions of the packed prompt only.

    y = W x + sum_a m_a (alpha_a / r_a) B_a A_a dropout(x)

m_a is 1 at the positions whose kind adapter a is bound to. Source: JELLY (arXiv 2501.04904, section 2.3), after the
partial LoRA of InternLM-XComposer2 (arXiv 2401.16420). The released code of JELLY keeps one of its two adapters active
at all positions, so that the other never acts; here both change exactly their own positions, in training, in the prompt
pass and while generating, and a test shows it.

The kinds reach the layers through :class:`PositionKinds`, a state that lives for one forward pass: peft's per-row
adapter names cannot tell positions apart, and its private variants change between releases. Axis letters: B rows, T
positions of a call, R the ranks of all adapters together.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BINDING = "bound_to"
ANSWER = "answer"
PREFIX = "base_model.model."
#: Keys of one adapter's settings and their defaults: the published ones (arXiv 2501.04904, section 3.1).
DEFAULTS = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


NO_KINDS = (
    "a partial LoRA was run without the kinds of its positions: call the SpeechLLM's own methods (answer_loss, "
    "generate, score, extend), not the transformers model inside"
)


def is_partial(lora):
    """Whether a ``lora`` mapping describes adapters by name, each bound to kinds of positions.

    Example
    -------
    >>> is_partial({"text": {"kinds": ["text", "answer"], "r": 4}}), is_partial({"r": 4}), is_partial(None)
    (True, False, False)
    """
    if not lora:
        return False
    named = [isinstance(v, Mapping) and "kinds" in v for v in dict(lora).values()]
    if any(named) and not all(named):
        wrong = [k for k, v in dict(lora).items() if not (isinstance(v, Mapping) and "kinds" in v)]
        raise ValueError(
            f"lora has adapters with kinds, but {wrong} has none: every adapter of a partial LoRA is a mapping with "
            "kinds, for example {text: {kinds: [text, answer], r: 8}}"
        )
    return all(named)


def adapter_settings(lora):
    """Settings of every adapter, complete.

    Arguments
    ---------
    lora : mapping of str to mapping
        Adapter -> ``kinds`` (none: the adapter is left out, for an ablation) and any of ``r``, ``lora_alpha``,
        ``lora_dropout``, ``target_modules``.

    Returns
    -------
    dict of str to dict

    Raises
    ------
    ValueError
        If a key is unknown or a value is not allowed.

    Example
    -------
    >>> adapter_settings({"text": {"kinds": ["text"]}})["text"]["lora_alpha"]
    32
    """
    out = {}
    for name, given in dict(lora).items():
        values = {**DEFAULTS, **{str(k): v for k, v in dict(given).items()}}
        unknown = sorted(set(values) - {*DEFAULTS, "kinds"})
        if unknown:
            raise ValueError(
                f"lora.{name} has the unknown keys {unknown}; allowed: {sorted(DEFAULTS)} and kinds"
            )
        values["kinds"] = [str(k) for k in values["kinds"]]
        values["target_modules"] = [str(m) for m in values["target_modules"]]
        if not values["target_modules"]:
            raise ValueError(f"lora.{name}: target_modules is empty; name at least one, for example q_proj")
        if int(values["r"]) < 1 or not 0 <= float(values["lora_dropout"]) < 1:
            raise ValueError(
                f"lora.{name}: r is {values['r']} and lora_dropout {values['lora_dropout']}; allowed: r from 1, "
                "dropout in [0, 1)"
            )
        if "." in str(name):
            raise ValueError(f"lora: the adapter {name!r} has a dot in its name; leave it out")
        out[str(name)] = values
    return out


class PositionKinds:
    """What kind each position of the running forward pass is; empty between passes.

    Example
    -------
    >>> state = PositionKinds()
    >>> kinds = torch.tensor([[1, 3, 3]])
    >>> with state.scope(kinds, ("padding", "text", "answer", "emotion")):
    ...     state.enter(2, 1, 2, "cpu")  # after two cached positions: the last of the prompt, and one of the answer
    ...     state.gate((("emotion", frozenset({"emotion"}), 4.0, 1),), torch.float32).flatten().tolist()
    [4.0, 0.0]
    """

    def __init__(self):
        self._full = self._names = None
        self.current = None
        self._gates = {}

    @contextlib.contextmanager
    def scope(self, kinds, names):
        """Kinds int64 (B, P) of all positions that the passes inside start from; what comes after is the answer."""
        if not names:
            raise ValueError(
                "the packed batch does not name its kinds, which a partial LoRA needs: pack it with Packer.collate"
            )
        before = (self._full, self._names)
        self._full, self._names = kinds, tuple(names)
        try:
            yield
        finally:
            self._full, self._names = before
            self.leave()

    def enter(self, past, num_rows, num_positions, device):
        """Positions [past, past + num_positions) are computed now."""
        if self._full is None:
            raise ValueError(NO_KINDS)
        width = self._full.shape[1]
        answer = self._names.index(ANSWER)
        kinds = torch.full((num_rows, num_positions), answer, dtype=torch.long, device=device)
        inside = min(max(width - past, 0), num_positions)
        if inside:
            own = self._full[:, past : past + inside].to(device)
            if num_rows % len(own):
                raise ValueError(f"{num_rows} rows are computed for a prompt batch of {len(own)} rows")
            # Beams are the rows of a prompt, one after another.
            kinds[:, :inside] = own.repeat_interleave(num_rows // len(own), 0)
        self.current, self._gates = kinds, {}

    def leave(self):
        """Forget the running pass."""
        self.current, self._gates = None, {}

    def gate(self, adapters, dtype):
        """Scale of every rank at every position, (B, T, R); None where no adapter has a position.

        Arguments
        ---------
        adapters : tuple of (str, frozenset of str, float, int)
            Name, kinds, scale and rank of each.
        dtype : torch.dtype
            Of the result.

        Returns
        -------
        torch.Tensor or None
        """
        key = (adapters, dtype)
        if key not in self._gates:
            parts = []
            for _, kinds, scale, rank in adapters:
                ids = [i for i, name in enumerate(self._names) if name in kinds]
                wanted = torch.tensor(ids, device=self.current.device, dtype=torch.long)
                mask = torch.isin(self.current, wanted)
                parts.append((mask.to(dtype) * scale)[..., None].expand(*mask.shape, rank))
            gate = torch.cat(parts, -1)
            self._gates[key] = gate if bool(gate.any()) else None
        return self._gates[key]

    def recompute_context(self):
        """For ``torch.utils.checkpoint``: the kinds of now, put back while the layer is computed again."""
        kept = (self._full, self._names, self.current, self._gates)

        @contextlib.contextmanager
        def again():
            before = (self._full, self._names, self.current, self._gates)
            self._full, self._names, self.current, self._gates = kept
            try:
                yield
            finally:
                self._full, self._names, self.current, self._gates = before

        return contextlib.nullcontext(), again()


class LowRank(nn.Module):
    """The two matrices of one adapter on one projection, float32; B starts at zero, so that nothing changes at first.

    Example
    -------
    >>> LowRank(4, 6, 2, 0.0).lora_B.weight.shape
    torch.Size([6, 2])
    """

    def __init__(self, in_features, out_features, rank, dropout):
        super().__init__()
        self.lora_A = nn.Linear(in_features, rank, bias=False, dtype=torch.float32)
        self.lora_B = nn.Linear(rank, out_features, bias=False, dtype=torch.float32)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)


class PartialLoRALinear(nn.Module):
    """A linear layer with adapters that act at their own positions.

    All adapters are computed together: their ranks side by side, gated by position. An adapter without a position in
    the batch adds exact zeros and gets a gradient of zero; where no adapter has one, only the base runs.

    Arguments
    ---------
    base_layer : nn.Linear
        Or a quantised one with ``in_features`` and ``out_features``.
    settings : dict of str to dict
        Of :func:`adapter_settings`; those whose ``target_modules`` name this layer.
    state : PositionKinds
        Shared by all layers.

    Example
    -------
    >>> state = PositionKinds()
    >>> settings = adapter_settings({"e": {"kinds": ["emotion"], "r": 1}})
    >>> layer = PartialLoRALinear(nn.Linear(2, 2), settings, state).eval()
    >>> _ = nn.init.ones_(layer.adapters["e"].lora_B.weight)
    >>> x = torch.ones(1, 2, 2)
    >>> with state.scope(torch.tensor([[1, 3]]), ("padding", "text", "answer", "emotion")):
    ...     state.enter(0, 1, 2, "cpu")
    ...     (layer(x) == layer.base_layer(x)).all(-1).tolist()
    [[True, False]]
    """

    def __init__(self, base_layer, settings, state):
        super().__init__()
        self.base_layer = base_layer
        self.state = state
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.adapters = nn.ModuleDict()
        self._bound = {}
        device = base_layer.weight.device
        for name, s in settings.items():
            module = LowRank(self.in_features, self.out_features, int(s["r"]), float(s["lora_dropout"]))
            self.adapters[name] = module.to(device)
            scale = float(s["lora_alpha"]) / int(s["r"])
            self._bound[name] = (name, frozenset(s["kinds"]), scale, int(s["r"]))

    def forward(self, x):
        """y of the equation above; float, shape (B, T, out_features), in the base's dtype."""
        result = self.base_layer(x)
        if self.state.current is None:
            raise ValueError(NO_KINDS)
        by_dropout = {}
        for name, module in self.adapters.items():
            rate = module.dropout.p if module.dropout.training else 0.0
            by_dropout.setdefault(rate, []).append(name)
        total = None
        for rate, names in by_dropout.items():
            gate = self.state.gate(tuple(self._bound[n] for n in names), torch.float32)
            if gate is None:
                continue
            some = [self.adapters[n] for n in names]
            first = some[0].lora_A.weight if len(some) == 1 else torch.cat([m.lora_A.weight for m in some])
            second = (
                some[0].lora_B.weight if len(some) == 1 else torch.cat([m.lora_B.weight for m in some], 1)
            )
            dropped = F.dropout(x.to(first.dtype), rate) if rate else x.to(first.dtype)
            low = F.linear(dropped, first)
            delta = F.linear(low * gate.to(low.dtype), second)
            total = delta if total is None else total + delta
        return result if total is None else result + total.to(result.dtype)


class PartialLoRA:
    """The adapters of one model: puts them in, names their modules, saves and loads them.

    Arguments
    ---------
    model : transformers.PreTrainedModel
        A causal language model; its layers are replaced in place.
    lora : mapping
        See :func:`adapter_settings`. ``target_modules`` are the last parts of the layers' names.

    Raises
    ------
    ValueError
        If an adapter finds no layer.

    Example
    -------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
    ...                      num_attention_heads=2, num_key_value_heads=1)
    >>> lora = {"emotion": {"kinds": ["emotion"], "r": 2}, "text": {"kinds": ["text", "answer"], "r": 2}}
    >>> partial = PartialLoRA(LlamaForCausalLM(config), lora)
    >>> {name: sum(p.numel() for m in partial.modules(name) for p in m.parameters()) for name in partial.settings}
    {'emotion': 112, 'text': 112}
    """

    def __init__(self, model, lora):
        given = adapter_settings(lora)
        #: Names of all adapters, also of those that are bound to nothing and left out.
        self.names = tuple(given)
        self.settings = {name: s for name, s in given.items() if s["kinds"]}
        self.state = PositionKinds()
        self.model_name = getattr(model, "name_or_path", None) or None
        self.layers = {}
        for path, module in list(model.named_modules()):
            last = path.rsplit(".", 1)[-1]
            own = {n: s for n, s in self.settings.items() if last in s["target_modules"]}
            if own and hasattr(module, "in_features"):
                layer = PartialLoRALinear(module, own, self.state)
                parent = model.get_submodule(path.rpartition(".")[0])
                setattr(parent, last, layer)
                self.layers[path] = layer
        for name, s in self.settings.items():
            if not self.modules(name):
                raise ValueError(f"lora.{name}: no linear layer of the model is called {s['target_modules']}")
        model.get_decoder().register_forward_pre_hook(self._enter, with_kwargs=True)
        model.get_decoder().register_forward_hook(self._leave, always_call=True)

    def _enter(self, decoder, args, kwargs):
        given = kwargs.get("inputs_embeds")
        if given is None:
            given = kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        self.state.enter(past, given.shape[0], given.shape[1], given.device)

    def _leave(self, decoder, args, output):
        self.state.leave()

    def modules(self, name):
        """Modules of one adapter: list of nn.Module."""
        return [layer.adapters[name] for layer in self.layers.values() if name in layer.adapters]

    def all_modules(self):
        """Modules of all adapters."""
        return [m for name in self.settings for m in self.modules(name)]

    def state_dict(self, name):
        """Weights of one adapter under peft's names."""
        state = {}
        for path, layer in self.layers.items():
            if name in layer.adapters:
                module = layer.adapters[name]
                state[f"{PREFIX}{path}.lora_A.weight"] = module.lora_A.weight
                state[f"{PREFIX}{path}.lora_B.weight"] = module.lora_B.weight
        return state

    def config(self, name):
        """peft's configuration of one adapter."""
        s = self.settings[name]
        return LoraConfig(
            r=int(s["r"]),
            lora_alpha=s["lora_alpha"],
            lora_dropout=float(s["lora_dropout"]),
            target_modules=list(s["target_modules"]),
            base_model_name_or_path=self.model_name,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )

    def save(self, folder):
        """Write ``<folder>/<adapter>/`` in peft's layout; the metadata of the weights holds what it is bound to.

        Arguments
        ---------
        folder : str or path
            Made if it does not exist.
        """
        for name in self.settings:
            own = os.path.join(folder, name)
            os.makedirs(own, exist_ok=True)
            state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict(name).items()}
            metadata = {"format": "pt", BINDING: json.dumps(self.settings[name]["kinds"])}
            save_file(state, os.path.join(own, ADAPTER_WEIGHTS), metadata=metadata)
            self.config(name).save_pretrained(own)

    @torch.no_grad()
    def load(self, folder):
        """Read what :meth:`save` wrote into the present weights.

        Raises
        ------
        OSError
            If an adapter's folder is missing.
        ValueError
            If a weight, a setting or the binding does not fit.
        """
        for name in self.settings:
            own, weights = os.path.join(folder, name), os.path.join(folder, name, ADAPTER_WEIGHTS)
            if not os.path.isfile(weights):
                raise FileNotFoundError(
                    f"{weights} is missing: the partial LoRA {name!r} was not saved there; adapters of this model: "
                    f"{sorted(self.settings)}"
                )
            with open(os.path.join(own, ADAPTER_CONFIG), encoding="utf-8") as stream:
                saved = json.load(stream)
            for key in ("r", "lora_alpha"):
                if saved[key] != self.settings[name][key]:
                    raise ValueError(
                        f"adapter {own}: {key} is {saved[key]!r}, this model has {self.settings[name][key]!r}; build "
                        "the model with the adapter's settings"
                    )
            with safe_open(weights, framework="pt") as stream:
                bound = json.loads((stream.metadata() or {}).get(BINDING, "null"))
            if bound is None or sorted(bound) != sorted(self.settings[name]["kinds"]):
                raise ValueError(
                    f"adapter {own} is bound to {bound or 'no kind: it is a plain LoRA'}, this model binds {name!r} to "
                    f"{self.settings[name]['kinds']}: make kinds agree"
                )
            present, state = self.state_dict(name), load_file(weights)
            wrong = sorted(
                k
                for k in set(present) | set(state)
                if k not in present or k not in state or present[k].shape != state[k].shape
            )
            if wrong:
                raise ValueError(
                    f"adapter {own} does not fit this model: {len(wrong)} weights are missing, unexpected or of "
                    f"another shape: {wrong[:3]}"
                )
            for key, tensor in present.items():
                tensor.copy_(state[key])

    def merge(self):
        """Refused, with the reason.

        Raises
        ------
        ValueError
            Always.
        """
        bound = {name: s["kinds"] for name, s in self.settings.items()}
        raise ValueError(
            f"a partial LoRA cannot be merged into the weights: its adapters act at some positions only ({bound}), and "
            "a merged matrix would act at all of them. Keep the adapters beside the model"
        )
