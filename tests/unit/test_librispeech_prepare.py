import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.LibriSpeech.librispeech_prepare import prepare_librispeech
from speechbrain_emo.dataio.manifest import ManifestError

SPEAKERS = """;ID  |SEX| SUBSET           |MINUTES| NAME
14   | F | train-clean-100  | 25.03 | Kristin LeMoine
16   | M | train-other-500  | 25.11 | Alys | AttewaterWithABar
19   | F | dev-clean        | 8.00  | Someone
26   | M | test-other       | 8.00  | Somebody
"""


def write_chapter(root, subset, speaker, chapter, texts):
    folder = root / subset / speaker / chapter
    folder.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        name = f"{speaker}-{chapter}-{number:04d}"
        samples = np.random.default_rng(number).normal(0, 0.1, 4800 + 160 * number)
        soundfile.write(folder / f"{name}.flac", samples, 16000)
        lines.append(f"{name} {text}")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "LibriSpeech"
    root.mkdir()
    (root / "SPEAKERS.TXT").write_text(SPEAKERS)
    for name in ("README.TXT", "LICENSE.TXT", "BOOKS.TXT", "CHAPTERS.TXT"):
        (root / name).write_text("text\n")
    write_chapter(root, "train-clean-100", "14", "208", ["CHAPTER ONE", "IT'S A FINE DAY", "THE END"])
    write_chapter(root, "train-other-500", "16", "122828", ["A HOUSE"])
    write_chapter(root, "dev-clean", "19", "198", ["NORTHANGER ABBEY"])
    write_chapter(root, "test-other", "26", "495", ["AN INQUIRY", "WHAT NOW"])
    return root


def load(done, part):
    return json.loads(Path(done.manifests[part]).read_text(encoding="utf-8"))


def test_official_parts(tree, tmp_path):
    done = prepare_librispeech(tree, tmp_path / "out")
    train, test = load(done, "train"), load(done, "test")
    assert sorted(train) == ["14-208-0000", "14-208-0001", "14-208-0002", "16-122828-0000"]
    assert train["14-208-0001"] == {
        "wav": "{data_root}/train-clean-100/14/208/14-208-0001.flac",
        "duration": 0.31,
        "speaker": "14",
        "gender": "female",
        "transcript": "it's a fine day",
        "emotion": None,
        "descriptors": {"gender": "female"},
        "subset": "train-clean-100",
        "chapter": "208",
        "language": "en",
        "corpus": "LibriSpeech",
    }
    assert {r["subset"] for r in test.values()} == {"test-other"} and list(load(done, "valid")) == [
        "19-198-0000"
    ]
    found = "\n".join(map(str, done.findings))
    assert "train-clean-360: the subset is absent" in found
    assert "train-clean-100: 3 utterances; the complete subset has 28539" in found
    assert "no emotion" not in found
    capitals = prepare_librispeech(tree, tmp_path / "b", lower_case=False)
    assert load(capitals, "train")["14-208-0000"]["transcript"] == "CHAPTER ONE"


def test_measured(tree, tmp_path):
    done = prepare_librispeech(tree, tmp_path / "out", measure=True, num_workers=1, progress=False)
    assert set(load(done, "test")["26-495-0000"]["descriptors"]) == {"gender", "pitch", "volume", "speed"}
    assert Path(done.thresholds).is_file()


def test_faults_are_reported(tree, tmp_path):
    chapter = tree / "train-clean-100" / "14" / "208"
    (chapter / "14-208-0000.flac").unlink()
    (chapter / "14-208-0001.flac").write_bytes(b"fLaC")
    table = chapter / "14-208.trans.txt"
    table.write_text(table.read_text() + "14-208-0009 NO RECORDING\n99-1-0000 ODD\n14-208-0002\n")
    soundfile.write(chapter / "14-208-0042.flac", np.zeros(1600), 16000)
    (tree / "SPEAKERS.TXT").unlink()
    done = prepare_librispeech(tree, tmp_path / "out")
    found = "\n".join(map(str, done.findings))
    for words in (
        r"14-208-0000: left out: .*no such file",
        r"14-208-0001: left out: .*14-208-0001.flac",
        r"14-208-0009: left out: .*no such file",
        r"14-208.trans.txt:5: line left out: '99-1-0000 ODD'",
        r"14-208-0002: left out: no transcript",
        r"14-208-0042: left out: not in 14-208.trans.txt",
        r"SPEAKERS.TXT: absent",
    ):
        assert re.search(words, found), words
    assert all(r["gender"] is None for r in load(done, "train").values())


def test_missing_corpus(tree, tmp_path):
    with pytest.raises(
        ManifestError, match="none does not exist. LibriSpeech is at https://www.openslr.org/12"
    ):
        prepare_librispeech(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ManifestError, match="holds none of train-clean-100.*Perhaps you mean .*LibriSpeech"):
        prepare_librispeech(tmp_path, tmp_path / "out")
    with pytest.raises(ManifestError, match="holds none of test-clean for the test part"):
        prepare_librispeech(tree, tmp_path / "out", test=["test-clean"])
    with pytest.raises(ValueError, match="subsets .'train-500'. are unknown; allowed: train-clean-100"):
        prepare_librispeech(tree, tmp_path / "out", train=["train-500"])


def test_real_utterances(shared_data, tmp_path, tree):
    """Three utterances of the corpus under their own names, packed as the corpus has them."""
    folder = shared_data / "librispeech"
    texts = sorted(folder.glob("*-*-*.txt"))
    if not texts:
        pytest.skip(f"no LibriSpeech utterances in {folder}")
    for path in texts:
        samples, rate = soundfile.read(path.with_suffix(".ogg"))
        speaker, chapter, _ = path.stem.split("-")
        target = tree / "test-clean" / speaker / chapter
        target.mkdir(parents=True)
        soundfile.write(target / f"{path.stem}.flac", samples, rate)
        words = path.read_text().split()
        words = words[1:] if words[0] == path.stem else words
        (target / f"{speaker}-{chapter}.trans.txt").write_text(f"{path.stem} {' '.join(words).upper()}\n")
    done = prepare_librispeech(tree, tmp_path / "out", test=["test-clean"])
    test = load(done, "test")
    assert sorted(test) == [p.stem for p in texts]
    assert all(2 < r["duration"] < 40 and len(r["transcript"].split()) > 5 for r in test.values())
