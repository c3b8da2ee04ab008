import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.MELD import meld_prepare as meld
from speechbrain_emo.dataio.manifest import ManifestError

av = pytest.importorskip(
    "av", reason="PyAV makes and reads this test's clips: pip install 'speechbrain_emo[video]'"
)

HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
)
SPEAKERS = ("Chandler", "Monica", "The Interviewer")


def clip(path, seconds=0.5, frequency=440.0):
    """An mp4 as in the archive: a picture, and sound in AAC at 48 kHz with six channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=48000, layout="5.1")
        for _ in range(int(25 * seconds)):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        time = np.arange(int(48000 * seconds)) / 48000
        tone = (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.tile(tone, (6, 1)), format="fltp", layout="5.1")
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))


def line(number, dialogue, utterance, text="I don’t know… she’s", emotion="joy"):
    speaker = SPEAKERS[utterance % 3]
    return f'{number},"{text}",{speaker},{emotion},positive,{dialogue},{utterance},8,21,"00:16:16,059","00:16:21,731"'


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "MELD.Raw"
    made = root / "train" / "train_splits" / "dia0_utt0.mp4"
    clip(made)
    for part, folder in (
        ("train", "train/train_splits"),
        ("dev", "dev/dev_splits_complete"),
        ("test", "test/output_repeated_splits_test"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        lines = [line(1 + 2 * d + u, d, u) for d in range(3) for u in range(2)]
        for d in range(3):
            for u in range(2):
                if (part, d, u) != ("train", 0, 0):
                    (root / folder / f"dia{d}_utt{u}.mp4").write_bytes(made.read_bytes())
                (root / folder / f"._dia{d}_utt{u}.mp4").write_bytes(b"Mac")
        # As published: Windows-1252, and the train table in its own folder.
        place = root / "train" if part == "train" else root
        (place / f"{part}_sent_emo.csv").write_bytes("\r\n".join([HEADER, *lines, ""]).encode("cp1252"))
    return root


def load(done, part):
    return json.loads(Path(done.manifests[part]).read_text(encoding="utf-8"))


@pytest.fixture(params=["pyav", "ffmpeg"])
def decoder(request, monkeypatch):
    import shutil

    if request.param == "ffmpeg" and not shutil.which("ffmpeg"):
        pytest.skip("there is no ffmpeg command")
    if request.param == "pyav":
        monkeypatch.setattr(meld.shutil, "which", lambda name: None)
    return request.param


def test_official_parts_from_video(tree, tmp_path, decoder):
    done = meld.prepare_meld(tree, tmp_path / "out", progress=False)
    assert {part: len(load(done, part)) for part in done.manifests} == {"train": 6, "valid": 6, "test": 6}
    record = load(done, "valid")["dev_dia1_utt1"]
    assert record["transcript"] == "I don't know... she's" and record["emotion"] == "joy"
    assert record["speaker"] == "Monica" and record["gender"] == "female" and record["dialogue"] == "dev_1"
    samples, rate = soundfile.read(tree / "wav16k" / "dev" / "dia1_utt1.wav")
    assert rate == 16000 and samples.ndim == 1 and len(samples) / rate == pytest.approx(0.5, abs=0.07)
    spectrum = np.abs(np.fft.rfft(samples[1600:6400]))
    assert spectrum.argmax() * 16000 / 4800 == pytest.approx(440, abs=5)
    assert any("speaker Monica is in train and test" in str(f) for f in done.findings)
    # What was extracted is not extracted again.
    before = {p: p.stat().st_mtime_ns for p in (tree / "wav16k").rglob("*.wav")}
    meld.prepare_meld(tree, tmp_path / "again", progress=False)
    assert {p: p.stat().st_mtime_ns for p in (tree / "wav16k").rglob("*.wav")} == before


def test_faults_are_reported(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(meld.shutil, "which", lambda name: None)
    clips = tree / "test" / "output_repeated_splits_test"
    (clips / "dia0_utt0.mp4").unlink()
    (clips / "dia0_utt1.mp4").write_bytes(b"not a film")
    (clips / "dia1_utt0.mp4").write_bytes(b"")
    soundfile.write(tree / "long.wav", np.zeros(16000 * 50), 16000)
    (tree / "wav16k" / "test").mkdir(parents=True)
    (tree / "long.wav").rename(tree / "wav16k" / "test" / "dia1_utt1.wav")
    (tree / "wav16k" / "dev").mkdir(parents=True)
    soundfile.write(tree / "wav16k" / "dev" / "dia1_utt1.wav", np.zeros(16000), 16000)
    table = tree / "dev_sent_emo.csv"
    broken = [
        line(7, 110, 7),
        line(8, 0, 0),
        line(9, 3, 0, emotion="bored"),
        '10,"No number",Ross,joy,positive,x,0,1,1,a,b',
    ]
    table.write_bytes(table.read_bytes() + "\r\n".join([*broken, ""]).encode("cp1252"))
    done = meld.prepare_meld(tree, tmp_path / "out", progress=False)
    found = "\n".join(map(str, done.findings))
    for words in (
        r"test_dia0_utt0: left out: no dia0_utt0.mp4 among the clips of test",
        r"test_dia0_utt1: left out: dia0_utt1.mp4: ",
        r"test_dia1_utt0: left out: dia1_utt0.mp4: ",
        r"test_dia1_utt1: left out: 50.00 s is outside 0.05 to 45.0 s",
        r"dev_dia110_utt7: left out: no dia110_utt7.mp4 .*\(known to be broken\)",
        r"dev_dia0_utt0: a second time in the table",
        r"dev_sent_emo.csv:10: row left out: emotion 'bored' is not one of neutral, joy",
        r"dev_sent_emo.csv:11: row left out: invalid literal",
        r"dev_sent_emo.csv: 10 rows; the complete table has 1109",
    ):
        assert re.search(words, found), words
    check = json.loads((tmp_path / "out" / "data_check.json").read_text(encoding="utf-8"))
    kinds = {f["kind"]: f["items"] for f in check["findings"]}
    # A silent clip is listed, and that all six main characters are in all parts.
    assert kinds["silent"] == ["wav16k/dev/dia1_utt1.wav"]
    assert "speaker_in_splits" in kinds
    assert len(load(done, "test")) == 2 and not list((tree / "wav16k").rglob("*.part.wav"))


def test_no_decoder_and_missing_corpus(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(meld, "_decoder", lambda: None)
    with pytest.raises(
        meld.NoDecoder, match="18 clips of .*MELD.Raw are video and neither ffmpeg nor PyAV is here: install"
    ):
        meld.prepare_meld(tree, tmp_path / "out", progress=False)
    with pytest.raises(
        ManifestError, match="is not MELD; missing: train_sent_emo.csv, dev.* https://affective-meld"
    ):
        meld.prepare_meld(tmp_path / "none", tmp_path / "out")
    (tree / "test_sent_emo.csv").write_text("a,b\n")
    with pytest.raises(ManifestError, match="test_sent_emo.csv: no column Utterance, Speaker"):
        meld.prepare_meld(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_the_real_tables(shared_data, tmp_path, encoding):
    """All rows, in either encoding, with audio (hard links of one file) for the clips that EmoBox could read."""
    folder = shared_data / "annotations" / "meld"
    listed = shared_data / "annotations" / "emobox" / "meld" / "meld.jsonl"
    if not folder.is_dir() or not listed.is_file():
        pytest.skip(f"MELD's tables are not in {folder}")
    root = tmp_path / "MELD.Raw"
    root.mkdir()
    for part in meld.NUM_ROWS:
        text = (folder / f"{part}_sent_emo.csv").read_bytes().decode("utf-8")
        (root / f"{part}_sent_emo.csv").write_bytes(text.encode(encoding))
    rows, findings = meld.read_tables(root)
    assert findings == [] and {part: len(entries) for part, entries in rows.items()} == meld.NUM_ROWS
    texts = [row["Utterance"] for entries in rows.values() for row in entries.values()]
    assert not any(c in text for text in texts for c in "‘’“”…—\x92")
    assert rows["train"][0, 0]["Utterance"].startswith(
        "also I was the point person on my company's transition"
    )
    assert any("é" in text for text in texts), "letters with accents are kept"
    counts = Counter(row["Emotion"] for row in rows["test"].values())
    assert counts == {
        "neutral": 1256,
        "joy": 402,
        "anger": 345,
        "surprise": 281,
        "sadness": 208,
        "disgust": 68,
        "fear": 50,
    }
    present = {json.loads(x)["key"].removeprefix("meld-") for x in listed.read_text().splitlines()}
    expected = {f"dia{d}_utt{u}-{part}" for part, entries in rows.items() for d, u in entries}
    assert {(k.split("-")[1], *map(int, re.findall(r"\d+", k))) for k in expected - present} == meld.BROKEN
    if encoding == "utf-8":
        return
    soundfile.write(tmp_path / "tone.wav", np.random.default_rng(0).normal(0, 0.1, 1600), 16000)
    for key in sorted(present)[::40]:
        name, part = key.split("-")
        path = root / "wav16k" / part / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(tmp_path / "tone.wav")
    done = meld.prepare_meld(root, tmp_path / "out", progress=False)
    assert sum(len(load(done, part)) for part in done.manifests) == len(sorted(present)[::40])
    assert sum("known to be broken" in str(f) for f in done.findings) == 2


def test_the_csv_module_reads_what_the_fixture_writes(tree):
    rows = list(csv.DictReader(meld.decode((tree / "dev_sent_emo.csv").read_bytes()).splitlines()))
    assert len(rows) == 6 and rows[0]["StartTime"] == "00:16:16,059"
