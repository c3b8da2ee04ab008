"""Checks an exported model before anything of it is opened or built.

A HyperPyYAML file can run any code (``!apply:os.system``), and so can a pickle. A model folder therefore
carries a manifest that is data only. What it lists is verified by size and sha256, what it does not list is
never opened, pickles are refused, and the YAML is read as text and held against an allow-list of tags before
anything is constructed.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from safetensors import SafetensorError

MANIFEST_FILE = "manifest.json"
HPARAMS_FILE = "hyperparams.yaml"
FORMAT = "speechbrain_emo.model"
FORMAT_VERSION = 1

#: What ``!new:`` may construct. A new front end, task or format that can be exported is one more line here.
ALLOWED_CLASSES = frozenset(
    {
        "speechbrain_emo.lobes.emotion2vec.Emotion2Vec",
        "speechbrain_emo.lobes.speech_encoder.SpeechEncoder",
        "speechbrain_emo.lobes.speech_llm.SpeechLLM",
        "speechbrain_emo.lobes.dual_adapters.DualAdapters",
        "speechbrain_emo.lobes.eq_former.EQFormer",
        "speechbrain_emo.lobes.vib_front_end.VIBFrontEnd",
        "speechbrain_emo.lobes.word_emotion.WordEmotionModel",
        "speechbrain_emo.prompts.next_line.EmotionTask",
        "speechbrain_emo.prompts.next_line.NextLineTask",
        "speechbrain_emo.prompts.tasks.AnswerFormat",
        "speechbrain_emo.prompts.tasks.ChoiceTask",
        "speechbrain_emo.prompts.tasks.DialogueTask",
        "speechbrain_emo.prompts.tasks.InstructionTask",
    }
)
#: Files that can run code when they are read, or when Python finds them.
REFUSED_SUFFIXES = frozenset(
    {
        ".ckpt",
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
        ".pickle",
        ".joblib",
        ".npy",
        ".npz",
        ".h5",
        ".py",
        ".pyc",
        ".so",
    }
)
#: What else a model folder may hold, so that a renamed pickle is not opened either. An .onnx file is a graph without
#: Python code; libraries of operators that it may ask for are never loaded.
ALLOWED_SUFFIXES = frozenset({".yaml", ".json", ".safetensors", ".txt", ".model", ".jinja", ".md", ".onnx"})
#: What ``*_implementation`` of a config may say.
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
#: What ``lora`` may hold: peft imports a module that ``megatron_core`` names.
#: Keys of an adapter of a partial LoRA (``lobes/partial_lora.py``).
PARTIAL_LORA_KEYS = frozenset({"kinds", "r", "lora_alpha", "lora_dropout", "target_modules"})
LORA_KEYS = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
    }
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MAX_YAML_BYTES = 4_000_000
MAX_DEPTH = 32
MODEL_FOLDER = "model_folder"

_NEW = "!new:"
_REFERENCE = re.compile(rf"<({MODEL_FOLDER}|answer_format)>((/[A-Za-z0-9_][A-Za-z0-9._-]*)*)")
_TUPLE = re.compile(r"\(.*\)", re.DOTALL)


class UnsafeModelError(ValueError):
    """A model folder that is damaged, incomplete or could run code; the message names the file.

    Example
    -------
    >>> issubclass(UnsafeModelError, ValueError)
    True
    """


def sha256_of(path):
    """Hexadecimal sha256 of a file's bytes.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    str

    Example
    -------
    >>> path = getfixture("tmp_path") / "empty"
    >>> _ = path.write_bytes(b"")
    >>> sha256_of(path)[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_relative_path(name, where=MANIFEST_FILE):
    """Refuse a path that could lead out of the model folder or to a file that can run code.

    Arguments
    ---------
    name : str
        Path with forward slashes, relative to the model folder.
    where : str
        What the message names as the path's origin.

    Returns
    -------
    str
        The path itself.

    Raises
    ------
    UnsafeModelError
        If it is absolute, has ``..`` or a backslash, or its ending is not allowed.

    Example
    -------
    >>> check_relative_path("llm/config.json")
    'llm/config.json'
    """
    if not isinstance(name, str) or not name:
        raise UnsafeModelError(f"{where}: {name!r} is not the path of a file")
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or "\\" in name
        or "\0" in name
        or ":" in name
        or any(part in ("..", ".", "") for part in name.split("/"))
    ):
        raise UnsafeModelError(
            f"{where}: the path {name!r} leads out of the model folder; only plain relative paths are opened"
        )
    suffix = path.suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise UnsafeModelError(
            f"{where}: {name!r} is refused: a {suffix} file can run code when it is read; weights must be "
            ".safetensors"
        )
    if suffix not in ALLOWED_SUFFIXES:
        raise UnsafeModelError(
            f"{where}: {name!r} is refused: its ending is none of {', '.join(sorted(ALLOWED_SUFFIXES))}"
        )
    return name


def read_manifest(path):
    """Read a model's manifest and check that it names nothing unsafe. No other file is touched.

    Arguments
    ---------
    path : str or pathlib.Path
        ``manifest.json``.

    Returns
    -------
    dict
        With ``files``: path -> {size, sha256}.

    Raises
    ------
    UnsafeModelError
        If it is missing, not a manifest, of a newer format, or names a path that is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise UnsafeModelError(f"{path}: missing; an exported model has a {MANIFEST_FILE}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"{path}: not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UnsafeModelError(f"{path}: not the manifest of a model (its format must be {FORMAT!r})")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UnsafeModelError(
            f"{path}: format version {manifest.get('format_version')!r}; this toolkit reads version "
            f"{FORMAT_VERSION}: use the toolkit's version named under 'packages'"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or HPARAMS_FILE not in files:
        raise UnsafeModelError(f"{path}: lists no {HPARAMS_FILE}")
    for name, entry in files.items():
        check_relative_path(name, str(path))
        fine = isinstance(entry, dict) and type(entry.get("size")) is int
        if not fine or not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
            raise UnsafeModelError(f"{path}: the entry of {name!r} has no size and sha256")
    external = manifest.get("external", {})
    if not isinstance(external, dict) or not all(isinstance(v, str) for v in external.values()):
        raise UnsafeModelError(f"{path}: 'external' must map a part's name to a folder")
    return manifest


def verify_folder(folder):
    """Check every file of a model folder against its manifest, before any is parsed.

    Arguments
    ---------
    folder : str or pathlib.Path
        The model folder.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    UnsafeModelError
        If a listed file is missing, differs, is a link that leads out of the folder, or a subfolder holds a
        file that is not listed (loaders of backbones look for files by name, and would open it).
    """
    folder = Path(folder)
    manifest = read_manifest(folder / MANIFEST_FILE)
    root = folder.resolve()
    again = "export or download the model again"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UnsafeModelError(f"{path}: listed in {MANIFEST_FILE} but missing; {again}")
        if not path.resolve().is_relative_to(root):
            raise UnsafeModelError(f"{path}: a link to {path.resolve()}, outside the model folder; refused")
        if name.endswith(".md"):
            continue  # Read by people only, who may correct it.
        size = path.stat().st_size
        if size != entry["size"]:
            raise UnsafeModelError(f"{path}: {size} bytes, {MANIFEST_FILE} says {entry['size']}; {again}")
        if sha256_of(path) != entry["sha256"]:
            raise UnsafeModelError(f"{path}: its content differs from {MANIFEST_FILE} (sha256); {again}")
        if name.endswith(".json"):
            _check_json(path)
    for base, folders, files in os.walk(folder):
        for name in sorted(folders):
            if (Path(base) / name).is_symlink():
                raise UnsafeModelError(f"{Path(base) / name}: a link to a folder; refused")
        if Path(base) == folder:
            continue  # At the top nothing is looked for by name.
        for name in sorted(files):
            relative = (Path(base) / name).relative_to(folder).as_posix()
            if relative not in manifest["files"]:
                raise UnsafeModelError(
                    f"{Path(base) / name}: not listed in {MANIFEST_FILE}; take it out of the model folder"
                )
    return manifest


def _check_json(path):
    """Refuse a transformers config that names code to import or to fetch."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"{path}: not JSON ({error})") from error
    if isinstance(content, dict) and "auto_map" in content:
        raise UnsafeModelError(
            f"{path}: 'auto_map' names Python code that belongs to the model; only classes of transformers "
            "are used"
        )
    _check_implementations(content, str(path))


def _check_implementations(content, where):
    """transformers takes an attention implementation that it does not know for a kernel on the hub."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if (
                str(key).endswith("_implementation")
                and isinstance(value, str)
                and value not in IMPLEMENTATIONS
            ):
                raise UnsafeModelError(
                    f"{where}: {key} is {value!r}; only transformers' own are used: "
                    f"{', '.join(IMPLEMENTATIONS)}"
                )
            _check_implementations(value, where)
    elif isinstance(content, list):
        for value in content:
            _check_implementations(value, where)


def _unknown_lora_keys(lora):
    """Keys of a LoRA's settings that are not allowed; of a partial one, those of each adapter."""
    if lora and all(isinstance(values, Mapping) for values in lora.values()):
        allowed = PARTIAL_LORA_KEYS
        return sorted(f"{name}.{k}" for name, values in lora.items() for k in set(values) - allowed)
    return sorted(set(lora) - LORA_KEYS)


def check_parts(text, manifest, name=HPARAMS_FILE, remote=False, replaced=(), parts=("encoder", "llm")):
    """Check what the allowed classes are built with: where weights come from, settings that import code.

    Arguments
    ---------
    text : str
        A text that :func:`check_yaml` has passed.
    manifest : mapping
        The model's manifest.
    name : str
        What error messages call the text.
    remote : bool
        Whether the model comes from another machine, whose folders are not this one's.
    replaced : collection of str
        Parts whose source the caller gives.
    parts : sequence of str
        Keys of the backbones.

    Raises
    ------
    UnsafeModelError
        If a backbone is neither inside the folder, nor a name on the hub, nor a folder that the export
        named; or if a setting is not allowed.
    """
    document = ruamel.yaml.YAML(typ="rt", pure=True).load(text)  # Tags stay marks; nothing is constructed.
    for part in parts:
        settings = document[part]
        if not isinstance(settings, Mapping):
            raise UnsafeModelError(f"{name}: {part} is no mapping of settings")
        _check_implementations(settings, f"{name}: {part}")
        lora = settings.get("lora")
        unknown = _unknown_lora_keys(lora) if isinstance(lora, Mapping) else []
        if unknown:
            raise UnsafeModelError(f"{name}: llm.lora has {unknown}; allowed: {sorted(LORA_KEYS)}")
        source = settings.get("source")
        if part in replaced or hasattr(source, "tag"):
            continue  # A tag here is a checked !ref into the folder.
        if source is not None and source == manifest.get("external", {}).get(part):
            if remote:
                raise UnsafeModelError(
                    f"{name}: {part} is a folder of the machine that trained the model ({source}); name "
                    "your own: "
                    f"overrides={{'{part}': {{'source': 'FOLDER'}}}}"
                )
            check_external_folder(source)
        elif not isinstance(source, str) or not HUB_NAME.fullmatch(source) or ".." in source:
            raise UnsafeModelError(
                f"{name}: {part}.source is {source!r}, neither inside the model folder nor a name on the "
                "hub; refused"
            )


def check_external_folder(folder):
    """Check a backbone that stands outside the model folder: no code, and weights as safetensors.

    Arguments
    ---------
    folder : str or pathlib.Path
        A folder as ``save_pretrained`` writes it.

    Raises
    ------
    UnsafeModelError
        If it is missing, has no safetensors, or its config names code.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnsafeModelError(
            f"{folder}: this backbone was too large to be copied into the model folder, and its own folder "
            "is not "
            "there; give its new place by overrides, for example overrides={'llm': {'source': 'FOLDER'}}"
        )
    if not any(folder.glob("*.safetensors")):
        raise UnsafeModelError(
            f"{folder}: no .safetensors; pickled weights are refused: load them once with transformers and "
            "call "
            "save_pretrained"
        )
    for path in sorted(folder.glob("*.json")):
        _check_json(path)


def check_yaml(text, name=HPARAMS_FILE, resolved=False):
    """Hold a YAML text against the allow-list of tags; nothing is constructed.

    Arguments
    ---------
    text : str
        The text.
    name : str
        What error messages call it.
    resolved : bool
        Whether HyperPyYAML has replaced the references already; it then writes shared nodes as anchors.

    Raises
    ------
    UnsafeModelError
        On a tag outside the list, an anchor, alias, merge key, directive, second document, duplicate key, or
        a scalar in parentheses (HyperPyYAML reads its inside with a loader that constructs any Python
        object). The message names the line.

    Example
    -------
    >>> check_yaml("a: 1")
    >>> check_yaml("a: {b: [!apply:os.system [ls]]}")
    Traceback (most recent call last):
    speechbrain_emo.inference.safe_loading.UnsafeModelError: hyperparams.yaml, line 1: tag ...
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_YAML_BYTES:
        raise UnsafeModelError(f"{name}: longer than {MAX_YAML_BYTES} bytes; refused")
    try:
        _check_events(text, name, resolved)
        # The safe loader, which knows no Python tag, is only asked for nodes.
        nodes = list(ruamel.yaml.YAML(typ="safe", pure=True).compose_all(text))
        for node in nodes:
            _check_keys(node, name)
    except ruamel.yaml.error.YAMLError as error:
        raise UnsafeModelError(f"{name}: not valid YAML: {error}") from error
    if len(nodes) != 1 or not isinstance(nodes[0], MappingNode):
        raise UnsafeModelError(f"{name}: must be one mapping of keys to values")


def _check_events(text, name, resolved):
    """Tags, anchors and directives, event by event, wherever they stand."""
    depth = 0
    for event in ruamel.yaml.YAML(typ="safe", pure=True).parse(text):
        where = f"{name}, line {event.start_mark.line + 1}"
        kind = type(event).__name__
        depth += kind in ("MappingStartEvent", "SequenceStartEvent")
        depth -= kind in ("MappingEndEvent", "SequenceEndEvent")
        if depth > MAX_DEPTH:
            raise UnsafeModelError(f"{where}: nested more than {MAX_DEPTH} deep; refused")
        if kind == "DocumentStartEvent" and (event.version or event.tags):
            raise UnsafeModelError(f"{where}: a YAML directive (%); refused")
        if not resolved and (kind == "AliasEvent" or getattr(event, "anchor", None)):
            raise UnsafeModelError(f"{where}: anchor or alias {event.anchor!r}; refused, write the value out")
        tag = getattr(event, "tag", None)
        tag = None if tag is None else str(tag)
        if kind == "ScalarEvent":
            if tag == "!ref" and not resolved:
                if not _REFERENCE.fullmatch(event.value) or ".." in event.value:
                    raise UnsafeModelError(
                        f"{where}: reference {event.value!r}; allowed: <{MODEL_FOLDER}>/NAME and "
                        "<answer_format>"
                    )
                continue
            # Reading and writing turns a quoted scalar into a plain one, but keeps a literal block.
            if event.style not in ("|", ">") and _TUPLE.fullmatch(event.value.strip()):
                if event.style is None or not resolved:
                    raise UnsafeModelError(
                        f"{where}: {event.value[:40]!r} is read as a tuple, whose inside may construct "
                        "Python objects; "
                        "refused, write a list, or a text as a literal block (|-)"
                    )
            if event.style is None and event.value == "<<":
                raise UnsafeModelError(f"{where}: merge key <<; refused")
        if tag is None:
            continue
        if tag.startswith(_NEW) and kind == "MappingStartEvent" and tag[len(_NEW) :] in ALLOWED_CLASSES:
            continue
        raise UnsafeModelError(
            f"{where}: tag {tag!r} is not allowed: it could run code. Allowed: !new: (with keyword "
            "arguments) of "
            f"{', '.join(sorted(c.rsplit('.', 1)[1] for c in ALLOWED_CLASSES))}, and !ref to <{MODEL_FOLDER}>"
        )


def _check_keys(node, name, seen=None):
    """Duplicate keys, and keys that are no plain text, in a node and below."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_keys(item, name, seen)
    elif isinstance(node, MappingNode):
        keys = set()
        for key, value in node.value:
            where = f"{name}, line {key.start_mark.line + 1}"
            if not isinstance(key, ScalarNode):
                raise UnsafeModelError(f"{where}: a key that is a list or a mapping; refused")
            if key.value in keys:
                raise UnsafeModelError(f"{where}: the key {key.value!r} stands there twice; refused")
            keys.add(key.value)
            _check_keys(value, name, seen)


def load_checked_yaml(text, folder, name=HPARAMS_FILE, overrides=None):
    """Check a YAML text and load it.

    Arguments
    ---------
    text : str
        The text.
    folder : str or pathlib.Path
        What ``<model_folder>`` stands for.
    name : str
        What error messages call it.
    overrides : mapping, optional
        Plain values of the caller that replace the file's.

    Returns
    -------
    dict
        The loaded hyperparameters.

    Raises
    ------
    UnsafeModelError
        See :func:`check_yaml`.

    Example
    -------
    >>> load_checked_yaml("model_folder: null\\nsource: !ref <model_folder>/llm", "/models/a")["source"]
    '/models/a/llm'
    """
    check_yaml(text, name)
    overrides = {**(overrides or {}), MODEL_FOLDER: str(folder)}
    resolved = resolve_references(text, dict(overrides)).read()
    # What is constructed is this text, not the one in the file: the same rules hold for it.
    check_yaml(resolved, f"{name} (references resolved)", resolved=True)
    try:
        return load_hyperpyyaml(text, dict(overrides))
    except (TypeError, SafetensorError) as error:
        raise UnsafeModelError(f"{name}: the model cannot be built: {error}") from error


def check_structure(text, keys, name=HPARAMS_FILE):
    """Refuse top-level keys that are not expected; nothing is constructed.

    Arguments
    ---------
    text : str
        A text that :func:`check_yaml` has passed.
    keys : collection of str
        What may stand at the top.
    name : str
        What error messages call it.

    Raises
    ------
    UnsafeModelError
        If there is another key, or one is missing.
    """
    node = ruamel.yaml.YAML(typ="safe", pure=True).compose(text)
    found = {key.value for key, _ in node.value}
    for difference, what in ((found - set(keys), "unknown"), (set(keys) - found, "missing")):
        if difference:
            raise UnsafeModelError(f"{name}: {what} keys {sorted(difference)}; expected: {sorted(keys)}")
