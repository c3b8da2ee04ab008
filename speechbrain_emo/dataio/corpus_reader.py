"""Records of any corpus: a table, a folder whose paths say what is in them, or a manifest.

What all preparations of simple corpora share: :func:`read_files` (names that a pattern explains), :func:`read_table`
(CSV, TSV, JSON, JSON lines) and :func:`read_any`, which chooses.
"""

import csv
import json
import re
from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.audio_facts import AUDIO_SUFFIXES
from speechbrain_emo.dataio.labels import common_word
from speechbrain_emo.dataio.manifest import Finding, ManifestError

#: Field of a record -> names of columns that mean it, compared without case, blanks and underscores.
COLUMNS = {
    "id": ("id", "key", "utt", "uttid", "utteranceid", "segmentid"),
    "path": ("path", "file", "filename", "filepath", "wav", "wavpath", "audio", "audiopath", "audiofile"),
    "emotion": ("emotion", "emo", "label", "emotionlabel", "emoclass", "class"),
    "speaker": ("speaker", "speakerid", "spk", "spkid", "spkrid", "actor", "actorid"),
    "gender": ("gender", "sex"),
    "transcript": ("transcript", "text", "sentence", "utterance", "transcription"),
    "split": ("split", "splitset", "set", "part", "partition", "subset"),
    "intensity": ("intensity", "emotionintensity"),
    "dialogue": ("dialogue", "dialogueid", "dialog"),
}
REQUIRED = ("path", "emotion")
#: Names of splits -> ours.
SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development", "cv"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "test1"), "test"),
}
_GENDERS = {"f": "female", "female": "female", "w": "female", "m": "male", "male": "male"}
TABLES = (".csv", ".tsv", ".jsonl", ".json")
NO_SPEAKER = "unknown"


def new_record(wav, duration, emotion, speaker=None, gender=None, transcript=None, **more):
    """A record with every key that a manifest needs.

    Arguments
    ---------
    wav : str
        Path, usually beginning with ``{data_root}``.
    duration : float
        Seconds.
    emotion : str or None
        Label.
    speaker : str, optional
        None: the record says ``speaker_unknown``, and no check by speakers counts it.
    gender : str, optional
        Any spelling of female or male; others become None.
    transcript : str, optional
        Text; blanks at its ends go.
    **more
        Further keys; None is left out.

    Returns
    -------
    dict

    Example
    -------
    >>> record = new_record("{data_root}/a.wav", 1.0, "sad", "7", "F", " hi ", subset=None)
    >>> record["gender"], record["transcript"], record["descriptors"], "subset" in record
    ('female', 'hi', {'gender': 'female'}, False)
    """
    gender = _GENDERS.get(str(gender or "").strip().casefold())
    record = {
        "wav": wav,
        "duration": round(duration, 6),
        "speaker": str(speaker) if speaker not in (None, "") else NO_SPEAKER,
        "gender": gender,
        "transcript": (transcript or "").strip() or None,
        "emotion": emotion,
        "descriptors": {"gender": gender} if gender else {},
    }
    if speaker in (None, ""):
        record["speaker_unknown"] = True
    record.update({key: value for key, value in more.items() if value is not None})
    return record


def audio_files(folder):
    """Audio files below a folder, sorted by path; hidden ones and macOS's ``._`` twins are not among them.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("b.WAV", "._b.wav", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in audio_files(folder)]
    ['b.WAV']
    """
    folder = Path(folder)
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    return sorted(p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_files(folder, pattern, make_record, where="", num_expected=None, corpus=None, check_files=True):
    """Records of the audio files whose path a pattern explains.

    Arguments
    ---------
    folder : str or pathlib.Path
        What ``{data_root}`` will stand for.
    pattern : str
        Regular expression; its end must match the end of the path below the folder (with ``/``, without suffix), case
        does
        not matter.
    make_record : callable
        (groups of the pattern, keywords ``wav`` and ``duration``) -> (id, record); it raises ``ValueError`` with a
        message for
        what it cannot use.
    where : str
        How to get the corpus; ends the message where nothing fits.
    num_expected : int, optional
        Recordings of the complete corpus.
    corpus : str, optional
        Its name, for messages.
    check_files : bool
        Open every recording's header and leave out those that cannot be used. False: ``duration`` is 0.

    Returns
    -------
    records : dict
        id -> record.
    findings : list of Finding
        What was left out, and why.

    Raises
    ------
    ManifestError
        If the folder does not exist or no file fits.

    Example
    -------
    >>> import numpy, soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "7_sad.wav", numpy.zeros(8000), 16000)
    >>> def make(groups, wav, duration):
    ...     return groups["id"], new_record(wav, duration, groups["emotion"], groups["speaker"])
    >>> records, findings = read_files(folder, r"(?P<id>(?P<speaker>\\d)_(?P<emotion>\\w+))", make)
    >>> records["7_sad"]["emotion"], records["7_sad"]["wav"]
    ('sad', '{data_root}/7_sad.wav')
    """
    folder, name = Path(folder), corpus or "the corpus"
    if not folder.is_dir():
        raise ManifestError(f"{folder} does not exist or is no folder. {where}".strip())
    expression = re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)
    records, findings, paths = {}, [], audio_files(folder)
    for path in paths:
        relative = path.relative_to(folder).as_posix()
        match = expression.fullmatch(relative[: -len(path.suffix)])
        if match is None:
            findings.append(Finding(relative, f"left out: not the name of a recording of {name}"))
            continue
        try:
            duration = audio_info(path).duration if check_files else 0.0
            key, record = make_record(match.groupdict(), wav=f"{{data_root}}/{relative}", duration=duration)
        except (AudioError, ValueError) as error:
            findings.append(Finding(relative, f"left out: {error}"))
            continue
        if key in records:
            findings.append(
                Finding(relative, f"left out: {key} is {records[key]['wav'].split('/', 1)[1]} already")
            )
            continue
        records[key] = record
    if not records:
        seen = ", ".join(str(p.relative_to(folder)) for p in paths[:3]) or "no audio"
        raise ManifestError(
            f"{folder} is not {name}: no file has such a name (found: {seen}). {where}".strip()
        )
    if num_expected is not None and len(records) != num_expected:
        findings.append(Finding("", f"{len(records)} recordings; the complete corpus has {num_expected}"))
    return records, findings


def table_rows(path):
    """Rows of a table as dicts of the file's own columns.

    Arguments
    ---------
    path : str or pathlib.Path
        CSV (comma, semicolon or tab), TSV, JSON lines, or JSON (a list of objects, or id -> object). UTF-8, else
        Windows-1252.

    Returns
    -------
    list of dict
        With ``id`` from the key where a JSON object has it there.

    Raises
    ------
    ManifestError
        If the file is not such a table.

    Example
    -------
    >>> path = getfixture("tmp_path") / "t.csv"
    >>> _ = path.write_bytes("file;label\\na.wav;it\\u2019s\\n".encode("cp1252"))
    >>> table_rows(path)
    [{'file': 'a.wav', 'label': 'it’s'}]
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such file")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    suffix = path.suffix.lower()
    try:
        if suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif suffix == ".json":
            rows = json.loads(text)
            if isinstance(rows, dict) and isinstance(rows.get("annotation"), list):
                rows = rows["annotation"]
            if isinstance(rows, dict):
                rows = [{"id": key, **row} for key, row in rows.items()]
        else:
            head = text.split("\n", 1)[0]
            delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=head.count)
            rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    except (ValueError, TypeError, csv.Error) as error:
        raise ManifestError(f"{path}: cannot be read as {suffix[1:] or 'a table'}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{path}: not a table: rows of named values are needed")
    return rows


def find_columns(names, columns=None, required=REQUIRED, name="the table"):
    """Which column holds which field.

    Arguments
    ---------
    names : iterable of str
        Columns of a table.
    columns : dict, optional
        Field -> column, where a column has an unusual name.
    required : sequence of str
        Fields that must be there.
    name : str
        What messages call the table.

    Returns
    -------
    dict of str to str

    Raises
    ------
    ManifestError
        If a required field has no column, or ``columns`` names one that is not there.

    Example
    -------
    >>> find_columns(["File Name", "Label", "x"])
    {'path': 'File Name', 'emotion': 'Label'}
    """
    names = [n for n in names if n is not None]
    unknown = sorted(set(columns or {}) - set(COLUMNS))
    if unknown:
        raise ManifestError(f"columns names the fields {unknown}; allowed: {', '.join(COLUMNS)}")
    lacking = sorted(set((columns or {}).values()) - set(names))
    if lacking:
        raise ManifestError(f"{name} has no column {', '.join(lacking)}; it has {', '.join(names)}")
    plain = {re.sub(r"[\s_\-]", "", n).casefold(): n for n in reversed(names)}
    found = {}
    for field, aliases in COLUMNS.items():
        given = (columns or {}).get(field)
        chosen = given or next((plain[a] for a in aliases if a in plain), None)
        if chosen is not None:
            found[field] = chosen
    missing = [field for field in required if field not in found]
    if missing:
        raise ManifestError(
            f"{name} has no column for {' and '.join(missing)}; it has {', '.join(names) or 'none'}. Columns are "
            f"path, emotion and, optionally, {', '.join(f for f in COLUMNS if f not in REQUIRED)}; other names: "
            "columns={field: name}"
        )
    return found


def read_table(path, audio_root=None, columns=None, check_files=True):
    """Records of a table with a row a recording.

    Arguments
    ---------
    path : str or pathlib.Path
        As :func:`table_rows` takes it. Columns: path, emotion and, optionally, speaker, gender, transcript, split, id,
        intensity, dialogue, under usual names.
    audio_root : str or pathlib.Path, optional
        What relative paths start from; default: the table's folder.
    columns : dict, optional
        Field -> column, for unusual names.
    check_files : bool
        Open every recording's header and leave out those that cannot be used. False: ``duration`` is 0.

    Returns
    -------
    records : dict
        id -> record; ``subset`` is the split as train, valid or test where the table has one.
    findings : list of Finding

    Raises
    ------
    ManifestError
        If there is no usable row.

    Example
    -------
    >>> path = getfixture("tmp_path") / "t.csv"
    >>> _ = path.write_text("path,emotion,speaker,split\\na.wav,sad,7,dev\\n")
    >>> records, _ = read_table(path, check_files=False)
    >>> records["a"]["emotion"], records["a"]["subset"]
    ('sad', 'valid')
    """
    path = Path(path)
    root = Path(audio_root) if audio_root is not None else path.parent
    rows = table_rows(path)
    if not rows:
        raise ManifestError(f"{path}: no row")
    # Rows of dialogue annotations have their label in `text`.
    required = ("path",) if all({"path", "task", "text"} <= set(row) for row in rows) else REQUIRED
    found = find_columns(list(dict.fromkeys(c for row in rows for c in row)), columns, required, str(path))
    records, findings = {}, []
    for number, row in enumerate(rows, 1):
        values = {field: row.get(column) for field, column in found.items()}
        where = f"{path.name}:{number}"
        if not values["path"]:
            findings.append(Finding(where, "row left out: no path"))
            continue
        wav, problem = Path(str(values["path"])), None
        relative = wav.is_absolute() is False
        duration = 0.0
        if check_files:
            try:
                duration = audio_info(root / wav).duration
            except AudioError as error:
                problem = str(error)
        key = str(values.get("id") or wav.with_suffix("").as_posix())
        if problem is None and key in records:
            problem = f"{key} occurs a second time"
        if problem is not None:
            findings.append(Finding(where, f"row left out: {problem}"))
            continue
        split = str(values.get("split") or "").strip()
        if split and split.casefold() not in SPLITS:
            findings.append(
                Finding(where, f"split {split!r} is unknown: {', '.join(SPLITS)}; the row is in none")
            )
        emotion = values.get("emotion")
        record = new_record(
            f"{{data_root}}/{wav.as_posix()}" if relative else str(wav),
            duration,
            str(emotion).strip() if emotion not in (None, "") else None,
            values.get("speaker"),
            values.get("gender"),
            values.get("transcript"),
            subset=SPLITS.get(split.casefold()),
            dialogue=values.get("dialogue"),
        )
        if "intensity" in found:
            record["intensity"] = values["intensity"] or None
        record.update(_dialogue_keys(row, record))
        records[key] = record
    if not records:
        first = str(findings[0]) if findings else "no row"
        raise ManifestError(f"{path}: none of {len(rows)} rows can be used; the first: {first}")
    return records, findings


def _dialogue_keys(row, record):
    """What rows of dialogue annotations (``transcript`` and ``emotion`` joined with ``|``, the answer in ``text``)
    hold beside."""
    if not ("task" in row and "path" in row and "text" in row):
        return {}
    answer = str(row["text"])
    words = answer.split()
    keys = {"emotion": words[-1] if words else None, "answer": answer, "transcript": None}
    if any("intensity" in str(row["task"]) or "|" in str(row.get(n, "")) for n in ("emotion", "task")):
        keys["intensity"] = " ".join(words[:-1]) or None
    if "|" in str(row.get("transcript", "")):
        keys.update(
            transcript=str(row["transcript"]).split("|")[-1].strip(),
            context_emotions=[part.strip() for part in str(row.get("emotion", "")).split("|")],
            # The folder of a dialogue's recordings is the dialogue.
            dialogue=Path(str(row["path"])).parent.name,
            speaker=str(row.get("speaker", "")).split("|")[-1],
            speaker_unknown=True,
        )
    else:
        keys["speaker_unknown"] = True
    return keys


def read_folder(folder, pattern=None, check_files=True):
    """Records of a folder of audio files.

    Arguments
    ---------
    folder : str or pathlib.Path
        Holds audio below it.
    pattern : str, optional
        Regular expression over the end of the path without suffix, with groups ``emotion`` and, optionally,
        ``speaker``,
        ``gender``, ``split``, ``id``: ``(?P<speaker>\\d\\d)[ab]\\d\\d(?P<emotion>[A-Z])\\w`` for EmoDB. Default:
        folders say
        it: ``EMOTION/x.wav``, ``SPEAKER/EMOTION/x.wav``, ``EMOTION/SPEAKER/x.wav``, each also below ``train``,
        ``valid``,
        ``test``.
    check_files : bool
        As in :func:`read_files`.

    Returns
    -------
    records : dict
    findings : list of Finding

    Raises
    ------
    ManifestError
        If nothing fits.
    ValueError
        If the pattern is no regular expression or lacks ``emotion``.

    Example
    -------
    >>> import numpy, soundfile
    >>> folder = getfixture("tmp_path")
    >>> for emotion in ("sad", "happy"):
    ...     (folder / "train" / "anna" / emotion).mkdir(parents=True)
    ...     soundfile.write(folder / "train" / "anna" / emotion / "1.wav", numpy.zeros(8000), 16000)
    >>> records, _ = read_folder(folder)
    >>> record = records["train/anna/sad/1"]
    >>> record["subset"], record["speaker"], record["emotion"]
    ('train', 'anna', 'sad')
    """
    folder = Path(folder)
    if pattern is not None:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
        if "emotion" not in groups:
            raise ValueError(f"pattern {pattern!r} has no group (?P<emotion>...)")
    else:
        pattern = _folder_pattern(folder)

    def make(found, wav, duration):
        name = wav.split("/", 1)[1].rpartition(".")[0]
        split = (found.get("split") or "").casefold()
        return found.get("id") or name, new_record(
            wav,
            duration,
            found["emotion"],
            found.get("speaker"),
            found.get("gender"),
            subset=SPLITS.get(split),
        )

    where = "Give a table (path, emotion), folders named after emotions, or a pattern with (?P<emotion>...)"
    return read_files(
        folder, pattern, make, where, corpus="a corpus with emotions in its paths", check_files=check_files
    )


def _folder_pattern(folder):
    """Pattern of a folder whose levels are emotions, speakers and splits."""
    if not folder.is_dir():
        raise ManifestError(f"{folder} does not exist or is no folder")
    parts = [p.relative_to(folder).parts[:-1] for p in audio_files(folder)]
    if not parts:
        raise ManifestError(f"{folder}: no audio file below it")
    depth = max(set(map(len, parts)), key=[len(p) for p in parts].count)
    parts = [p for p in parts if len(p) == depth]
    names = [sorted({p[level] for p in parts}) for level in range(depth)]
    levels = list(range(depth))
    split = next((level for level in levels if all(n.casefold() in SPLITS for n in names[level])), None)
    rest = [level for level in levels if level != split]
    if not rest:
        raise ManifestError(
            f"{folder}: no folder is named after an emotion. Give a table (path, emotion) or a pattern with "
            "(?P<emotion>...)"
        )

    def words(level):
        return sum(common_word(n) is not None for n in names[level]) / len(names[level])

    # Of equal ones the innermost: speaker/emotion is the commoner order.
    emotion = max(rest, key=lambda level: (words(level), level))
    others = [level for level in rest if level != emotion]
    if len(names[emotion]) < 2:
        raise ManifestError(
            f"{folder}: {names[emotion][0]!r} is its only folder of recordings, so folders do not say emotions. Give "
            "a table (path, emotion) or a pattern with (?P<emotion>...)"
        )
    if depth > 1 and words(emotion) == 0 and len(rest) > 1:
        raise ManifestError(
            f"{folder}: it is not plain which of its folders are emotions ({', '.join(names[rest[-1]][:5])}?): give "
            "a pattern with (?P<emotion>...), or a table"
        )
    speaker = others[-1] if others else None
    role = {split: "split", emotion: "emotion", speaker: "speaker"}
    return "/".join(f"(?P<{role[level]}>[^/]+)" if level in role else "[^/]+" for level in levels) + "/[^/]+"


def read_any(source, pattern=None, columns=None, audio_root=None, check_files=True):
    """Records of a table, a folder or a manifest.

    Arguments
    ---------
    source : str or pathlib.Path
        A table (CSV, TSV, JSON lines, JSON), a folder that holds exactly one table with paths and emotions, a folder of
        audio, a manifest, or a folder with ``train.json``, ``valid.json``, ``test.json``.
    pattern, columns : optional
        As in :func:`read_folder` and :func:`read_table`. With a pattern, tables in the folder are not read.
    audio_root : str or pathlib.Path, optional
        What relative paths, and ``{data_root}`` of a manifest, start from; default: what the preparation that wrote
        the manifest says, else the source's folder.
    check_files : bool
        As in :func:`read_table`.

    Returns
    -------
    records : dict
        id -> record; ``subset`` is train, valid or test where the source says so.
    findings : list of Finding
    data_root : str
        What ``{data_root}`` stands for.

    Raises
    ------
    ManifestError
        If there is nothing to read; the message says what would do.

    Example
    -------
    >>> read_any("no/such/thing")
    Traceback (most recent call last):
    speechbrain_emo.dataio.manifest.ManifestError: no/such/thing does not exist; give a table, a folder or a manifest
    """
    source = Path(source)
    if not source.exists():
        raise ManifestError(f"{source} does not exist; give a table, a folder or a manifest")
    if source.is_dir():
        manifests = {s: source / f"{s}.json" for s in ("train", "valid", "test")}
        if pattern is None and any(_is_manifest(p) for p in manifests.values()):
            records = {}
            for split, path in manifests.items():
                if path.is_file():
                    for key, record in json.loads(path.read_text(encoding="utf-8")).items():
                        # The same id in two splits is for the check to find.
                        records[key if key not in records else f"{key} ({split})"] = {
                            **record,
                            "subset": split,
                        }
            return records, [], str(audio_root or prepared_root(source) or source)
        tables = [] if pattern is not None else _tables_of(source)
        if len(tables) > 1:
            names = ", ".join(t.name for t in tables)
            raise ManifestError(
                f"{source} holds {len(tables)} tables ({names}): give one of them, or a pattern"
            )
        if not tables:
            return *read_folder(source, pattern, check_files), str(source)
        source = tables[0]
    if source.suffix.lower() not in TABLES:
        raise ManifestError(f"{source}: a table is one of {', '.join(TABLES)}")
    root = str(audio_root or source.parent)
    if _is_manifest(source):
        root = str(audio_root or prepared_root(source.parent) or source.parent)
        return json.loads(source.read_text(encoding="utf-8")), [], root
    return *read_table(source, root, columns, check_files), root


def prepared_root(folder):
    """What ``{data_root}`` of a preparation's manifests stands for, where ``preparation.json`` beside them says it.

    Arguments
    ---------
    folder : str or pathlib.Path
        Of the manifests.

    Returns
    -------
    str or None

    Example
    -------
    >>> prepared_root("no/such/folder") is None
    True
    """
    file = Path(folder) / "preparation.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("data_root")


def _tables_of(folder):
    """Tables of a folder that have columns for path and emotion."""
    usable = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in TABLES and path.is_file() and not path.name.startswith("."):
            try:
                rows = table_rows(path)
                find_columns(rows[0] if rows else ())
            except ManifestError:
                continue
            usable.append(path)
    return usable


def _is_manifest(path):
    """Whether a file is a manifest of ours: id -> record with wav, audios or turns, and descriptors or speaker."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        return False
    if not isinstance(content, dict) or not content:
        return False
    first = next(iter(content.values()))
    return isinstance(first, dict) and ("wav" in first or "audios" in first) and "descriptors" in first
