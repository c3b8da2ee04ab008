"""Look at this machine: what is installed, what is missing, and which command brings it.

Nothing is downloaded and no host is contacted: a hub is only looked for in the local cache.
"""

import ctypes.util
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

STATUSES = ("ok", "missing", "warning", "error")
DISTRIBUTION = "speechbrain_emo"
# What a missing part costs, where its name does not say it.
PURPOSES = {
    "espeakng-loader": "the demo corpus and true word times",
    "pocketsphinx": "forced alignment without conda",
    "num2words": "numbers in texts that are aligned",
    "praatio": "TextGrid files",
    "funasr": "emotion2vec features",
    "jiwer": "WER against a reference implementation",
    "sacrebleu": "BLEU-4",
    "rouge-score": "ROUGE-L",
    "pycocoevalcap": "METEOR, CIDEr and SPICE",
    "whisper-normalizer": "English text normalisation before WER",
    "opensmile": "eGeMAPS and ComParE baselines",
    "pesq": "PESQ of a vocoder's copies",
    "onnxruntime": "the published speech tokenizer and speaker encoder of CosyVoice2",
    "onnx": "make test",
    "bitsandbytes": "4-bit language models on 24 GB cards",
    "pytest": "make test",
    "pytest-xdist": "make test",
    "ruff": "make lint",
}
LOW_DISK_BYTES = 20e9


@dataclass
class Check:
    """One thing that was looked at.

    Arguments
    ---------
    name : str
        What was looked at.
    status : str
        ``ok``; ``missing`` (optional and absent); ``warning`` (works, with a limit); ``error`` (required).
    detail : str
        Version, path or number found.
    advice : str
        What to do about it; empty when nothing.

    Raises
    ------
    ValueError
        If the status is none of the four.

    Example
    -------
    >>> Check("java", "missing", "not on PATH", "install a Java 8+ runtime").status
    'missing'
    """

    name: str
    status: str
    detail: str
    advice: str = ""

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(
                f"status of check {self.name!r} is {self.status!r}; allowed: {', '.join(STATUSES)}"
            )


def run_doctor(folder="."):
    """Look at the machine.

    Arguments
    ---------
    folder : str or pathlib.Path
        Whose disk is measured: where results and caches will be written. Need not exist yet.

    Returns
    -------
    list of Check
        Python, packages (required, then optional), devices, commands, disk, hub.

    Example
    -------
    >>> checks = run_doctor()
    >>> [check.status for check in checks if check.name == "python"]
    ['ok']
    """
    return [
        _check_python(),
        *_check_packages(),
        _check_torch_pair(),
        _check_gpu(),
        _check_quantization(),
        _check_espeak(),
        _check_command(
            "mfa", ["version"], "word alignment", "conda install -c conda-forge montreal-forced-aligner"
        ),
        _check_command(
            "java", ["-version"], "METEOR and SPICE", "install a Java 8+ runtime and put it on PATH"
        ),
        _check_command(
            "ffmpeg", ["-version"], "mp3, m4a and video input (MELD)", "install ffmpeg and put it on PATH"
        ),
        _check_memory(),
        _check_disk(folder),
        _check_hub(),
    ]


def _check_python():
    version = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036 (a checkout may be run without an install)
        return Check("python", "error", version, "use Python 3.10 or newer: make setup PYTHON=python3.11")
    return Check("python", "ok", f"{version} at {sys.executable}")


def _declared_requirements():
    """(requirement, extra or None) of every package of setup.cfg; `all` is left out: it repeats them."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    declared = []
    for line in lines:
        requirement = Requirement(line)
        match = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        extra = match.group(1) if match else None
        if extra != "all":
            declared.append((requirement, extra))
    return declared


def _check_packages():
    declared = _declared_requirements()
    if declared is None:
        return [
            Check(
                DISTRIBUTION,
                "error",
                "not installed, so its requirements are unknown",
                "run `make setup` or `pip install -e .` in the checkout",
            )
        ]
    checks = []
    for requirement, extra in declared:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra or ""}):
            continue
        install = (
            f"in the checkout: pip install -e '.[{extra}]'"
            if extra
            else f"pip install '{requirement_text(requirement)}'"
        )
        purpose = PURPOSES.get(requirement.name, "")
        label = f"package {requirement.name}" + (f" [{extra}]" if extra else "")
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            lost = f"not installed{'; needed for ' + purpose if purpose else ''}"
            checks.append(Check(label, "missing" if extra else "error", lost, install))
            continue
        if requirement.specifier.contains(Version(version), prereleases=True):
            checks.append(Check(label, "ok", version))
        else:
            detail = f"{version}, but {requirement.specifier} is needed"
            checks.append(
                Check(
                    label,
                    "warning" if extra else "error",
                    detail,
                    f"pip install '{requirement_text(requirement)}'",
                )
            )
    return checks


def requirement_text(requirement):
    """Name and range of a requirement without its marker, as pip takes it.

    Arguments
    ---------
    requirement : packaging.requirements.Requirement

    Returns
    -------
    str

    Example
    -------
    >>> requirement_text(Requirement("torch<3,>=2.8; extra == 'x'"))
    'torch<3,>=2.8'
    """
    return f"{requirement.name}{requirement.specifier}"


def _check_torch_pair():
    """torchaudio only loads beside the torch of its own release and build."""
    try:
        torch = importlib.import_module("torch")
        torchaudio = importlib.import_module("torchaudio")
    except (ImportError, OSError) as error:
        return Check(
            "torch and torchaudio",
            "error",
            f"cannot be imported together: {error}",
            "install the same release of both from one index: pip install torch==2.11.0 torchaudio==2.11.0",
        )
    detail = f"{torch.__version__} and {torchaudio.__version__}"
    if torch.__version__.split("+")[0].split(".")[:2] != torchaudio.__version__.split("+")[0].split(".")[:2]:
        return Check("torch and torchaudio", "warning", detail, "install the same release of both")
    return Check("torch and torchaudio", "ok", detail)


def _check_gpu():
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Check("gpu", "error", f"torch cannot be imported: {error}", "run `make setup` again")
    if not torch.cuda.is_available():
        return Check(
            "gpu",
            "missing",
            f"none that torch {torch.__version__} can use; {os.cpu_count()} cores",
            "the demo and EmoDB need none; the published sizes need a card of 24 GB (4-bit) or 80 GB",
        )
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        found.append(f"{properties.name} {properties.total_memory / 1e9:.0f} GB ({bf16})")
    return Check("gpu", "ok", "; ".join(found))


def _check_quantization():
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return Check(
            "4-bit weights",
            "missing",
            "bitsandbytes is not installed: quantization: 4bit is not available",
            "in the checkout: pip install -e '.[quantize]' (needs a CUDA card to run)",
        )
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        return Check(
            "4-bit weights", "warning", f"bitsandbytes {version} does not load: {error}", "reinstall it"
        )
    return Check("4-bit weights", "ok", f"bitsandbytes {version}")


def _check_espeak():
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError:
        system = ctypes.util.find_library("espeak-ng")
        detail = f"no espeakng-loader; system library: {system or 'none'}"
        return Check(
            "espeak-ng", "missing", detail, "in the checkout: pip install -e '.[demo]' (for `make demo`)"
        )
    library, data = Path(loader.get_library_path()), Path(loader.get_data_path())
    absent = [str(path) for path in (library, data) if not path.exists()]
    if absent:
        return Check(
            "espeak-ng",
            "warning",
            f"espeakng-loader is installed without {', '.join(absent)}",
            "pip install --force-reinstall espeakng-loader",
        )
    try:
        speech = ctypes.CDLL(str(library))
    except OSError as error:
        return Check(
            "espeak-ng", "warning", f"{library.name} does not load: {error}", "reinstall espeakng-loader"
        )
    speech.espeak_Info.restype = ctypes.c_char_p
    # Only the version: initialising the library would start its synthesis thread.
    version = speech.espeak_Info(None)
    return Check("espeak-ng", "ok", f"{(version or b'?').decode()} from espeakng-loader")


def _check_command(command, arguments, purpose, advice):
    path = shutil.which(command)
    if path is None:
        return Check(f"command {command}", "missing", f"not on PATH; used for {purpose}", advice)
    try:
        answer = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(f"command {command}", "warning", f"{path} does not answer: {error}", advice)
    text = (answer.stdout or answer.stderr).strip()
    first = text.splitlines()[0] if text else "no output"
    if answer.returncode != 0:
        return Check(
            f"command {command}", "warning", f"{path} exits with {answer.returncode}: {first}", advice
        )
    return Check(f"command {command}", "ok", f"{first} at {path}")


def _check_memory():
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("memory", "warning", "this system does not tell its size", "")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < 4e9:
        return Check("memory", "warning", f"{total / 1e9:.1f} GB", "the demo needs about 3 GB free")
    return Check("memory", "ok", f"{total / 1e9:.0f} GB")


def _check_disk(folder):
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.0f} GB free at {existing}"
    if free < LOW_DISK_BYTES:
        return Check(
            "disk", "warning", detail, "weights of an 8B model take 16 GB, all layers of IEMOCAP 64 GB"
        )
    return Check("disk", "ok", detail)


def _check_hub():
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    held = sorted(path.name for path in cache.glob("models--*")) if cache.is_dir() else []
    detail = f"not contacted; {len(held)} models in the cache {cache}"
    if constants.HF_HUB_OFFLINE:
        return Check(
            "model hub", "warning", f"HF_HUB_OFFLINE is set; {detail}", "unset it to download models"
        )
    return Check("model hub", "ok", detail)


def format_checks(checks):
    """Checks as text, one a line, with what to do beneath.

    Arguments
    ---------
    checks : list of Check

    Returns
    -------
    str

    Example
    -------
    >>> print(format_checks([Check("java", "missing", "not on PATH", "install it")]))
    missing  java  not on PATH
                   -> install it
    0 errors, 0 warnings, 1 optional part missing
    """
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.advice and check.status != "ok":
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.advice}")
    count = {status: sum(check.status == status for check in checks) for status in STATUSES}

    def plural(number, word):
        return f"{number} {word}{'' if number == 1 else 's'}"

    lines.append(
        f"{plural(count['error'], 'error')}, {plural(count['warning'], 'warning')}, "
        f"{plural(count['missing'], 'optional part')} missing"
    )
    return "\n".join(lines)


def print_doctor(folder=".", as_json=False, stream=None):
    """Look at the machine and print what was found.

    Arguments
    ---------
    folder : str or pathlib.Path
        Whose disk is measured.
    as_json : bool
        A JSON list instead of text.
    stream : file, optional
        Default: standard output.

    Returns
    -------
    int
        1 when something required is missing, else 0: the exit status of a shell command.

    Example
    -------
    >>> import io
    >>> print_doctor(stream=io.StringIO(), as_json=True) in (0, 1)
    True
    """
    checks = run_doctor(folder)
    text = json.dumps([asdict(check) for check in checks], indent=2) if as_json else format_checks(checks)
    print(text, file=stream or sys.stdout)
    return int(any(check.status == "error" for check in checks))
