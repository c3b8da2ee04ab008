"""Preparation of the Emotional Speech Dataset (ESD), and of ESD with IEMOCAP for Emo-FiLM's word annotator.

Source: K. Zhou, B. Sisman, R. Liu, H. Li, "Emotional voice conversion: theory, databases and ESD", Speech
Communication 137, 2022. Layout, licence and known faults: ``README.md`` beside this file.
"""

import re
from pathlib import Path

from recipes.IEMOCAP.iemocap_prepare import prepare_iemocap
from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError, read_manifest, write_manifest
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

#: Labels in the order of reports.
EMOTIONS = ("angry", "happy", "neutral", "sad", "surprise")

#: Speakers by language; genders are not in the corpus's files.
SPEAKERS = {
    "zh": tuple(f"{number:04d}" for number in range(1, 11)),
    "en": tuple(f"{number:04d}" for number in range(11, 21)),
}
UTTERANCES_OF_EMOTION = 350  # of each speaker

_NAME = re.compile(r"(?P<speaker>\d{4})_(?P<number>\d{6})")
_WHERE = (
    "ESD is given for research: https://github.com/HLTSingapore/Emotional-Speech-Data ; unpack it and pass the folder "
    "that holds 0001 to 0020 as data_folder; see recipes/ESD/README.md"
)


def prepare_esd(
    data_folder,
    save_folder,
    language="en",
    valid_speakers=("0014", "0019"),
    test_speakers=("0013", "0018"),
    measure=False,
    check_audio="full",
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json, preparation.json and data_check.json, split by speakers.

    The corpus's own division (``train``, ``evaluation``, ``test``) has all speakers in all parts and is not used.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``0011`` and so on.
    save_folder : str or pathlib.Path
        Folder of the manifests. Paths in them begin with ``{data_root}``.
    language : str
        ``en``: speakers 0011 to 0020, ``zh``: 0001 to 0010.
    valid_speakers, test_speakers : sequence of str
        Held out; all other speakers of the language train.
    measure : bool
        Measure pitch, volume and speed (Mandarin: no speed by syllables).
    check_audio : str
        ``full``, ``headers`` or ``off``: how much the data check reads.
    descriptor_cache : str or pathlib.Path, optional
        File of measurements.
    num_workers : int, optional
        Processes that measure.
    progress : bool
        Show progress bars.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not ESD, or what would be written has a fault.
    ValueError
        If the language or a speaker is unknown, or a speaker is in two parts.
    """
    if language not in SPEAKERS:
        raise ValueError(f"language is {language!r}; ESD has {', '.join(SPEAKERS)}")
    held_out = {"valid": [str(s) for s in valid_speakers], "test": [str(s) for s in test_speakers]}
    unknown = sorted({s for part in held_out.values() for s in part} - set(SPEAKERS[language]))
    if unknown:
        raise ValueError(
            f"speakers {unknown} are none of the {language} ones: {', '.join(SPEAKERS[language])}"
        )
    twice = sorted(set(held_out["valid"]) & set(held_out["test"]))
    if twice:
        raise ValueError(f"speakers {twice} are in valid_speakers and in test_speakers")
    records, findings = read_corpus(data_folder, language)

    def split(usable):
        parts = {"train": [], "valid": [], "test": []}
        for key in sorted(usable):
            part = next((name for name, who in held_out.items() if usable[key]["speaker"] in who), "train")
            parts[part].append(key)
        for part, members in parts.items():
            if not members:
                raise ManifestError(f"{data_folder}: no utterance for {part}; {_WHERE}")
        return Split("official", *(tuple(parts[name]) for name in ("train", "valid", "test")))

    return write_fold(
        "ESD",
        records,
        split,
        data_folder,
        save_folder,
        EMOTIONS,
        language=language,
        require_transcript=False,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"language": language},
        findings=findings,
        check_audio=check_audio,
    )


def read_corpus(data_folder, language="en"):
    """Read texts, labels and the recordings' headers of a language's speakers.

    The label is the folder's name; where the text file says another one, that is a finding.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``0011`` and so on.
    language : str
        ``en`` or ``zh``.

    Returns
    -------
    records : dict
        Utterance (``0011_000351``) -> record.
    findings : list of Finding
        What was left out or looks odd.

    Raises
    ------
    ManifestError
        If none of the speakers' folders is there.
    """
    data_folder = Path(data_folder)
    speakers = [s for s in SPEAKERS[language] if (data_folder / s).is_dir()]
    if not speakers:
        inner = sorted(p.parent.name for p in data_folder.glob("*/00[0-2][0-9]") if p.is_dir())
        hint = f" Perhaps you mean {data_folder / inner[0]}." if inner else ""
        raise ManifestError(f"{data_folder} holds none of {', '.join(SPEAKERS[language])}.{hint} {_WHERE}")
    findings = [
        Finding(s, "this speaker's folder is missing") for s in SPEAKERS[language] if s not in speakers
    ]
    records = {}
    for speaker in speakers:
        texts, notes = _read_texts(data_folder / speaker / f"{speaker}.txt")
        findings += notes
        for emotion in EMOTIONS:
            folder = data_folder / speaker / emotion.capitalize()
            # Some copies have evaluation, test and train below the emotion, some have none.
            paths = sorted(p for p in folder.rglob("*.wav") if not p.name.startswith("."))
            if len(paths) != UTTERANCES_OF_EMOTION:
                message = f"{len(paths)} recordings; the complete corpus has {UTTERANCES_OF_EMOTION}"
                findings.append(Finding(f"{speaker}/{folder.name}", message))
            for path in paths:
                record, message = _record(data_folder, path, speaker, emotion, texts, language)
                if record is not None and path.stem in records:
                    record, message = None, "a second time: the first is used"
                if message:
                    findings.append(Finding(path.stem, message))
                if record is not None:
                    records[path.stem] = record
    return records, findings


def _record(data_folder, path, speaker, emotion, texts, language):
    """(record or None, message or None) of one recording."""
    match = _NAME.fullmatch(path.stem)
    if match is None or match["speaker"] != speaker:
        return None, f"left out: not the name of an utterance of {speaker}"
    try:
        info = audio_info(path)
    except AudioError as error:
        return None, f"left out: {error}"
    text, label = texts.get(path.stem, (None, None))
    message = None if text else f"no text in {speaker}.txt"
    if label is not None and label.isascii() and label.lower() != emotion:
        message = f"{speaker}.txt says {label}, the folder {emotion}: the folder is used"
    relative = path.relative_to(data_folder).as_posix()
    return {
        "wav": f"{{data_root}}/{relative}",
        "duration": round(info.duration, 6),
        "speaker": speaker,
        "gender": None,
        "transcript": text,
        "emotion": emotion,
        "descriptors": {},
        "language": language,
        # All speakers read the same 350 sentences in every emotion.
        "sentence": (int(match["number"]) - 1) % UTTERANCES_OF_EMOTION + 1,
    }, message


def _read_texts(path):
    """Utterance -> (text, label) of a speaker's file, in whatever encoding it has."""
    if not path.is_file():
        return {}, [Finding(path.name, "missing: its utterances have no text")]
    content, texts, findings = path.read_bytes(), {}, []
    marks = (b"\xff\xfe", b"\xfe\xff")
    encodings = ("utf-16",) if content.startswith(marks) else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            text = None
    if text is None:
        return {}, [
            Finding(path.name, f"cannot be decoded as {' or '.join(encodings)}: its utterances have no text")
        ]
    for number, line in enumerate(text.splitlines(), 1):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < 2:
            # Some lines have blanks where the others have tabs.
            fields = [field.strip() for field in re.split(r"\s{2,}", line.strip())]
        if not line.strip():
            continue
        if len(fields) not in (2, 3) or not _NAME.fullmatch(fields[0]):
            findings.append(Finding(f"{path.name}:{number}", f"line left out: {line.strip()[:60]!r}"))
            continue
        texts[fields[0]] = (fields[1] or None, fields[2] if len(fields) == 3 else None)
    return texts, findings


def prepare_esd_iemocap(esd_folder, iemocap_folder, save_folder, fold="5", seed=0, num_workers=None):
    """Write train.json, valid.json and test.json of ESD's English part and IEMOCAP together.

    Paths begin with ``{esd_root}`` and ``{iemocap_root}``; labels are those of each corpus, which the YAML's
    ``label_map`` brings together; IEMOCAP's records keep their ratings.

    Arguments
    ---------
    esd_folder : str or pathlib.Path
        As in :func:`prepare_esd`.
    iemocap_folder : str or pathlib.Path
        Folder that holds ``Session1`` to ``Session5``.
    save_folder : str or pathlib.Path
        Folder of the manifests; each corpus's own are in subfolders.
    fold : str
        Test session of IEMOCAP.
    seed : int
        Draws IEMOCAP's validation speakers.
    num_workers : int, optional
        Of IEMOCAP's preparation.

    Returns
    -------
    dict
        Part -> number of records.

    Raises
    ------
    ManifestError
        If a folder is not the corpus.
    """
    save_folder = Path(save_folder)
    prepare_esd(esd_folder, save_folder / "esd")
    prepare_iemocap(
        iemocap_folder, save_folder / "iemocap", fold, seed=seed, measure=False, num_workers=num_workers
    )
    counts = {}
    for part in ("train", "valid", "test"):
        together = {}
        for corpus in ("esd", "iemocap"):
            marked = read_manifest(save_folder / corpus / f"{part}.json", {"data_root": f"{{{corpus}_root}}"})
            together.update({f"{corpus}_{key}": record for key, record in marked.items()})
        write_manifest(save_folder / f"{part}.json", together)
        counts[part] = len(together)
    return counts
