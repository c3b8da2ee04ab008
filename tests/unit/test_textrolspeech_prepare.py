import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.TextrolSpeech.textrolspeech_prepare import prepare_textrolspeech
from speechbrain_emo.dataio.manifest import ManifestError

COLUMNS = ["item_name", "dur", "pitch", "energy", "gender", "emotion", "spk", "txt", "style_prompt"]
FAST = "He rattles it off quickly, in a deep voice."
SLOW = "Slowly and softly, a woman tells her story."


def wav(path, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(16000 * seconds)), 16000)


def row(name, speaker, gender="M", dur="high", emotion="neutral", **changes):
    sentence = {"high": FAST, "low": SLOW, "normal": "A calm voice."}[dur]
    values = [name, dur, "low", "normal", gender, emotion, speaker, f"Words of {name}.", sentence]
    return {**dict(zip(COLUMNS, values)), **changes}


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def tree(tmp_path):
    """LibriTTS and VCTK named by file, emotional recordings named by their path."""
    root, rows = tmp_path / "TextrolSpeech", []
    for s in range(10):
        speaker, gender = str(100 + s), "FM"[s % 2]
        for u in range(2):
            name = f"{speaker}_12_00000{u}_000000"
            wav(root / "LibriTTS" / "train-clean-100" / speaker / "12" / f"{name}.wav")
            rows.append(row(name, speaker, gender, "low" if u else "normal"))
    for s in range(6):
        speaker = f"p{225 + s}"
        wav(root / "VCTK" / "wav48" / speaker / f"{speaker}_001_mic2.flac")
        rows.append(row(f"{speaker}_001", speaker, "FM"[s % 2]))
    for s in range(6):
        for emotion in ("angry", "happiness"):
            wav(
                root
                / "emotion_dataset"
                / "ESD"
                / f"00{11 + s}"
                / emotion
                / f"00{11 + s}_0003{len(emotion)}.wav"
            )
            name = f"ESD-00{11 + s}-{emotion}-00{11 + s}_0003{len(emotion)}"
            rows.append(row(name, f"00{11 + s}", "FM"[s % 2], emotion=emotion))
    write_table(root / "caption" / "random_train.csv", rows[:-2])
    write_table(
        root / "caption" / "random_test.csv", rows[-2:] + [{**rows[0], "style_prompt": "Another sentence."}]
    )
    return root


def load(done, part):
    return json.loads(Path(done.manifests[part]).read_text(encoding="utf-8"))


def test_speakers_are_held_out_of_every_source_and_gender(tree, tmp_path):
    done = prepare_textrolspeech(tree, tmp_path / "out")
    parts = {name: load(done, name) for name in done.manifests}
    assert sum(map(len, parts.values())) == 38
    speakers = [{r["speaker"] for r in part.values()} for part in parts.values()]
    assert len(set.union(*speakers)) == sum(map(len, speakers)) == 22
    for part in ("valid", "test"):
        assert {(r["source"], r["gender"]) for r in parts[part].values()} == {
            (source, gender) for source in ("libritts", "vctk", "esd") for gender in ("female", "male")
        }
    again = prepare_textrolspeech(tree, tmp_path / "again")
    other = prepare_textrolspeech(tree, tmp_path / "other", seed=1)
    assert again.split_hash == done.split_hash != other.split_hash


def test_a_record(tree, tmp_path):
    done = prepare_textrolspeech(tree, tmp_path / "out")
    everything = {k: r for part in done.manifests for k, r in load(done, part).items()}
    record = everything["ESD-0012-happiness-0012_00039"]
    assert record["wav"] == "{data_root}/emotion_dataset/ESD/0012/happiness/0012_00039.wav"
    assert record["speaker"] == "esd:0012" and record["emotion"] == "happy" and record["gender"] == "male"
    assert record["descriptors"] == {
        "gender": "male",
        "pitch": "low",
        "volume": "normal",
        "speed": "fast",
        "description": FAST,
    }
    assert everything["p226_001"]["wav"].endswith("VCTK/wav48/p226/p226_001_mic2.flac")
    # A second row of the same recording adds its sentence.
    assert sorted(everything["100_12_000000_000000"]["descriptions"]) == [
        "A calm voice.",
        "Another sentence.",
    ]
    assert any(
        "dur: read as tempo: 28 style sentences agree with tempo, 0 with duration" in str(f)
        for f in done.findings
    )


def test_dur_as_duration_is_noticed(tree, tmp_path):
    for path in (tree / "caption").iterdir():
        text = path.read_text()
        swapped = text.replace(FAST, "<1>").replace(SLOW, FAST).replace("<1>", SLOW)
        path.write_text(swapped)
    done = prepare_textrolspeech(tree, tmp_path / "out")
    everything = {k: r for part in done.manifests for k, r in load(done, part).items()}
    assert everything["p226_001"]["descriptors"]["speed"] == "slow"
    assert any("read as duration" in str(f) for f in done.findings)
    forced = prepare_textrolspeech(tree, tmp_path / "forced", dur_means="tempo")
    everything = {k: r for part in forced.manifests for k, r in load(forced, part).items()}
    assert everything["p226_001"]["descriptors"]["speed"] == "fast"
    with pytest.raises(ValueError, match="dur_means is 'speed'; allowed: auto, tempo, duration"):
        prepare_textrolspeech(tree, tmp_path / "out", dur_means="speed")


def test_the_other_table(tmp_path):
    """Columns num, wav_fp, tempo and content_prompt, no speaker: LibriTTS names tell it, else the folder."""
    root, rows = tmp_path / "textrol", []
    for s in range(8):
        path = f"LibriTTS/dev-clean/{20 + s}/1/{20 + s}_1_000000_000000.wav"
        wav(root / path)
        name = Path(path).name
        rows.append([s, path, name, "F", "high", "low", "high", "neutral", SLOW, "Some words."])
    wav(root / "TESS" / "OAF" / "OAF_back_angry.wav")
    rows.append(
        [
            9,
            "TESS/OAF/OAF_back_angry.wav",
            "OAF_back_angry.wav",
            "F",
            "low",
            "high",
            "low",
            "anger",
            FAST,
            "Back.",
        ]
    )
    names = "num wav_fp item_name gender pitch tempo energy emotion style_prompt content_prompt".split()
    write_table(root / "all.csv", [dict(zip(names, r)) for r in rows])
    done = prepare_textrolspeech(root, tmp_path / "out", tables=["all.csv"])
    everything = {k: r for part in done.manifests for k, r in load(done, part).items()}
    assert everything["20_1_000000_000000.wav"]["speaker"] == "libritts:20"
    assert everything["20_1_000000_000000.wav"]["descriptors"]["speed"] == "slow"
    assert everything["OAF_back_angry.wav"]["speaker"] == "tess:OAF"
    assert any("9 rows have no speaker" in str(f) for f in done.findings)


def test_faults_are_reported(tree, tmp_path):
    wav(tree / "LibriTTS" / "copy" / "101_12_000000_000000.wav")
    (tree / "VCTK" / "wav48" / "p225" / "p225_001_mic2.flac").write_bytes(b"")
    rows = [
        row("nowhere", "1"),
        row("p226_001", "p226", gender="X"),
        row("p227_001", "p227", emotion="bored"),
        row("p228_001", "p228", pitch="very high"),
        row("", "p229"),
    ]
    write_table(tree / "broken.csv", rows)
    (tree / "notes.csv").write_text("a,b\n1,2\n")
    done = prepare_textrolspeech(tree, tmp_path / "out")
    found = "\n".join(map(str, done.findings))
    for words in (
        r"broken.csv:2: nowhere: left out: no recording of this name",
        r"broken.csv:3: p226_001: left out: gender 'X' is not one of m, male",
        r"broken.csv:4: p227_001: left out: emotion 'bored' is not one of",
        r"broken.csv:5: p228_001: left out: pitch 'very high' is not one of low, normal, high",
        r"broken.csv:6: None: left out: no item_name",
        r"101_12_000000_000000: left out: 2 recordings of this name: LibriTTS/copy",
        r"p225_001: left out: .*mic2.flac: the file is empty",
    ):
        assert re.search(words, found), words


def test_missing_corpus(tmp_path):
    with pytest.raises(
        ManifestError, match="none does not exist. TextrolSpeech is linked from https://github.com"
    ):
        prepare_textrolspeech(tmp_path / "none", tmp_path / "out")
    write_table(tmp_path / "x.csv", [{"item_name": "a", "pitch": "low"}])
    with pytest.raises(ManifestError, match="(?s)holds no table.*x.csv lacks tempo/dur, energy, gender"):
        prepare_textrolspeech(tmp_path, tmp_path / "out")
    write_table(tmp_path / "x.csv", [row("a", "1")])
    with pytest.raises(ManifestError, match="holds no recording"):
        prepare_textrolspeech(tmp_path, tmp_path / "out")
    wav(tmp_path / "b.wav")
    with pytest.raises(
        ManifestError, match="none of the 1 rows can be used; the first: no recording of this name"
    ):
        prepare_textrolspeech(tmp_path, tmp_path / "out")
    with pytest.raises(ManifestError, match="no such table: .*y.csv"):
        prepare_textrolspeech(tmp_path, tmp_path / "out", tables=["y.csv"])
