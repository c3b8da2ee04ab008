"""Bind every argument in a YAML to the signature that will receive it, without building anything.

A misspelt argument otherwise shows itself only when its object is built: for a ``!name:`` entry that may be
hours into a run, and for a ``**kwargs`` never.
"""

import inspect
import io
import pydoc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

BUILDING_TAGS = ("!new:", "!name:", "!apply:", "!module:")
# HyperPyYAML runs these while it resolves references, so they cannot be looked at first.
RUN_EARLY_TAGS = ("!applyref:",)


@dataclass(frozen=True)
class BindingProblem:
    """An entry of a YAML that cannot work.

    Arguments
    ---------
    key : str
        Where: ``tasks[asr]``.
    tag : str
        The entry's tag, empty where it has none.
    message : str
        What is wrong and what is allowed.

    Example
    -------
    >>> print(BindingProblem("llm", "!name:a.B", "there is no a.B"))
    llm (!name:a.B): there is no a.B
    """

    key: str
    tag: str
    message: str

    def __str__(self):
        return f"{self.key}{f' ({self.tag})' if self.tag else ''}: {self.message}"


def check_yaml(yaml, overrides=None, folder=None):
    """Find every entry of a HyperPyYAML text that names nothing or passes a wrong argument.

    Arguments
    ---------
    yaml : str or pathlib.Path
        A file, or the text itself when it holds a line break.
    overrides : str or mapping, optional
        As for ``load_hyperpyyaml``: an overlay or a command line.
    folder : str or pathlib.Path, optional
        What ``!include:`` is relative to, for a text.

    Returns
    -------
    list of BindingProblem
        Empty when all is well. References that lead nowhere and missing files of ``!include:`` are problems
        too.

    Example
    -------
    >>> print(*check_yaml("size: 3\\nlayer: !new:torch.nn.Linear\\n    in_features: !ref <size>\\n"))
    layer (!new:torch.nn.Linear): missing a required argument: 'out_features'; it takes (in_features: int, ...
    >>> check_yaml("opt: !name:torch.optim.AdamW\\n    betas: [0.9, 0.98]\\n")
    []
    """
    if isinstance(yaml, Path) or "\n" not in yaml:
        folder = Path(yaml).parent
        text = Path(yaml).read_text(encoding="utf-8")
    else:
        text = yaml
    early = [tag for tag in RUN_EARLY_TAGS if tag in text]
    if early:
        return [
            BindingProblem("(file)", early[0], "is run while references are resolved; use !apply: instead")
        ]
    stream = io.StringIO(text)
    if folder is not None:
        # HyperPyYAML takes the folder of `!include:` from the name of the stream.
        stream.name = str(Path(folder) / "experiment.yaml")
    merged = _fill_placeholders(text, overrides)
    problems = []
    _retagged(YAML(typ="rt", pure=True).load(text), merged, "", problems)
    try:
        resolved = resolve_references(stream, merged or None, overrides_must_match=True)
    except (ValueError, KeyError, OSError) as error:
        return [*problems, BindingProblem("(file)", "", f"references cannot be resolved: {error}")]
    _walk(YAML(typ="rt", pure=True).load(resolved), "", problems, set())
    return problems


def _fill_placeholders(text, overrides):
    """Overrides with a value for each `!PLACEHOLDER` that they leave open: a user gives it when calling."""
    reader = YAML(typ="rt", pure=True)
    content = reader.load(text) or {}
    given = reader.load(overrides) if isinstance(overrides, str) else dict(overrides or {})
    given = {} if given is None else given
    for key, value in content.items():
        if _tag(value) == "!PLACEHOLDER" and key not in given:
            given[key] = f"given_by_the_user/{key}"
    return given


def _retagged(base, overrides, key, problems):
    """Overrides that name another class than the file: HyperPyYAML merges them under the old name."""
    if not isinstance(base, Mapping) or not isinstance(overrides, Mapping):
        return
    for name, value in overrides.items():
        here = f"{key}[{name}]" if key else str(name)
        old, new = _tag(base.get(name)), _tag(value)
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping):
            if new and new != old:
                problems.append(
                    BindingProblem(here, new, f"an override keeps the tag of the file, {old or 'none'}")
                )
            _retagged(base[name], value, here, problems)


def _tag(node):
    return getattr(getattr(node, "tag", None), "value", None) or ""


def _walk(node, key, problems, seen):
    if isinstance(node, (Mapping, list)):
        # A referenced node occurs several times; one look is enough.
        if id(node) in seen:
            return
        seen.add(id(node))
    tag = _tag(node)
    if tag.startswith(BUILDING_TAGS):
        problem = _bind(tag, node)
        if problem:
            problems.append(BindingProblem(key or "(file)", tag, problem))
    elif tag in ("!ref", "!copy"):
        message = "refers to a reference that stands further down, which is not followed: move that one up"
        problems.append(BindingProblem(key, tag, message))
    elif tag.startswith("!") and not tag.startswith("!tuple"):
        problems.append(
            BindingProblem(key or "(file)", tag, f"unknown tag; known are {', '.join(BUILDING_TAGS)}")
        )
    if isinstance(node, Mapping):
        for name, value in node.items():
            _walk(value, f"{key}[{name}]" if key else str(name), problems, seen)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _walk(value, f"{key}[{index}]", problems, seen)


def _bind(tag, node):
    """What is wrong with a tagged node, or an empty string."""
    kind, dotted = tag.split(":", 1)
    try:
        target = pydoc.locate(dotted)
    except pydoc.ErrorDuringImport as error:
        return f"importing it fails: {error}"
    if target is None:
        return f"there is no {dotted}: check the module's path and the name"
    if isinstance(node, Mapping):
        args, kwargs = (), dict(node)
    elif isinstance(node, list):
        args, kwargs = tuple(node), {}
    else:
        args, kwargs = (), {}
    if kind == "!module":
        if not inspect.ismodule(target):
            return f"{dotted} is no module"
        return "a module takes no arguments" if args or kwargs else ""
    if kind == "!new" and not inspect.isclass(target):
        return f"!new: needs a class; {dotted} is a {type(target).__name__}: use !apply: for a function"
    if kind == "!apply" and not inspect.isroutine(target):
        return f"!apply: needs a function; {dotted} is a {type(target).__name__}: use !new: for a class"
    if not callable(target):
        return f"{dotted} is a {type(target).__name__}, which takes no arguments" if args or kwargs else ""
    try:
        signature = inspect.signature(target)
    except ValueError:
        # Some built-in functions tell no signature; nothing can be bound.
        return ""
    try:
        # `!name:` makes a partial: what is missing comes with the call.
        (signature.bind_partial if kind == "!name" else signature.bind)(*args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return ""
