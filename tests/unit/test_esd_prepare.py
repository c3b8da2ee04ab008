"""ESD on a small tree in its true layout, made here."""

import json

import numpy as np
import pytest
import soundfile

from recipes.ESD.esd_prepare import EMOTIONS, SPEAKERS, prepare_esd, prepare_esd_iemocap, read_corpus
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest

OFFSET = {"neutral": 0, "angry": 350, "happy": 700, "sad": 1050, "surprise": 1400}


@pytest.fixture
def tree(tmp_path):
    """The ten English speakers, three utterances an emotion, in the corpus's own parts."""
    root = tmp_path / "Emotional Speech Dataset (ESD)"
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(4800) / 16000)
    for speaker in SPEAKERS["en"]:
        lines = []
        for emotion in EMOTIONS:
            for i, part in enumerate(("evaluation", "test", "train"), 1):
                name = f"{speaker}_{OFFSET[emotion] + i:06d}"
                folder = root / speaker / emotion.capitalize() / part
                folder.mkdir(parents=True)
                soundfile.write(folder / f"{name}.wav", tone, 16000)
                lines.append(f"{name}\tThe nine the eggs, I keep {i}.\t{emotion.capitalize()}")
        (root / speaker / f"{speaker}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def load(folder, part):
    return json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))


def test_speakers_are_in_one_part_only(tree, tmp_path):
    findings = prepare_esd(tree, tmp_path / "out", progress=False).findings
    parts = {part: load(tmp_path / "out", part) for part in ("train", "valid", "test")}
    assert {part: len(records) for part, records in parts.items()} == {"train": 90, "valid": 30, "test": 30}
    assert {r["speaker"] for r in parts["test"].values()} == {"0013", "0018"}
    record = parts["train"]["0011_000352"]
    assert record["emotion"] == "angry" and record["transcript"] == "The nine the eggs, I keep 2."
    assert record["wav"] == "{data_root}/0011/Angry/test/0011_000352.wav" and record["sentence"] == 2
    assert record["gender"] is None and record["duration"] == pytest.approx(0.3)
    assert any("complete corpus has 350" in str(f) for f in findings)


def test_copies_without_parts_and_other_encodings_are_read(tree):
    for path in sorted((tree / "0011").rglob("*.wav")):
        path.rename(path.parent.parent / path.name)
    text = (tree / "0012" / "0012.txt").read_text(encoding="utf-8")
    (tree / "0012" / "0012.txt").write_text(text.replace("eggs", "œufs"), encoding="utf-16")
    (tree / "0013" / "0013.txt").write_bytes(
        text.replace("0012", "0013").replace("eggs", "鸡蛋").encode("gb18030")
    )
    (tree / "0014" / "0014.txt").write_text(
        text.replace("0012", "0014").replace("\t", "   "), encoding="utf-8"
    )
    records, findings = read_corpus(tree)
    assert len(records) == 150
    assert "œufs" in records["0012_000001"]["transcript"] and "鸡蛋" in records["0013_000001"]["transcript"]
    assert records["0014_000001"]["transcript"] == "The nine the eggs, I keep 1."
    assert not [f for f in findings if "left out" in str(f)]


def test_faults_are_survived_and_listed(tree, tmp_path):
    (tree / "0011" / "Angry" / "test" / "0011_000352.wav").write_bytes(b"RIFF")
    (tree / "0012" / "0012.txt").unlink()
    text = (tree / "0015" / "0015.txt").read_text(encoding="utf-8")
    changed = text.replace("keep 1.\tSad", "keep 1.\tHappy").replace("0015_000001", "broken line")
    (tree / "0015" / "0015.txt").write_text(changed, encoding="utf-8")
    findings = [str(f) for f in prepare_esd(tree, tmp_path / "out", progress=False).findings]
    assert any(f.startswith("0011_000352: left out") for f in findings)
    assert any("0012.txt: missing" in f for f in findings)
    assert any("says Happy, the folder sad" in f for f in findings)
    assert any("line left out" in f for f in findings)
    assert "0011_000352" not in load(tmp_path / "out", "train")
    assert load(tmp_path / "out", "train")["0012_000001"]["transcript"] is None
    written = json.loads((tmp_path / "out" / "preparation.json").read_text(encoding="utf-8"))
    assert len(written["findings"]) == len(findings)
    # All recordings of the tree are one tone: the check that every preparation runs says so.
    assert "identical_in_splits" in written["data_check"]


def test_what_is_no_esd_is_said_with_the_way_to_get_it(tree, tmp_path):
    with pytest.raises(ManifestError, match="Perhaps you mean"):
        prepare_esd(tree.parent, tmp_path / "out")
    with pytest.raises(ManifestError, match="HLTSingapore"):
        prepare_esd(tree, tmp_path / "out", language="zh", valid_speakers=["0001"], test_speakers=["0002"])
    with pytest.raises(ValueError, match="none of the en ones"):
        prepare_esd(tree, tmp_path / "out", test_speakers=["0001"])
    with pytest.raises(ValueError, match="in valid_speakers and in test_speakers"):
        prepare_esd(tree, tmp_path / "out", test_speakers=["0014"])
    with pytest.raises(ValueError, match="language is 'de'"):
        prepare_esd(tree, tmp_path / "out", language="de")


def test_esd_and_iemocap_together_keep_their_roots_and_ratings(tree, tmp_path):
    iemocap = tmp_path / "IEMOCAP_full_release"
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(4800) / 16000)
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        root = iemocap / f"Session{session}"
        for folder in ("dialog/EmoEvaluation", "dialog/transcriptions", f"sentences/wav/{dialogue}"):
            (root / folder).mkdir(parents=True)
        lines, texts = [], []
        for gender in "FM":
            for i, label in enumerate(("ang", "hap", "sad", "neu")):
                name = f"{dialogue}_{gender}{i:03d}"
                lines.append(f"[6.2901 - 8.2357]\t{name}\t{label}\t[2.5000, 3.0000, 2.3333]")
                texts.append(f"{name} [006.2901-008.2357]: Excuse me.")
                soundfile.write(root / "sentences" / "wav" / dialogue / f"{name}.wav", tone, 16000)
        (root / "dialog" / "EmoEvaluation" / f"{dialogue}.txt").write_text("\n".join(lines) + "\n")
        (root / "dialog" / "transcriptions" / f"{dialogue}.txt").write_text("\n".join(texts) + "\n")
    counts = prepare_esd_iemocap(tree, iemocap, tmp_path / "both", num_workers=1)
    assert counts["train"] == 90 + 24 and counts["test"] == 30 + 8
    roots = {"esd_root": str(tree), "iemocap_root": str(iemocap)}
    records = read_manifest(tmp_path / "both" / "train.json", roots)
    assert all(r["wav"].startswith((str(tree), str(iemocap))) for r in records.values())
    assert {r["activation"] for k, r in records.items() if k.startswith("iemocap_")} == {3.0}
    assert {r["emotion"] for r in records.values()} == {*EMOTIONS, "anger", "happiness", "sadness"}
