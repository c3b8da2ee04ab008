"""Labels of one corpus in the words of another: spellings that mean the same, and maps that a user writes."""

import difflib
import json
from collections import Counter
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from speechbrain_emo.dataio.manifest import Finding

#: Common word -> other spellings in the field. Close words that corpora tell apart (calm, boredom) stay apart.
SPELLINGS = {
    "angry": ("anger", "ang", "anger/rage"),
    "happy": ("happiness", "hap", "happ", "joy", "joyful", "amused", "amusement"),
    "neutral": ("neu", "neutrality", "normal"),
    "sad": ("sadness", "sa"),
    "fear": ("fearful", "fea", "fear/anxiety", "afraid", "anxiety", "scared"),
    "disgust": ("disgusted", "dis", "disg"),
    "surprise": ("surprised", "sur", "surp", "pleasant_surprise", "pleasant_surprised", "ps"),
    "boredom": ("bored", "bor"),
    "calm": (),
    "contempt": ("contemptuous", "con"),
    "excited": ("excitement", "exc"),
    "frustrated": ("frustration", "fru"),
    "sleepy": ("sleepiness",),
}
_COMMON = {spelling: word for word, others in SPELLINGS.items() for spelling in (word, *others)}


def common_word(label):
    """The common word of a spelling, None for an unknown one.

    Arguments
    ---------
    label : str

    Returns
    -------
    str or None

    Example
    -------
    >>> common_word("Anger"), common_word(" ANG "), common_word("wistful")
    ('angry', 'angry', None)
    """
    return _COMMON.get(_plain(label))


def _plain(label):
    return "_".join(str(label).casefold().replace("-", " ").replace("_", " ").split())


def suggest(label, allowed):
    """The allowed label that another spelling probably means.

    Arguments
    ---------
    label : str
        A label that is not among the allowed ones.
    allowed : sequence of str

    Returns
    -------
    str or None
        None where nothing is near.

    Example
    -------
    >>> labels = ["neutral", "boredom"]
    >>> suggest("Neutral", labels), suggest("boredem", labels), suggest("x", labels)
    ('neutral', 'boredom', None)
    """
    by_plain = {_plain(a): a for a in allowed}
    if _plain(label) in by_plain:
        return by_plain[_plain(label)]
    word = common_word(label)
    if word is not None:
        return next((a for a in allowed if common_word(a) == word), None)
    near = difflib.get_close_matches(_plain(label), by_plain, n=1, cutoff=0.8)
    return by_plain[near[0]] if near else None


def automatic_map(theirs, ours):
    """Map labels that differ in spelling only; the others map to None.

    Arguments
    ---------
    theirs : iterable of str
        Labels of a corpus.
    ours : sequence of str
        Labels of an experiment or a model.

    Returns
    -------
    dict of str to (str or None)

    Example
    -------
    >>> automatic_map(["anger", "boredom", "sadness"], ["angry", "sad"])
    {'anger': 'angry', 'boredom': None, 'sadness': 'sad'}
    """
    return {label: label if label in ours else suggest(label, ours) for label in theirs}


def read_label_map(path, corpus=None):
    """Read a map of labels from a YAML or JSON file.

    Arguments
    ---------
    path : str or pathlib.Path
        ``{theirs: ours}``, null for labels that are left out; or one such mapping for each corpus.
    corpus : str, optional
        Which mapping, where the file has several.

    Returns
    -------
    dict of str to (str or None)

    Raises
    ------
    ValueError
        If the file is no such mapping or lacks the corpus.

    Example
    -------
    >>> path = getfixture("tmp_path") / "map.yaml"
    >>> _ = path.write_text("EmoDB: {anger: angry, boredom: null}\\nMELD: {joy: happy}\\n")
    >>> read_label_map(path, "EmoDB")
    {'anger': 'angry', 'boredom': None}
    """
    path, content = Path(path), _read(path)
    nested = [isinstance(value, dict) for value in content.values()]
    if all(nested):
        if corpus not in content:
            raise ValueError(f"label map {path}: no entry {corpus!r}; it has {', '.join(map(str, content))}")
        content = content[corpus]
    elif any(nested):
        raise ValueError(f"label map {path}: mixes labels and mappings of corpora; write one or the other")
    wrong = {k: v for k, v in content.items() if v is not None and not isinstance(v, str)}
    if wrong:
        raise ValueError(f"label map {path}: {wrong}: a label maps to a label or to null")
    return {str(k): v for k, v in content.items()}


def mapped_corpora(path):
    """Corpora that a file of maps has an entry for; empty for a map of one corpus.

    Example
    -------
    >>> path = getfixture("tmp_path") / "map.json"
    >>> _ = path.write_text('{"EmoDB": {"anger": "angry"}}')
    >>> mapped_corpora(path)
    ['EmoDB']
    """
    return [str(key) for key, value in _read(path).items() if isinstance(value, dict)]


def _read(path):
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"label map {path}: no such file; a YAML or JSON of their label -> our label")
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text) if path.suffix == ".json" else YAML(typ="safe", pure=True).load(text)
    except (ValueError, YAMLError) as error:
        raise ValueError(f"label map {path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"label map {path}: not a mapping of their label -> our label")
    return content


def apply_label_map(records, label_map, labels=None):
    """Give records the labels of an experiment; those whose label has no counterpart are left out.

    Arguments
    ---------
    records : dict
        id -> record. Not changed; records that change are copies with ``original_emotion``.
    label_map : dict of str to (str or None)
        Their label -> our label, None to leave out, "" to keep the recording without a label (its words and its voice
        can
        still be learned from). A label that is not in it stays if it is among ``labels``.
    labels : sequence of str, optional
        Our labels.

    Returns
    -------
    records : dict
        Those that are kept, records without an emotion among them. Votes (``soft_labels``) are mapped and made to sum
        to 1
        again.
    findings : list of Finding
        How many were left out, by label; keys of the map that no record has, with what was probably meant.

    Raises
    ------
    ValueError
        If a label of the map's values is not among ``labels``.

    Example
    -------
    >>> records = {"a": {"emotion": "joy"}, "b": {"emotion": "boredom"}, "c": {"emotion": None}}
    >>> kept, findings = apply_label_map(records, {"joy": "happy", "boredom": None}, ["happy"])
    >>> kept["a"]["emotion"], sorted(kept), findings[0].message
    ('happy', ['a', 'c'], "1 of label 'boredom' left out: the label map says so")
    """
    foreign = sorted({v for v in label_map.values() if v} - set(labels or label_map.values()))
    if foreign:
        raise ValueError(f"the label map leads to {foreign}; the labels are {', '.join(labels)}")
    kept, out, findings = {}, Counter(), []
    for key, record in records.items():
        label = record.get("emotion")
        if label is None:
            kept[key] = record
            continue
        ours = label_map.get(label, label if labels is None or label in labels else None)
        if ours is None:
            out[label] += 1
            continue
        record = {**record, "emotion": ours or None}
        if ours != label:
            record["original_emotion"] = label
        if record.get("soft_labels"):
            record["soft_labels"] = _mapped_votes(record["soft_labels"], label_map, labels)
        kept[key] = record
    for label, count in sorted(out.items()):
        if label in label_map:
            findings.append(Finding("", f"{count} of label {label!r} left out: the label map says so"))
        else:
            near = suggest(label, list(label_map) + list(labels or ()))
            hint = f" (did it mean {near!r}?)" if near else ""
            findings.append(Finding("", f"{count} of label {label!r} left out: not in the label map{hint}"))
    present = {r.get("emotion") for r in records.values()}
    for label in sorted(set(label_map) - present):
        near = suggest(label, [p for p in present if p is not None])
        hint = f"; {near!r} occurs" if near and near not in label_map else ""
        findings.append(Finding("", f"the label map's {label!r} occurs in no record{hint}"))
    return kept, findings


def _mapped_votes(votes, label_map, labels):
    """Shares under mapped labels, of those that have one; None where nothing is left."""
    shares = {}
    for label, share in votes.items():
        ours = label_map.get(label, label if labels is None or label in labels else None)
        if ours:
            shares[ours] = shares.get(ours, 0.0) + share
    total = sum(shares.values())
    return {label: share / total for label, share in shares.items()} if total > 0 else None
