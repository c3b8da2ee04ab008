"""What an experiment will cost, before anything is downloaded or trained.

The experiment's own modules are built on the meta device, so parameter counts are exact; memory and time are
estimates whose assumptions are printed beside them.

Letters: L layers, D feature size, V vocabulary.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from speechbrain_emo.brains.speech_language_model import SpeechLanguageModel
from speechbrain_emo.phases.phase import PhaseSchedule

# NF4 with double quantisation: 4 bits and one 8-bit scale a block of 64, itself scaled in blocks of 256
# (Dettmers et al. 2023, arXiv 2305.14314, section 3).
NF4_BYTES_PER_WEIGHT = (4 + 8 / 64 + 32 / (64 * 256)) / 8
ADAM_STATE_BYTES = 8
GRADIENT_BYTES = 4
# Share of the matrix-multiplication rate that whole training steps of such models reach, as the literature on
# model FLOPs utilisation reports it (0.3-0.5 on large cards); small models on a CPU reach less.
UTILISATION = 0.35
REFERENCE_FLOPS = 150e12


@dataclass
class ModuleCost:
    """Size of one part of the model.

    Arguments
    ---------
    name : str
        ``encoder``, ``front_end``, ``llm`` or ``llm.lora``.
    parameters : int
        Weights of the part.
    trainable : int
        Weights that train in some phase.
    dtype : str
        Type that the weights are kept in.
    weight_bytes : int
        Memory of the weights.

    Example
    -------
    >>> ModuleCost("front_end", 10, 10, "float32", 40).weight_bytes
    40
    """

    name: str
    parameters: int
    trainable: int
    dtype: str
    weight_bytes: int


@dataclass
class PhaseCost:
    """Size of one pass of a phase.

    Arguments
    ---------
    key : str
        ``<cycle>.<phase name>``.
    trainable : int
        Weights that train.
    epochs : int
        Passes over the records.
    steps : int
        Optimiser steps.
    flops : float
        Floating-point operations of training, evaluation apart.

    Example
    -------
    >>> PhaseCost("1.asr", 100, 2, 50, 1e12).steps
    50
    """

    key: str
    trainable: int
    epochs: int
    steps: int
    flops: float


@dataclass
class DryRunReport:
    """Estimate of an experiment; ``str()`` of it is the table that ``--dry_run=True`` prints.

    Arguments
    ---------
    modules : list of ModuleCost
        Parts of the model.
    phases : list of PhaseCost
        Passes of the phases in order.
    memory : dict of str to float
        Bytes on the training device, by what holds them; their sum is the peak estimate.
    cache_rate : dict of str to float
        Cache mode -> bytes a second of audio.
    cache_mode : str
        The mode that the experiment asks for.
    audio_hours : float
        Audio of the corpus: what the cache holds.
    train_hours : float
        Audio of the training records.
    num_records : int
        Training records.
    download_bytes : float
        Weights that a hub sends when they are not there yet.
    checkpoint_bytes : float
        One checkpoint: trainable weights in float32 and Adam's two states.
    free_disk_bytes : float
        Free where results go.
    encode_flops : float
        One pass of the encoder over the corpus.
    rates : dict of str to float
        Name of a device -> sustained floating-point operations a second.
    assumptions : list of str
        What the estimates rest on.

    Example
    -------
    >>> report = DryRunReport([], [], {}, {"off": 0.0}, "off", 1.0, 1.0, 10, 0.0, 0.0, 1e9, 0.0, {"here": 1e9})
    >>> report.hours("here")
    0.0
    """

    modules: list
    phases: list
    memory: dict
    cache_rate: dict
    cache_mode: str
    audio_hours: float
    train_hours: float
    num_records: int
    download_bytes: float
    checkpoint_bytes: float
    free_disk_bytes: float
    encode_flops: float
    rates: dict
    assumptions: list = field(default_factory=list)

    @property
    def parameters(self):
        """Weights of the whole model, int."""
        return sum(module.parameters for module in self.modules)

    @property
    def trainable(self):
        """Weights that train in some phase, int."""
        return sum(module.trainable for module in self.modules)

    @property
    def trainable_share(self):
        """Trainable over all weights, in [0, 1]."""
        return self.trainable / self.parameters if self.parameters else 0.0

    @property
    def steps(self):
        """Optimiser steps of all phases, int."""
        return sum(phase.steps for phase in self.phases)

    @property
    def peak_memory_bytes(self):
        """Sum of the memory estimate, bytes."""
        return sum(self.memory.values())

    def cache_bytes(self, mode=None):
        """Disk that the feature cache of the corpus takes.

        Arguments
        ---------
        mode : str, optional
            A key of ``cache_rate``; default the experiment's own.

        Returns
        -------
        float
            Bytes.
        """
        return self.cache_rate[self.cache_mode if mode is None else mode] * self.audio_hours * 3600

    def hours(self, device):
        """Training time at the rate of a device.

        Arguments
        ---------
        device : str
            A key of ``rates``.

        Returns
        -------
        float
            Hours, encoder included.
        """
        live = sum(phase.epochs for phase in self.phases) * self.train_hours / (self.audio_hours or 1.0)
        passes = 1.0 if self.cache_mode != "off" else live
        flops = sum(phase.flops for phase in self.phases) + passes * self.encode_flops
        return flops / self.rates[device] / 3600

    def to_dict(self):
        """Everything as plain values, for JSON."""
        return {
            **asdict(self),
            "parameters": self.parameters,
            "trainable": self.trainable,
            "trainable_share": self.trainable_share,
            "steps": self.steps,
            "peak_memory_bytes": self.peak_memory_bytes,
            "hours": {device: self.hours(device) for device in self.rates},
        }

    def __str__(self):
        lines = ["Dry run: nothing was downloaded or trained.", ""]
        lines += _table(
            ["module", "parameters", "trainable", "kept as", "weights"],
            [
                [m.name, f"{m.parameters:,}", f"{m.trainable:,}", m.dtype, _size(m.weight_bytes)]
                for m in self.modules
            ]
            + [
                [
                    "all",
                    f"{self.parameters:,}",
                    f"{self.trainable:,} ({100 * self.trainable_share:.3g} %)",
                    "",
                    "",
                ]
            ],
        )
        lines.append("")
        lines += _table(
            ["memory on the training device", ""],
            [[name, _size(value)] for name, value in self.memory.items()]
            + [["peak, roughly", _size(self.peak_memory_bytes)]],
        )
        lines.append("")
        disk = [["weights to download (once)", _size(self.download_bytes)]]
        disk.append(["one checkpoint", _size(self.checkpoint_bytes)])
        for mode, rate in self.cache_rate.items():
            chosen = " <- this experiment" if mode == self.cache_mode else ""
            disk.append(
                [f"cache: {mode} ({_size(rate)} a second of audio)", _size(self.cache_bytes(mode)) + chosen]
            )
        disk.append(["free here", _size(self.free_disk_bytes)])
        lines += _table([f"disk ({self.audio_hours:g} h of audio)", ""], disk)
        needed = self.download_bytes + 3 * self.checkpoint_bytes + self.cache_bytes()
        if needed > self.free_disk_bytes:
            lines.append(
                f"NOT ENOUGH DISK: about {_size(needed)} are needed, {_size(self.free_disk_bytes)} are free; "
                "set cache: off, or another output folder"
            )
        lines.append("")
        lines += _table(
            ["phase", "trainable", "epochs", "steps"],
            [[p.key, f"{p.trainable:,}", str(p.epochs), f"{p.steps:,}"] for p in self.phases]
            + [["all", "", str(sum(p.epochs for p in self.phases)), f"{self.steps:,}"]],
        )
        lines.append("")
        lines += _table(
            ["training time, evaluation apart", ""],
            [
                [f"at {rate / 1e12:.3g} TFLOP/s ({name})", _hours(self.hours(name))]
                for name, rate in self.rates.items()
            ],
        )
        lines.append("")
        lines += [f"assumed: {text}" for text in self.assumptions]
        return "\n".join(lines)


def estimate(hparams, num_records=None, audio_hours=None, sustained_flops=None, device=None):
    """Estimate an experiment from its hyper-parameters.

    Reads ``encoder``, ``front_end`` and ``llm`` (each ``!name:`` in the YAML, so that nothing is built yet)
    and
    ``phases``; the size of the corpus from the training manifest where it is written already, else from
    ``corpus_hours`` and ``num_train_records`` (and ``num_corpus_records`` where the hours are those of more than
    the training part); where they are given also ``cycles``, ``cache``, ``limits``,
    ``text_positions``, ``answer_positions`` and ``output_folder``.

    Arguments
    ---------
    hparams : dict
        Loaded YAML. ``encoder`` and ``front_end`` may be absent or null in a text-only experiment.
    num_records : int, optional
        Training records; default as the manifest or ``num_train_records`` says.
    audio_hours : float, optional
        Audio of the corpus; default as the manifests or ``corpus_hours`` says.
    sustained_flops : float, optional
        Floating-point operations a second that training reaches; default: measured here by a matrix product.
    device : str, optional
        Where it is measured; default ``cuda`` where there is one, else ``cpu``.

    Returns
    -------
    DryRunReport

    Raises
    ------
    ValueError
        If a key is missing, or a module names neither an architecture nor a local folder.

    Example
    -------
    >>> from speechbrain_emo.lobes.speech_llm import SpeechLLM
    >>> llm = partial(SpeechLLM, source="meta-llama/Llama-3.1-8B-Instruct", lora={"r": 16}, dtype="bfloat16")
    >>> phases = [{"name": "text", "train": ["llm.lora"], "tasks": ["t"], "epochs": 1, "lr": 1e-4}]
    >>> hparams = {"llm": llm, "phases": phases, "corpus_hours": 0, "num_train_records": 160}
    >>> report = estimate(hparams, sustained_flops=1e14)
    >>> report.parameters - report.trainable, report.trainable, report.steps
    (8030261248, 13631488, 10)
    """
    written = _manifest_size(hparams)
    num_records = int(
        _needed(hparams, "num_train_records", written[0] if num_records is None else num_records)
    )
    audio_hours = float(_needed(hparams, "corpus_hours", written[1] if audio_hours is None else audio_hours))
    llm = _on_meta("llm", _needed(hparams, "llm", None))
    encoder = front_end = None
    if hparams.get("encoder") is not None:
        encoder = _on_meta("encoder", hparams["encoder"])
        with torch.device("meta"):
            front_end = _needed(hparams, "front_end", None)(
                num_layers=encoder.num_layers, input_size=encoder.hidden_size, llm_size=llm.hidden_size
            )
    model = SpeechLanguageModel(llm, front_end, encoder)
    schedule = PhaseSchedule(_needed(hparams, "phases", None), hparams.get("cycles", 1) or 1)

    trainable_ids, phase_trainable = set(), {}
    for phase in schedule.phases:
        model.set_trainable(phase.groups)
        ids = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
        phase_trainable[phase.name] = sum(ids.values())
        trainable_ids |= set(ids)
    quantized = hparams["llm"].keywords.get("quantization") == "4bit"
    modules = _module_costs(model, trainable_ids, quantized)

    corpus_records = written[2] or hparams.get("num_corpus_records") or num_records
    seconds = audio_hours * 3600 / max(corpus_records, 1)
    text = int(hparams.get("text_positions") or 150)
    answer = int(hparams.get("answer_positions") or 60)
    frames = encoder.num_frames(int(seconds * encoder.sample_rate)) if encoder is not None and seconds else 0
    slots = sum(front_end.num_positions(kind, frames) for kind in front_end.slot_kinds) if frames else 0
    positions = text + slots
    checkpointing = bool(hparams["llm"].keywords.get("gradient_checkpointing"))

    phases = []
    for key in schedule.keys:
        phase = schedule.at(schedule.first_epoch(key)).phase
        records = phase.records_per_epoch or num_records
        record_flops = training_flops(llm, front_end, positions, answer, frames, checkpointing)
        steps = phase.epochs * steps_per_epoch(records, phase.batch_size)
        phases.append(
            PhaseCost(
                key, phase_trainable[phase.name], phase.epochs, steps, phase.epochs * records * record_flops
            )
        )

    rows, limits = max(p.batch_size for p in schedule.phases), hparams.get("limits") or {}
    rows = min(rows, limits.get("max_rows") or rows)
    batch_positions = min(rows * positions, limits.get("max_positions") or math.inf)
    batch_frames = min(rows * frames, limits.get("max_frames") or math.inf)
    most_trainable = max(phase_trainable.values())
    memory = {"weights": float(sum(m.weight_bytes for m in modules))}
    memory["gradients"] = float(GRADIENT_BYTES * most_trainable)
    memory["optimiser states"] = float(ADAM_STATE_BYTES * most_trainable)
    memory["activations of the language model"] = _llm_activation_bytes(llm, batch_positions, checkpointing)
    memory["logits of the answers"] = _logit_bytes(llm, batch_positions, answer / positions)
    if encoder is not None:
        element = torch.empty((), dtype=encoder.dtype).element_size()
        memory["encoder features"] = float(batch_frames * encoder.num_layers * encoder.hidden_size * element)

    rates = {}
    if sustained_flops is None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        rates[f"this machine, {device}"] = UTILISATION * measure_flops(device)
    else:
        rates["as given"] = float(sustained_flops)
    rates["reference: one large data-centre card"] = REFERENCE_FLOPS
    folder = Path(str(hparams.get("output_folder") or ".")).absolute()
    while not folder.exists():
        folder = folder.parent
    free = os.statvfs(folder)
    assumptions = [
        f"{num_records:,} training records of {seconds:.2f} s on average; {text} text and {slots} slot "
        f"positions a prompt, {answer} of them the answer (text_positions, answer_positions)",
        f"micro-batches of {batch_positions:,} packed positions and {batch_frames:,} encoder frames (limits)",
        f"AdamW with float32 masters; gradient checkpointing {'on' if checkpointing else 'off'}; "
        f"language model {'in 4 bits (NF4)' if quantized else 'not quantised'}",
        f"{100 * UTILISATION:.0f} % of the matrix-multiplication rate is sustained; "
        "loading and evaluation are not counted",
    ]
    if hparams.get("folds"):
        assumptions.append(f"one of {len(hparams['folds'])} folds; all take as many times the hours")
    return DryRunReport(
        modules=modules,
        phases=phases,
        memory=memory,
        cache_rate=cache_rates(encoder, front_end),
        cache_mode=_cache_mode(hparams),
        audio_hours=audio_hours,
        train_hours=num_records * seconds / 3600,
        num_records=num_records,
        download_bytes=_download_bytes(hparams, encoder, llm),
        checkpoint_bytes=float((4 + ADAM_STATE_BYTES) * most_trainable),
        free_disk_bytes=float(free.f_bavail * free.f_frsize),
        encode_flops=encoder_flops(encoder) * audio_hours * 3600 if encoder is not None else 0.0,
        rates=rates,
        assumptions=assumptions,
    )


class MissingSizes(ValueError):
    """A dry run lacks a size that the YAML has to state."""


def _needed(hparams, key, given):
    value = hparams.get(key) if given is None else given
    if value is None:
        raise MissingSizes(
            f"a dry run needs {key!r}, which the hyper-parameters leave out: add it to the YAML (before the data is "
            "prepared, num_train_records and corpus_hours are both needed)"
        )
    return value


def _manifest_size(hparams):
    """(training records, hours of all parts, records of all parts) of written manifests, else three None."""
    paths = {part: Path(str(path)) for part, path in (hparams.get("manifests") or {}).items()}
    if "train" not in paths or not all(path.is_file() for path in paths.values()):
        return None, None, None
    parts = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items()}
    records = [record for part in parts.values() for record in part.values()]
    # A dialogue's record lists its audios; any other has one of its own.
    seconds = sum(
        audio.get("duration") or 0 for record in records for audio in record.get("audios") or [record]
    )
    return len(parts["train"]), seconds / 3600, len(records)


def _on_meta(name, build):
    """The module of a ``!name:`` entry on the meta device: no weights, no tokenizer, no download."""
    if not isinstance(build, partial):
        raise ValueError(f"{name} is {type(build).__name__}; a dry run needs `{name}: !name:...` in the YAML")
    architecture, source = build.keywords.get("architecture"), build.keywords.get("source")
    if source is None and build.args:
        raise ValueError(f"{name} has positional arguments {build.args}; name them in the YAML")
    overrides = {"source": None, "architecture": architecture}
    if architecture is None and source is not None and Path(str(source)).is_dir():
        from transformers import AutoConfig

        overrides["architecture"] = AutoConfig.from_pretrained(str(source), local_files_only=True).to_dict()
    elif architecture is None:
        known = getattr(__import__(build.func.__module__, fromlist=["_"]), "PUBLISHED_ARCHITECTURES", {})
        overrides["architecture"] = known.get(str(source))
    if overrides["architecture"] is None:
        raise MissingSizes(
            f"{name} names the model {source!r} without its architecture, so its size is unknown before a "
            "download (or, for a tiny backbone, before the experiment that `requires` names has made it): take both "
            "from a fragment in hparams/backbones, as in "
            f"`architecture: !ref <backbone[architecture]>`"
        )
    with torch.device("meta"):
        return build(**overrides)


def _module_costs(model, trainable_ids, quantized):
    """Costs by part; the adapters of the language model stand apart."""
    lora_ids = {id(p) for module in model.llm.lora_modules() for p in module.parameters()}
    linear_ids = set()
    if quantized:
        head = model.llm.causal_lm.get_output_embeddings()
        linear_ids = {
            id(module.weight)
            for module in model.llm.modules()
            if isinstance(module, nn.Linear) and module is not head and id(module.weight) not in lora_ids
        }
    parts = {}
    for name, parameter in model.named_parameters():
        part = "llm.lora" if id(parameter) in lora_ids else name.split(".")[0]
        parts.setdefault(part, []).append(parameter)
    costs = []
    for part in ("encoder", "front_end", "llm", "llm.lora"):
        held = parts.get(part, [])
        if not held:
            continue
        types = sorted({str(p.dtype).removeprefix("torch.") for p in held})
        weight_bytes = sum(
            p.numel() * (NF4_BYTES_PER_WEIGHT if id(p) in linear_ids else p.element_size()) for p in held
        )
        costs.append(
            ModuleCost(
                name=part,
                parameters=sum(p.numel() for p in held),
                trainable=sum(p.numel() for p in held if id(p) in trainable_ids),
                dtype="+".join((["nf4"] if part == "llm" and quantized else []) + types),
                weight_bytes=round(weight_bytes),
            )
        )
    return costs


def steps_per_epoch(num_records, batch_size):
    """Optimiser steps of an epoch: a remainder of less than half a step joins the step before it.

    Arguments
    ---------
    num_records, batch_size : int

    Returns
    -------
    int

    Example
    -------
    >>> [steps_per_epoch(n, 8) for n in (3, 8, 11, 12)]
    [1, 1, 1, 2]
    """
    whole, remainder = divmod(num_records, batch_size)
    return max(1, whole + (2 * remainder >= batch_size and remainder > 0))


def cache_rates(encoder, front_end):
    """Disk of the feature cache by mode, in bytes a second of audio.

    ``layers`` keeps all layers: frame_rate * L * D * bytes, 2.56 MB a second for HuBERT-large in float16
    (50 * 25 * 1024 * 2), 64 GB for the 7 h of IEMOCAP's 5531 utterances. ``weighted`` keeps one sum of the
    layers for each mix of the front end.

    Arguments
    ---------
    encoder : SpeechEncoder or None
        Also on the meta device.
    front_end : nn.Module or None
        Its ``mixing_weights`` or ``slot_kinds`` tell the number of mixes.

    Returns
    -------
    dict of str to float

    Example
    -------
    >>> cache_rates(None, None)
    {'off': 0.0}
    """
    if encoder is None:
        return {"off": 0.0}
    element = torch.empty((), dtype=encoder.dtype).element_size()
    frame = encoder.frame_rate * encoder.hidden_size * element
    shared = getattr(front_end, "layer_weights", "per_branch") == "shared"
    mixes = 1 if shared else len(front_end.slot_kinds)
    return {"off": 0.0, "layers": frame * encoder.num_layers, "weighted": frame * mixes}


def _cache_mode(hparams):
    mode = hparams.get("cache", "off")
    # YAML 1.1 reads a bare `off` as false.
    mode = "off" if mode in (None, False) else str(mode)
    if hparams.get("encoder") is None:
        return "off"
    if mode not in ("off", "layers", "weighted"):
        raise ValueError(f"cache is {mode!r}; allowed: off, layers, weighted")
    return mode


def _download_bytes(hparams, encoder, llm):
    """Published files: 32 bits for encoders, 16 for language models; local folders are here already."""
    total = 0.0
    for name, module, width in (("encoder", encoder, 4), ("llm", llm, 2)):
        source = hparams[name].keywords.get("source") if module is not None else None
        # A hub name is "owner/model"; any other path is a folder that exists or that the preparation will
        # make.
        is_hub_name = source is not None and str(source).count("/") == 1 and not Path(str(source)).exists()
        if is_hub_name and not str(source).startswith((".", "/", "~", "results")):
            lora = {id(p) for m in module.lora_modules() for p in m.parameters()} if name == "llm" else ()
            total += width * sum(p.numel() for p in module.parameters() if id(p) not in lora)
    return total


def _llm_sizes(llm):
    """(parameters in matrix products of a position, output layer apart; layers; hidden; V) of a causal LM."""
    head = llm.causal_lm.get_output_embeddings()
    weights = sum(m.weight.numel() for m in llm.modules() if isinstance(m, nn.Linear) and m is not head)
    config = llm.causal_lm.config
    return weights, config.num_hidden_layers, config.hidden_size, config.vocab_size


def training_flops(llm, front_end, positions, answer, frames, checkpointing=False):
    """Floating-point operations of training on one record, encoder apart.

    A frozen matrix costs 2 operations a weight and position forward and 2 backward (towards its input; its
    own gradient is not computed), and 2 more where the forward pass is repeated; a trained one costs 2 + 4.
    Attention adds 4 D a pair of positions, half of them masked, and twice that backward. The output layer
    sees answer positions only.

    Arguments
    ---------
    llm : SpeechLLM
    front_end : nn.Module or None
    positions, answer, frames : int
        Packed positions of the prompt with its answer, answer positions among them, encoder frames.
    checkpointing : bool
        Whether the forward pass is repeated.

    Returns
    -------
    float

    Example
    -------
    >>> from speechbrain_emo.lobes.speech_llm import build_meta
    >>> llm = build_meta("meta-llama/Llama-3.1-8B-Instruct")
    >>> round(training_flops(llm, None, 100, 10, 0) / (4 * 6.98e9 * 100), 2)
    1.01
    """
    weights, layers, hidden, vocabulary = _llm_sizes(llm)
    passes = 3 if checkpointing else 2
    flops = passes * positions * 2 * weights + (passes + 1) * 2 * layers * hidden * positions**2
    flops += passes * 2 * answer * vocabulary * hidden
    if front_end is not None and frames:
        # Upper bound: every front-end matrix at the frame rate, although the adapters run after stacking.
        flops += 6 * frames * sum(p.numel() for p in front_end.parameters())
    return float(flops)


def encoder_flops(encoder):
    """Floating-point operations of the frozen encoder for one second of audio.

    Arguments
    ---------
    encoder : SpeechEncoder
        Also on the meta device.

    Returns
    -------
    float

    Example
    -------
    >>> from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
    >>> encoder = SpeechEncoder.build_meta({"model_type": "hubert"})
    >>> round(encoder_flops(encoder) / 1e9, 1)
    13.4
    """
    linear = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, nn.Linear))
    flops = 2 * linear * encoder.frame_rate
    # The convolutions of a waveform front run at the rate after their own stride, the last one at the frame
    # rate.
    rate = encoder.frame_rate
    for module in reversed([m for m in encoder.modules() if isinstance(m, nn.Conv1d) and m.stride[0] > 1]):
        flops += 2 * module.weight.numel() * rate
        rate *= module.stride[0]
    return float(flops)


def _llm_activation_bytes(llm, positions, checkpointing):
    """Kept for the backward pass of Llama-like layers with fused attention, 16-bit activations.

    A layer keeps its two normalised inputs, queries, keys, values, the attention's output, the residual sums
    (about 6 D + 2 D_kv) and three vectors of the feed-forward size; with checkpointing only its input (D).
    """
    config = llm.causal_lm.config
    width = max(2, next(llm.causal_lm.parameters()).element_size())
    hidden, feed_forward = config.hidden_size, config.intermediate_size
    key_value = 2 * hidden * config.num_key_value_heads // config.num_attention_heads
    layer = 6 * hidden + key_value + 3 * feed_forward
    if checkpointing:
        return float(width * positions * (config.num_hidden_layers * hidden + layer))
    return float(width * positions * config.num_hidden_layers * layer)


def _logit_bytes(llm, positions, answer_share):
    """float32 logits and their gradient, for one chunk of answer positions at most."""
    chunk = min(math.ceil(positions * answer_share), llm.logit_chunk)
    return float(2 * 4 * chunk * llm.causal_lm.config.vocab_size)


def measure_flops(device="cpu", size=1024, repeats=4):
    """Rate of matrix products on a device: bfloat16 on CUDA, float32 elsewhere.

    Arguments
    ---------
    device : str
        ``cpu`` or a CUDA device.
    size : int
        Rows of the square matrices; 8 times as many on CUDA, to fill it.
    repeats : int
        Products that are timed.

    Returns
    -------
    float
        Floating-point operations a second.

    Example
    -------
    >>> measure_flops(size=64) > 0
    True
    """
    cuda = str(device).startswith("cuda")
    size = size * 8 if cuda else size
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    torch.mm(matrix, matrix)
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(matrix, matrix)
    if cuda:
        torch.cuda.synchronize(device)
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def _table(header, rows):
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells):
        # Names to the left, numbers to the right.
        return "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))
        ).rstrip()

    return [line(header), "  ".join("-" * w for w in widths), *(line(row) for row in rows)]


def _size(number):
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _hours(hours):
    if hours * 60 < 90:
        return f"{hours * 60:.3g} minutes"
    if hours < 72:
        return f"{hours:.3g} hours"
    return f"{hours / 24:.3g} days"
