"""Preparation of LibriSpeech for the linguistic task.

Source: V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "LibriSpeech: an ASR corpus based on public domain audio
books", ICASSP 2015. Layout, licence and known faults: ``README.md`` beside this file.
"""

from pathlib import Path

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
VALID = ("dev-clean", "dev-other")
TEST = ("test-clean", "test-other")

#: Utterances of the complete subsets.
NUM_UTTERANCES = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}

_WHERE = (
    "LibriSpeech is at https://www.openslr.org/12 (CC BY 4.0): unpack the archives of the subsets and SPEAKERS.TXT "
    "into one folder LibriSpeech and pass it as data_folder; see recipes/LibriSpeech/README.md"
)


def prepare_librispeech(
    data_folder,
    save_folder,
    train=TRAIN,
    valid=VALID,
    test=TEST,
    lower_case=True,
    measure=False,
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json and preparation.json; the parts are the corpus's own.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds ``SPEAKERS.TXT`` and the subsets. Paths in the manifests begin with ``{data_root}``.
    save_folder : str or pathlib.Path
        Folder for the manifests.
    train, valid, test : sequence of str
        Subsets of each part. Subsets that are absent are reported; a part without any is an error.
    lower_case : bool
        The corpus has capitals only, which no language model writes; True makes transcripts lower case.
    measure : bool
        Measure pitch, volume and speed (960 hours take about 15 hours on one core); captions of equivalence
        replacement need them, recognition does not.
    descriptor_cache : str or pathlib.Path, optional
        File of measurements.
    num_workers : int, optional
        Processes that measure.
    progress : bool
        Show a progress bar.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If the folder is not LibriSpeech (with what is missing), or what would be written has a fault.
    ValueError
        If a subset is unknown.
    """
    parts = {"train": tuple(train), "valid": tuple(valid), "test": tuple(test)}
    unknown = sorted({s for names in parts.values() for s in names} - set(NUM_UTTERANCES))
    if unknown:
        raise ValueError(f"subsets {unknown} are unknown; allowed: {', '.join(NUM_UTTERANCES)}")
    records, findings = read_corpus(data_folder, parts, lower_case)

    def split(usable):
        chosen = {
            part: tuple(sorted(i for i, r in usable.items() if r["subset"] in names))
            for part, names in parts.items()
        }
        return Split("official", chosen["train"], chosen["valid"], chosen["test"])

    return write_fold(
        "LibriSpeech",
        records,
        split,
        data_folder,
        save_folder,
        None,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"subsets": {part: list(names) for part, names in parts.items()}, "lower_case": lower_case},
        findings=findings,
        check_audio="headers",  # 960 hours are not decoded for it
    )


def read_corpus(data_folder, parts, lower_case=True):
    """Read transcripts, speakers and the recordings' headers.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder that holds the subsets.
    parts : dict
        Part -> subsets.
    lower_case : bool
        As in :func:`prepare_librispeech`.

    Returns
    -------
    records : dict
        Utterance -> record with, beside the keys of every manifest, ``subset``, ``chapter`` and ``language``.
    findings : list of Finding
        Utterances that are left out, unreadable lines, absent subsets, unexpected numbers.

    Raises
    ------
    ManifestError
        If there is nothing to read for a part.
    """
    data_folder = Path(data_folder)
    if not data_folder.is_dir():
        raise ManifestError(f"{data_folder} does not exist. {_WHERE}")
    genders, findings = _read_genders(data_folder)
    records = {}
    for part, names in parts.items():
        present = [name for name in names if (data_folder / name).is_dir()]
        if not present:
            inner = sorted(p.parent.name for n in names for p in data_folder.glob(f"*/{n}") if p.is_dir())
            hint = f" Perhaps you mean {data_folder / inner[0]}." if inner else ""
            raise ManifestError(
                f"{data_folder} holds none of {', '.join(names)} for the {part} part.{hint} {_WHERE}"
            )
        findings += [Finding(n, "the subset is absent") for n in names if n not in present]
        for name in present:
            number = 0
            for table in sorted((data_folder / name).glob("*/*/*.trans.txt")):
                found, notes = _read_chapter(data_folder, name, table, genders, lower_case)
                findings += notes
                records.update(found)
                number += len(found)
            if number != NUM_UTTERANCES[name]:
                findings.append(
                    Finding(name, f"{number} utterances; the complete subset has {NUM_UTTERANCES[name]}")
                )
    if not records:
        raise ManifestError(f"{data_folder}: none of the utterances can be used. {_WHERE}")
    return records, findings


def _read_chapter(data_folder, subset, table, genders, lower_case):
    """Utterance -> record of one chapter."""
    found, findings = {}, []
    recordings = {path.stem for path in table.parent.glob("*.flac")}
    speaker, chapter = table.parent.parent.name, table.parent.name
    listed = set()
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        if not name.startswith(f"{speaker}-{chapter}-"):
            findings.append(Finding(f"{table.name}:{number}", f"line left out: {line.strip()[:60]!r}"))
            continue
        listed.add(name)
        relative = f"{subset}/{speaker}/{chapter}/{name}.flac"
        try:
            info = audio_info(data_folder / relative)
        except AudioError as error:
            findings.append(Finding(name, f"left out: {error}"))
            continue
        text = " ".join(text.split())
        if not text:
            findings.append(Finding(name, "left out: no transcript"))
            continue
        found[name] = {
            "wav": f"{{data_root}}/{relative}",
            "duration": round(info.duration, 6),
            "speaker": speaker,
            "gender": genders.get(speaker),
            "transcript": text.lower() if lower_case else text,
            "emotion": None,
            "descriptors": {"gender": genders[speaker]} if genders.get(speaker) else {},
            "subset": subset,
            "chapter": chapter,
            "language": "en",
        }
    findings += [Finding(name, f"left out: not in {table.name}") for name in sorted(recordings - listed)]
    return found, findings


def _read_genders(data_folder):
    """Speaker -> gender from SPEAKERS.TXT; lines with a semicolon are comments."""
    table = data_folder / "SPEAKERS.TXT"
    if not table.is_file():
        return {}, [Finding("SPEAKERS.TXT", "absent: the gender of every speaker is unknown")]
    genders = {}
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = [field.strip() for field in line.split("|")]
        if not line.startswith(";") and len(fields) >= 2 and fields[1] in ("F", "M"):
            genders[fields[0]] = {"F": "female", "M": "male"}[fields[1]]
    return genders, []
