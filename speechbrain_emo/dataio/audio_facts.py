"""What audio files are, whatever they are called: container, rate, depth, level, clipping; many files, one cache."""

import hashlib
import json
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from speechbrain_emo.dataio.audio import AudioError, audio_info

#: Containers that libsndfile names -> suffixes that they go by.
SUFFIXES = {
    "WAV": (".wav", ".wave"),
    "WAVEX": (".wav", ".wave"),
    "RF64": (".wav", ".wave", ".rf64"),
    "AIFF": (".aif", ".aiff", ".aifc"),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3",),
    "MPEG": (".mp3", ".mp2"),
    "NIST": (".sph", ".nist"),
    "AU": (".au", ".snd"),
    "CAF": (".caf",),
}
AUDIO_SUFFIXES = tuple(sorted({s for suffixes in SUFFIXES.values() for s in suffixes}))
#: Samples beyond this share of full scale stand at its end.
FULL_SCALE = 32766 / 32768
#: As many equal extremes in a row are clipping, not a peak.
CLIPPED_RUN = 3
BLOCK = 1 << 18


@dataclass(frozen=True)
class AudioFacts:
    """What was found in one file.

    Arguments
    ---------
    path : str
        The file.
    size : int
        Bytes; -1 where there is no file.
    error : str or None
        Why it cannot be used; the fields below are then None.
    container, subtype : str or None
        As libsndfile names them: ``WAV`` and ``PCM_16``.
    sample_rate, channels, num_samples : int or None
        Hz; samples of a channel.
    peak, rms : float or None
        Full scale = 1; None where only headers were read.
    clipped : float or None
        Share of samples in runs of at least three at full scale.

    Example
    -------
    >>> audio_facts("nothing.wav").error
    'nothing.wav: no such file'
    """

    path: str
    size: int
    error: str | None = None
    container: str | None = None
    subtype: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    num_samples: int | None = None
    peak: float | None = None
    rms: float | None = None
    clipped: float | None = None

    @property
    def duration(self):
        """Seconds; None where the file cannot be used."""
        return None if self.num_samples is None else self.num_samples / self.sample_rate


def audio_facts(path, levels=True):
    """Look at one file.

    Arguments
    ---------
    path : str or pathlib.Path
        Audio file.
    levels : bool
        Decode it for peak, RMS and clipping. False: the header alone.

    Returns
    -------
    AudioFacts
        A file that cannot be used has ``error``; nothing is raised.

    Example
    -------
    >>> path = getfixture("tmp_path") / "loud.wav"
    >>> soundfile.write(path, np.clip(3 * np.sin(np.arange(16000) / 20), -1, 1), 16000)
    >>> facts = audio_facts(path)
    >>> facts.container, facts.subtype, facts.duration, facts.clipped > 0.5
    ('WAV', 'PCM_16', 1.0, True)
    """
    path = str(path)
    try:
        size = os.path.getsize(path)
    except OSError:
        return AudioFacts(path, -1, f"{path}: no such file")
    try:
        info = audio_info(path)
        header = soundfile.info(path)
        if info.num_samples == 0:
            return AudioFacts(path, size, f"{path}: the file has a valid header but no samples")
        values = _levels(path) if levels else (None, None, None)
    except (AudioError, soundfile.SoundFileError, OSError) as error:
        return AudioFacts(path, size, str(error))
    return AudioFacts(
        path,
        size,
        None,
        header.format,
        header.subtype,
        info.sample_rate,
        info.channels,
        info.num_samples,
        *values,
    )


def _levels(path):
    """(peak, rms, clipped share) over all channels, read in blocks so that an hour needs no more memory than a
    minute."""
    peak, energy, clipped, count, run = 0.0, 0.0, 0, 0, None
    with soundfile.SoundFile(path) as file:
        for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
            magnitude = np.abs(block)
            if not np.isfinite(magnitude).all():
                raise AudioError(f"{path}: {int((~np.isfinite(block)).sum())} samples are NaN or infinite")
            peak = max(peak, float(magnitude.max(initial=0.0)))
            energy += float(np.square(block, dtype=np.float64).sum())
            count += block.size
            if run is None:
                run = [0] * block.shape[1]
            for channel in range(block.shape[1]):
                more, run[channel] = _in_runs(magnitude[:, channel] >= FULL_SCALE, run[channel])
                clipped += more
    return round(peak, 6), round((energy / count) ** 0.5, 8), round(clipped / count, 6)


def _in_runs(full, before):
    """Samples in runs of at least CLIPPED_RUN, with a run that goes on from the block before; and the run at the
    end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]]).astype(np.int8)))
    counted, last = 0, 0
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist()):
        length = stop - start + (before if start == 0 else 0)
        if length >= CLIPPED_RUN:
            # What the block before has counted of this run is not counted twice.
            counted += length - (before if start == 0 and before >= CLIPPED_RUN else 0)
        if stop == len(full):
            last = length
    return counted, last


def scan_audio(paths, levels=True, cache_file=None, num_workers=None, progress=True, desc="check audio"):
    """Facts of many files, in threads; what has not changed since the last call is not read again.

    Arguments
    ---------
    paths : iterable of str or pathlib.Path
        Files; each is read once.
    levels : bool
        As in :func:`audio_facts`.
    cache_file : str or pathlib.Path, optional
        JSON lines, keyed by path, size and time of change.
    num_workers : int, optional
        Threads; default: the machine's cores, at most 8.
    progress : bool
        Show a progress bar.
    desc : str
        Its title.

    Returns
    -------
    dict of str to AudioFacts

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", np.zeros(1600), 16000)
    >>> scan_audio([folder / "a.wav"], progress=False)[str(folder / "a.wav")].peak
    0.0
    """
    names = list(dict.fromkeys(str(p) for p in paths))
    known = _read_cache(cache_file)
    found, todo = {}, []
    for name in names:
        entry = known.get(name)
        if entry is not None and entry["stamp"] == _stamp(name) and (not levels or entry["levels"]):
            found[name] = AudioFacts(**entry["facts"])
        else:
            todo.append(name)
    workers = num_workers or min(os.cpu_count() or 1, 8)
    fresh = {}
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda name: audio_facts(name, levels), todo)
        for name, facts in zip(
            todo,
            tqdm(results, total=len(todo), desc=desc, unit="file", disable=not progress or len(todo) < 100),
        ):
            fresh[name] = facts
    if cache_file is not None and fresh:
        Path(cache_file).parent.mkdir(parents=True, exist_ok=True)
        with open(cache_file, "a", encoding="utf-8") as stream:
            for name, facts in fresh.items():
                line = {"levels": levels, "stamp": _stamp(name), "facts": asdict(facts)}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    found.update(fresh)
    return {name: found[name] for name in names}


def _stamp(name):
    try:
        status = os.stat(name)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_cache(path):
    if path is None or not Path(path).is_file():
        return {}
    entries = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            entries[entry["facts"]["path"]] = entry
        except (json.JSONDecodeError, KeyError, TypeError):
            # A line that a kill cut off; its file is looked at again.
            continue
    return entries


def identical_files(facts):
    """Groups of files with the same bytes; only files of equal size are read.

    Arguments
    ---------
    facts : iterable of AudioFacts

    Returns
    -------
    list of list of str
        Paths, sorted; groups of two and more. Empty files are no group.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name, content in (("a.wav", b"same"), ("b.wav", b"same"), ("c.wav", b"else")):
    ...     _ = (folder / name).write_bytes(content)
    >>> [[Path(p).name for p in group] for group in identical_files(map(audio_facts, sorted(folder.iterdir())))]
    [['a.wav', 'b.wav']]
    """
    by_size, groups = defaultdict(set), defaultdict(list)
    for fact in facts:
        if fact.size > 0:
            by_size[fact.size].add(fact.path)
    for size, paths in by_size.items():
        if len(paths) > 1:
            for path in sorted(paths):
                groups[size, _digest(path)].append(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
