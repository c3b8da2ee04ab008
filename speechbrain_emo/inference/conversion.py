"""Converts the folder of the published CosyVoice2-0.5B once: pickles to safetensors, without running their code.

A ``.pt`` file is a pickle, which can run code when it is read. Here it is read with torch's restricted unpickler, which
refuses anything but tensors and plain containers; names and shapes are held against those of the module that will
take them, and only then is something written. Each part becomes a folder of ``config.json`` and
``model.safetensors``; the ONNX files and the tokenizer's folder are copied.
"""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from speechbrain_emo.inference.safe_loading import sha256_of
from speechbrain_emo.lobes.flow import TokenToMel
from speechbrain_emo.lobes.speech_token_lm import KIND, PUBLISHED_ARCHITECTURE, SpeechTokenLM
from speechbrain_emo.lobes.stored import CONFIG, WEIGHTS
from speechbrain_emo.lobes.vocoder import HiFT

REPORT = "conversion.json"
#: Files that are data already; copied where they are present.
COPIED = ("campplus.onnx", "speech_tokenizer_v2.onnx")
TEXT_FOLDER = "CosyVoice-BlankEN"
#: Of the text folder: its settings and its tokenizer. Weights in it are not used, llm.pt has them all.
TEXT_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".md")


class ConversionError(ValueError):
    """A published file that is missing, damaged or another than was expected; the message names it.

    Example
    -------
    >>> issubclass(ConversionError, ValueError)
    True
    """


def plain_names(state):
    """A state without what its names owe to the torch that wrote it.

    Drops the prefix ``generator.`` of a vocoder that was saved with its training and the discriminators beside it,
    and turns ``weight_g`` and ``weight_v`` of weight normalisation into ``parametrizations.weight.original0`` and
    ``original1``.

    Arguments
    ---------
    state : dict of str to torch.Tensor

    Returns
    -------
    dict of str to torch.Tensor

    Example
    -------
    >>> list(plain_names({"generator.conv_pre.weight_g": torch.ones(1), "discriminator.x": torch.ones(1)}))
    ['conv_pre.parametrizations.weight.original0']
    """
    if any(name.startswith("generator.") for name in state):
        state = {
            name.removeprefix("generator."): value
            for name, value in state.items()
            if not name.startswith("discriminator.")
        }
    endings = {
        ".weight_g": ".parametrizations.weight.original0",
        ".weight_v": ".parametrizations.weight.original1",
    }

    def renamed(name):
        for old, new in endings.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    return {renamed(name): value for name, value in state.items()}


@dataclass(frozen=True)
class PublishedPart:
    """One of the published files and what takes it.

    Arguments
    ---------
    file : str
        Name in the published folder.
    build : callable
        Makes the module in its published size; called on the meta device, without arguments.
    kind : str
        Of ``config.json``.
    arguments : callable, optional
        Module -> plain data for ``config.json``. None: the module's ``arguments``.
    rename : callable
        State of the file -> state of the module.
    """

    file: str
    build: Callable
    kind: str
    arguments: Callable | None = None
    rename: Callable = plain_names


def _published_lm():
    """The language model as published: without modulation, in the size of ``hparams/backbones/cosyvoice2.yaml``."""
    return SpeechTokenLM(PUBLISHED_ARCHITECTURE, num_emotions=5, film_mode="none")


#: Name of the folder that is written -> the part. A new one is one more line here.
PARTS = {
    "llm": PublishedPart("llm.pt", _published_lm, KIND),
    "flow": PublishedPart("flow.pt", TokenToMel, "flow"),
    "vocoder": PublishedPart("hift.pt", HiFT, "vocoder"),
}


def read_tensors(path):
    """Tensors of a ``.pt`` file, read without running code.

    Arguments
    ---------
    path : str or pathlib.Path
        A state dictionary. Numbers beside the tensors (epoch, step) are left out.

    Returns
    -------
    dict of str to torch.Tensor
        Mapped from the file where its format allows it.

    Raises
    ------
    ConversionError
        If the file holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ConversionError(
            f"{path}: cannot be read as tensors alone ({str(error).splitlines()[0] if str(error) else type(error)}); "
            "it is not opened any other way: get the published file again"
        ) from error
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors")
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    others = [name for name, value in state.items() if not isinstance(value, (torch.Tensor, int, float))]
    if others or not tensors:
        raise ConversionError(f"{path}: beside tensors it holds {others[:5]}: not a state dictionary")
    return tensors


def check_state(state, module, file):
    """Hold names and shapes of a state against a module.

    Arguments
    ---------
    state : dict of str to torch.Tensor
    module : torch.nn.Module
        May be on the meta device.
    file : str
        What the message names.

    Raises
    ------
    ConversionError
        With the first names that differ.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    if missing or unknown or wrong:
        shapes = [f"{name} is {given[name]}, not {wanted[name]}" for name in wrong[:3]]
        raise ConversionError(
            f"{file} is not the published one: {len(missing)} tensors are missing {missing[:3]}, {len(unknown)} are "
            f"unknown {unknown[:3]}, {len(wrong)} have another shape {shapes}"
        )


def convert_part(name, part, source, target):
    """Convert one file.

    Arguments
    ---------
    name : str
        Folder that is written into ``target``.
    part : PublishedPart
    source, target : str or pathlib.Path
        Folders.

    Returns
    -------
    dict
        ``file``, ``sha256``, ``tensors`` and ``parameters`` for the report.

    Raises
    ------
    ConversionError
        If the file is not the published one. Nothing is then written.
    """
    file = Path(source) / part.file
    if not file.is_file():
        raise ConversionError(f"{file} does not exist: give the folder with {part.file}")
    with torch.device("meta"):
        module = part.build()
    state = part.rename(read_tensors(file))
    check_state(state, module, file)
    storages = [value.untyped_storage().data_ptr() for value in state.values()]
    # Tensors that share memory are not allowed in safetensors.
    state = {
        key: value.clone() if storages.count(value.untyped_storage().data_ptr()) > 1 else value.contiguous()
        for key, value in state.items()
    }
    arguments = module.arguments if part.arguments is None else part.arguments(module)
    folder = Path(target) / name
    partial = folder.with_name(f"PARTIAL+{name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(state, str(partial / WEIGHTS), metadata={"format": "pt"})
    config = json.dumps({"kind": part.kind, "arguments": arguments}, indent=1)
    (partial / CONFIG).write_text(config + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)
    return {
        "file": part.file,
        "sha256": sha256_of(file),
        "tensors": len(state),
        "parameters": sum(value.numel() for value in state.values()),
    }


def convert_folder(source, target, names=None, parts=None, report=print):
    """Convert the published folder; what is converted already is kept.

    Arguments
    ---------
    source : str or pathlib.Path
        With llm.pt, flow.pt, hift.pt, campplus.onnx, speech_tokenizer_v2.onnx and CosyVoice-BlankEN.
    target : str or pathlib.Path
        Made where it does not exist.
    names : sequence of str, optional
        Parts to convert. None: all.
    parts : dict of str to PublishedPart, optional
        None: ``PARTS``.
    report : callable
        Takes a line of text for each part.

    Returns
    -------
    dict
        What ``conversion.json`` in the target holds: part -> its report, and ``copied``.

    Raises
    ------
    ConversionError
        If a part is not known or a file is not the published one.
    """
    source, target = Path(source), Path(target)
    parts = PARTS if parts is None else parts
    names = list(parts) if names is None else list(names)
    unknown = sorted(set(names) - set(parts))
    if unknown:
        raise ConversionError(f"parts {unknown} are not known; allowed are {sorted(parts)}")
    if not source.is_dir():
        raise ConversionError(f"{source} is not a folder: give the one that holds the published files")
    target.mkdir(parents=True, exist_ok=True)
    done_file = target / REPORT
    done = json.loads(done_file.read_text(encoding="utf-8")) if done_file.is_file() else {}
    for name in names:
        file = source / parts[name].file
        complete = (target / name / CONFIG).is_file() and (target / name / WEIGHTS).is_file()
        if complete and file.is_file() and done.get(name, {}).get("sha256") == sha256_of(file):
            report(f"{name}: converted already")
            continue
        done[name] = convert_part(name, parts[name], source, target)
        done_file.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        report(f"{name}: {done[name]['tensors']} tensors, {done[name]['parameters']:,} parameters")
    done["copied"] = _copy_data(source, target, report)
    done_file.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return done


def _copy_data(source, target, report):
    files = [source / name for name in COPIED]
    folder = source / TEXT_FOLDER
    if folder.is_dir():
        files += sorted(path for path in folder.iterdir() if path.suffix in TEXT_SUFFIXES)
    else:
        report(f"{folder} is not there: the text tokenizer is not copied")
    copied = []
    for file in files:
        name = file.relative_to(source)
        if not file.is_file():
            report(f"{name} is not there and is not copied")
            continue
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not (place.is_file() and place.stat().st_size == file.stat().st_size):
            shutil.copyfile(file, place.with_name(place.name + ".partial"))
            os.replace(place.with_name(place.name + ".partial"), place)
        copied.append(str(name))
    return copied
