"""Small corpora on disk for tests: recordings that differ, in whatever layout."""

import zlib
from pathlib import Path

import numpy as np
import soundfile


def write_recording(path, seconds=0.4, rate=16000, channels=1, level=0.1, seed=None, **options):
    """Noise over a tone, different for every path; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(str(path).encode()) if seed is None else seed
    rng = np.random.default_rng(seed)
    time = np.arange(int(rate * seconds)) / rate
    wave = level * (
        0.5 * np.sin(2 * np.pi * (120 + 20 * rng.random()) * time) + 0.3 * rng.standard_normal(len(time))
    )
    wave = np.clip(wave, -1, 1)
    soundfile.write(path, np.stack([wave] * channels, 1) if channels > 1 else wave, rate, **options)
    return path


def kinds(report):
    """Kinds of a check's findings."""
    return {finding.kind for finding in report.findings}


def savee_tree(root):
    """SAVEE as its archive has it: four speakers, two sentences an emotion, and files that are no recordings of it."""
    for speaker in ("DC", "JE", "JK", "KL"):
        for letter in ("a", "d", "f", "h", "n", "sa", "su"):
            for number in (1, 2):
                write_recording(root / "AudioData" / speaker / f"{letter}{number:02d}.wav", rate=44100)
    (root / "AudioData" / "Info.txt").write_text("about")
    write_recording(root / "AudioData" / "DC" / "test.wav")
    return root
