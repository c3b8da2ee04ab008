"""Preparation of MELD, seven emotions, official parts.

Source: S. Poria et al., "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL 2019.
Layout, licence and known faults: ``README.md`` beside this file.
"""

import csv
import shutil
import subprocess
from pathlib import Path

import soundfile
from tqdm import tqdm

from speechbrain_emo.dataio.audio import AudioError, audio_info
from speechbrain_emo.dataio.manifest import Finding, ManifestError
from speechbrain_emo.dataio.preparation import write_fold
from speechbrain_emo.dataio.splits import Split

#: Labels in the order of reports.
EMOTIONS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
NUM_ROWS = {"train": 9989, "dev": 1109, "test": 2610}

#: Clips that are known to be broken in the published archive.
BROKEN = {("train", 125, 3), ("dev", 110, 7)}

#: The six whose voices are most of the corpus.
GENDERS = {
    **dict.fromkeys(("Monica", "Rachel", "Phoebe"), "female"),
    **dict.fromkeys(("Chandler", "Joey", "Ross"), "male"),
}

#: Folders of the clips in the archive, by part.
CLIP_FOLDERS = {
    "train": ("train/train_splits", "train_splits", "train"),
    "dev": ("dev/dev_splits_complete", "dev_splits_complete", "dev"),
    "test": ("test/output_repeated_splits_test", "output_repeated_splits_test", "test"),
}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
_WHERE = (
    "MELD is at https://affective-meld.github.io (MELD.Raw.tar.gz, GPL-3.0): unpack it with the three archives "
    "inside it and pass MELD.Raw as data_folder; see recipes/MELD/README.md"
)
SAMPLE_RATE = 16000


class NoDecoder(ManifestError):
    """Audio has to be taken out of video, and nothing on this machine can.

    Example
    -------
    >>> issubclass(NoDecoder, ManifestError)
    True
    """


def prepare_meld(
    data_folder,
    save_folder,
    audio_folder="wav16k",
    min_duration=0.05,
    max_duration=45.0,
    measure=False,
    descriptor_cache=None,
    num_workers=None,
    progress=True,
):
    """Write train.json, valid.json, test.json and preparation.json of the official parts.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        MELD.Raw: the three tables and the folders of clips. Paths in the manifests begin with ``{data_root}``.
    save_folder : str or pathlib.Path
        Folder for the manifests.
    audio_folder : str
        Folder below ``data_folder`` of the extracted audio (``<part>/dia0_utt0.wav``, 16 kHz mono). What is there is
        used; what is missing is taken out of the clips with ffmpeg or PyAV.
    min_duration, max_duration : float
        Seconds. Clips outside are left out and reported: two of 305 and 235 s hold a scene by mistake; the shortest of
        the complete corpus has 0.064 s.
    measure : bool
        Measure pitch, volume and speed.
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
    NoDecoder
        If audio has to be taken out of video and there is neither ffmpeg nor PyAV.
    ManifestError
        If the folder is not MELD (with what is missing), or what would be written has a fault.
    """
    data_folder = Path(data_folder)
    rows, findings = read_tables(data_folder)
    notes = extract_audio(data_folder, audio_folder, rows, progress)
    records = {}
    for part, entries in rows.items():
        for key, row in entries.items():
            name = f"{part}_dia{key[0]}_utt{key[1]}"
            relative = f"{audio_folder}/{part}/dia{key[0]}_utt{key[1]}.wav"
            problem = notes.get((part, *key))
            if problem is None:
                try:
                    info = audio_info(data_folder / relative)
                    if not min_duration <= info.duration <= max_duration:
                        problem = f"{info.duration:.2f} s is outside {min_duration} to {max_duration} s"
                except AudioError as error:
                    problem = str(error)
            if problem is not None:
                known = " (known to be broken)" if (part, *key) in BROKEN else ""
                findings.append(Finding(name, f"left out: {problem}{known}"))
                continue
            gender = GENDERS.get(row["Speaker"])
            records[name] = {
                "wav": f"{{data_root}}/{relative}",
                "duration": round(info.duration, 6),
                "speaker": row["Speaker"],
                "gender": gender,
                "transcript": row["Utterance"] or None,
                "emotion": row["Emotion"],
                "descriptors": {"gender": gender} if gender else {},
                "subset": part,
                "dialogue": f"{part}_{key[0]}",
                "sentiment": row["Sentiment"],
                "language": "en",
            }
    if not records:
        first = next((str(f) for f in findings if "left out" in f.message), "nothing was found")
        raise ManifestError(f"{data_folder}: none of the clips can be used; the first: {first}. {_WHERE}")

    def split(usable):
        ids = {part: tuple(sorted(i for i, r in usable.items() if r["subset"] == part)) for part in NUM_ROWS}
        return Split("official", ids["train"], ids["dev"], ids["test"], speaker_independent=False)

    return write_fold(
        "MELD",
        records,
        split,
        data_folder,
        save_folder,
        EMOTIONS,
        require_transcript=False,
        measure=measure,
        descriptor_cache=descriptor_cache,
        num_workers=num_workers,
        progress=progress,
        settings={"audio_folder": audio_folder, "max_duration": max_duration},
        findings=findings,
    )


def read_tables(data_folder):
    """Read the three tables.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Holds ``<part>_sent_emo.csv`` itself or in the part's folder.

    Returns
    -------
    rows : dict
        Part (train, dev, test) -> (dialogue, utterance) -> row with a cleaned ``Utterance``.
    findings : list of Finding
        Rows that are left out, unexpected numbers.

    Raises
    ------
    ManifestError
        If a table is missing or is not MELD's.
    """
    data_folder = Path(data_folder)
    places = {p: [data_folder / f"{p}_sent_emo.csv", data_folder / p / f"{p}_sent_emo.csv"] for p in NUM_ROWS}
    missing = [
        f"{part}_sent_emo.csv" for part, paths in places.items() if not any(p.is_file() for p in paths)
    ]
    if missing:
        raise ManifestError(f"{data_folder} is not MELD; missing: {', '.join(missing)}. {_WHERE}")
    rows, findings = {}, []
    for part, paths in places.items():
        path = next(p for p in paths if p.is_file())
        rows[part] = {}
        reader = csv.DictReader(decode(path.read_bytes()).splitlines())
        lacking = [c for c in _COLUMNS if c not in (reader.fieldnames or [])]
        if lacking:
            raise ManifestError(f"{path}: no column {', '.join(lacking)}: it is not MELD's table. {_WHERE}")
        number = 0
        for number, row in enumerate(reader, 1):
            try:
                key = (int(row["Dialogue_ID"]), int(row["Utterance_ID"]))
                if row["Emotion"] not in EMOTIONS:
                    raise ValueError(f"emotion {row['Emotion']!r} is not one of {', '.join(EMOTIONS)}")
            except (TypeError, ValueError) as error:
                findings.append(Finding(f"{path.name}:{number + 1}", f"row left out: {error}"))
                continue
            if key in rows[part]:
                findings.append(
                    Finding(
                        f"{part}_dia{key[0]}_utt{key[1]}", "a second time in the table: the first is used"
                    )
                )
                continue
            rows[part][key] = {
                **row,
                "Utterance": clean_text(row["Utterance"]),
                "Speaker": clean_text(row["Speaker"]),
            }
        if number != NUM_ROWS[part]:
            findings.append(Finding(path.name, f"{number} rows; the complete table has {NUM_ROWS[part]}"))
    return rows, findings


def decode(content):
    """Text of a table: UTF-8, or Windows-1252 as in the published files.

    Arguments
    ---------
    content : bytes

    Returns
    -------
    str

    Example
    -------
    >>> decode(b"it\\x92s"), decode("it’s".encode())
    ('it’s', 'it’s')
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "…": "...", "\xa0": " "}
)


def clean_text(text):
    """Typographic signs as plain ones; also Windows-1252 characters that were read as Latin-1.

    Arguments
    ---------
    text : str

    Returns
    -------
    str

    Example
    -------
    >>> clean_text("I don\\x92t  know\\u2026"), clean_text("caf\\u00e9")
    ("I don't know...", 'café')
    """
    text = "".join(
        c.encode("latin-1").decode("cp1252", errors="replace") if "\x80" <= c <= "\x9f" else c
        for c in text or ""
    )
    return " ".join(text.translate(_PLAIN).split())


def extract_audio(data_folder, audio_folder, rows, progress=True):
    """Take the sound out of the clips whose audio is not there yet.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        MELD.Raw.
    audio_folder : str
        As in :func:`prepare_meld`.
    rows : dict
        As :func:`read_tables` gives them.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        (part, dialogue, utterance) -> what is wrong with the clip, for those without audio.

    Raises
    ------
    NoDecoder
        If there is video to read and nothing to read it with.
    """
    data_folder = Path(data_folder)
    problems, jobs = {}, []
    for part, entries in rows.items():
        folders = [data_folder / f for f in CLIP_FOLDERS[part] if (data_folder / f).is_dir()]
        for dialogue, utterance in entries:
            name = f"dia{dialogue}_utt{utterance}"
            target = data_folder / audio_folder / part / f"{name}.wav"
            if target.is_file():
                continue
            clip = next((f / f"{name}.mp4" for f in folders if (f / f"{name}.mp4").is_file()), None)
            if clip is None:
                problems[part, dialogue, utterance] = f"no {name}.mp4 among the clips of {part}"
            else:
                jobs.append(((part, dialogue, utterance), clip, target))
    if not jobs:
        return problems
    decode_clip = _decoder()
    if decode_clip is None:
        raise NoDecoder(
            f"{len(jobs)} clips of {data_folder} are video and neither ffmpeg nor PyAV is here: install one "
            "(apt install ffmpeg, or pip install 'speechbrain_emo[video]'), or put 16 kHz wav files into "
            f"{data_folder / audio_folder}/<part>/dia0_utt0.wav"
        )
    for key, clip, target in tqdm(jobs, desc="MELD audio", unit="clip", disable=not progress):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part.wav")
        try:
            decode_clip(clip, partial)
            partial.replace(target)
        except ClipError as error:
            problems[key] = str(error)
        finally:
            partial.unlink(missing_ok=True)
    return problems


class ClipError(ValueError):
    """A clip whose sound cannot be read; the message names it.

    Example
    -------
    >>> issubclass(ClipError, ValueError)
    True
    """


def _decoder():
    """Function (clip, wav) of the first decoder that is here, or None."""
    if shutil.which("ffmpeg"):
        return _with_ffmpeg
    try:
        import av  # noqa: F401
    except ImportError:
        return None
    return _with_av


def _with_ffmpeg(clip, target):
    arguments = [
        "-nostdin",
        "-loglevel",
        "error",
        "-y",
        "-i",
        str(clip),
        "-vn",
        "-ac",
        "1",
        "-ar",
        str(SAMPLE_RATE),
    ]
    done = subprocess.run(["ffmpeg", *arguments, str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not target.is_file():
        raise ClipError(f"{clip.name}: ffmpeg: {done.stderr.strip()[-200:] or 'no sound'}")


def _with_av(clip, target):
    import av

    try:
        with av.open(str(clip)) as container:
            if not container.streams.audio:
                raise ClipError(f"{clip.name}: no sound in it")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            with soundfile.SoundFile(target, "w", SAMPLE_RATE, 1, "PCM_16") as out:
                for frame in container.decode(audio=0):
                    for piece in resampler.resample(frame):
                        out.write(piece.to_ndarray().reshape(-1))
                for piece in resampler.resample(None):
                    out.write(piece.to_ndarray().reshape(-1))
                if out.frames == 0:
                    raise ClipError(f"{clip.name}: its sound is empty")
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(f"{clip.name}: {error}") from error
