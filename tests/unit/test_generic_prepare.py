"""A corpus of one's own without code: tables and folders in all usual shapes."""

import json
import shutil
from pathlib import Path

import pytest

from recipes.Generic.generic_prepare import prepare_generic
from speechbrain_emo import cli
from speechbrain_emo.dataio.corpus_reader import read_any, read_folder, read_table
from speechbrain_emo.dataio.labels import apply_label_map, automatic_map, read_label_map, suggest
from speechbrain_emo.dataio.manifest import ManifestError
from tests.corpora import write_recording

REPOSITORY = Path(__file__).resolve().parents[2]
EMODB = REPOSITORY.parent / "shared" / "data" / "emodb"
LABELS = ("angry", "happy", "neutral", "sad")
THEIRS = ("Anger", "joy", "neutral", "SADNESS", "boredom")


def load(done, part):
    return json.loads(Path(done.manifests[part]).read_text(encoding="utf-8"))


@pytest.fixture
def table(tmp_path):
    """A table with six speakers, five emotions in other spellings, a missing and a broken file."""
    rows = ["File Name;Emotion;Speaker ID;Sex;Text"]
    for speaker in range(6):
        for emotion in THEIRS:
            path = write_recording(tmp_path / "data" / f"s{speaker}" / f"{emotion}.wav")
            rows.append(
                f"{path.relative_to(tmp_path / 'data')};{emotion};{speaker};{'fm'[speaker % 2]};Héllo “you”"
            )
    rows += ["gone.wav;joy;1;f;", ";joy;1;f;", "s0/joy.wav;joy;1;f;again"]
    (tmp_path / "data" / "broken.wav").write_text("no")
    rows.append("broken.wav;joy;1;f;")
    (tmp_path / "data" / "list.csv").write_bytes("\r\n".join(rows).encode("cp1252"))
    return tmp_path / "data" / "list.csv"


def test_a_table_becomes_manifests(table, tmp_path):
    done = prepare_generic(
        table, tmp_path / "out", LABELS, num_folds=3, num_valid_speakers=1, measure=False, progress=False
    )
    parts = {part: load(done, part) for part in done.manifests}
    assert {part: len({r["speaker"] for r in records.values()}) for part, records in parts.items()} == {
        "train": 3,
        "valid": 1,
        "test": 2,
    }
    assert sum(map(len, parts.values())) == 24
    record = {**parts["train"], **parts["valid"], **parts["test"]}["s0/Anger"]
    assert (
        record["emotion"] == "angry"
        and record["original_emotion"] == "Anger"
        and record["gender"] == "female"
    )
    assert record["transcript"] == "Héllo “you”" and record["wav"] == "{data_root}/s0/Anger.wav"
    found = "\n".join(map(str, done.findings))
    for words in (
        "list.csv:31: row left out: ",
        "gone.wav: no such file",
        "list.csv:32: row left out: no path",
        "list.csv:33: row left out: s0/joy occurs a second time",
        "not an audio file: it holds text",
        "6 of label 'boredom' left out: not in the label map",
    ):
        assert words in found, words
    assert (tmp_path / "out" / "data_check.json").is_file()
    # All folds together test everything once.
    tested = [
        set(
            load(
                prepare_generic(
                    table, tmp_path / f"f{n}", LABELS, fold=n, num_folds=3, measure=False, progress=False
                ),
                "test",
            )
        )
        for n in (1, 2, 3)
    ]
    assert len(set.union(*tested)) == sum(map(len, tested)) == 24


def test_own_splits_and_no_speakers(table, tmp_path):
    rows = [line.split(";") for line in table.read_bytes().decode("cp1252").splitlines()[1:31]]
    for number, row in enumerate(rows):
        row += [("train", "dev", "test")[number % 3]]
    split = table.with_name("split.csv")
    split.write_text("path,emotion,split\n" + "".join(f"{r[0]},{r[1]},{r[5]}\n" for r in rows))
    with pytest.raises(ManifestError, match="holds 2 tables"):
        read_any(split.parent)
    done = prepare_generic(split, tmp_path / "own", LABELS, measure=False, progress=False)
    assert json.loads((tmp_path / "own" / "preparation.json").read_text())["fold"] == "official"
    assert any("nobody can say whether the parts share some" in str(f) for f in done.findings)
    bare = table.with_name("bare.csv")
    bare.write_text("path,emotion\n" + "".join(f"{r[0]},{r[1]}\n" for r in rows))
    done = prepare_generic(bare, tmp_path / "bare", LABELS, measure=False, progress=False)
    assert any("random split" in str(f) for f in done.findings) and len(load(done, "test")) == 5


def test_a_label_map_decides(table, tmp_path):
    label_map = tmp_path / "map.yaml"
    label_map.write_text("Mine: {joy: happy, Anger: null, boredom: sad}\nOther: {x: y}\n")
    done = prepare_generic(
        table,
        tmp_path / "out",
        ("happy", "sad"),
        label_map,
        name="Mine",
        num_folds=2,
        measure=False,
        progress=False,
    )
    records = {k: r for part in done.manifests for k, r in load(done, part).items()}
    # SADNESS differs in spelling only; neutral has no counterpart.
    assert {r["original_emotion"] for r in records.values()} == {"joy", "boredom", "SADNESS"}
    with pytest.raises(ValueError, match="no entry 'Third'; it has Mine, Other"):
        read_label_map(label_map, "Third")
    with pytest.raises(ManifestError, match="none of its labels .* is one of bliss: give a label_map"):
        prepare_generic(table, tmp_path / "none", ("bliss",), measure=False, progress=False)


@pytest.mark.parametrize(
    "layout, expected",
    [
        ("{emotion}/{number}.wav", {"emotion"}),
        ("{speaker}/{emotion}/{number}.wav", {"emotion", "speaker"}),
        ("{emotion}/{speaker}/{number}.wav", {"emotion", "speaker"}),
        ("{split}/{speaker}/{emotion}/{number}.wav", {"emotion", "speaker", "subset"}),
        ("audio/{split}/{emotion}/{number}.wav", {"emotion", "subset"}),
    ],
)
def test_folders_say_it(tmp_path, layout, expected):
    for speaker in ("anna", "ben"):
        for emotion in ("anger", "sad"):
            for split in ("train", "test"):
                number = f"{speaker}_{split}"
                write_recording(
                    tmp_path / layout.format(speaker=speaker, emotion=emotion, split=split, number=number)
                )
    records, findings = read_folder(tmp_path)
    assert not findings
    assert {r["emotion"] for r in records.values()} == {"anger", "sad"}
    assert ({r["speaker"] for r in records.values()} == {"anna", "ben"}) == ("speaker" in expected)
    assert ({r.get("subset") for r in records.values()} == {"train", "test"}) == ("subset" in expected)


def test_a_pattern_reads_names(tmp_path):
    for name in ("03a01Fa", "03a01Wb", "08b02Ta"):
        write_recording(tmp_path / "wav" / f"{name}.wav")
    write_recording(tmp_path / "wav" / "noise.wav")
    records, findings = read_folder(tmp_path, r"(?P<id>(?P<speaker>\d\d)[ab]\d\d(?P<emotion>[A-Z])[a-z])")
    assert {k: (r["speaker"], r["emotion"]) for k, r in records.items()} == {
        "03a01Fa": ("03", "F"),
        "03a01Wb": ("03", "W"),
        "08b02Ta": ("08", "T"),
    }
    assert [str(f) for f in findings] == [
        "wav/noise.wav: left out: not the name of a recording of a corpus with emotions in its paths"
    ]
    with pytest.raises(ValueError, match="has no group"):
        read_folder(tmp_path, r"\d+")
    with pytest.raises(ManifestError, match="no file has such a name .found: wav/03a01Fa.wav"):
        read_folder(tmp_path, r"(?P<emotion>x)_\d+")


def test_messages_that_help(tmp_path):
    (tmp_path / "t.csv").write_text("clip,feeling\na.wav,sad\n")
    with pytest.raises(
        ManifestError, match="no column for path and emotion; it has clip, feeling.*columns={field: name}"
    ):
        read_table(tmp_path / "t.csv")
    records, _ = read_table(
        tmp_path / "t.csv", columns={"path": "clip", "emotion": "feeling"}, check_files=False
    )
    assert records["a"]["emotion"] == "sad"
    with pytest.raises(ManifestError, match="has no column mood; it has clip, feeling"):
        read_table(tmp_path / "t.csv", columns={"path": "clip", "emotion": "mood"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no audio file below it"):
        read_any(tmp_path / "empty")
    write_recording(tmp_path / "one" / "wav" / "1.wav")
    with pytest.raises(ManifestError, match="'wav' is its only folder of recordings"):
        read_any(tmp_path / "one")
    for a, b in (("x", "1"), ("y", "2")):
        write_recording(tmp_path / "odd" / a / b / "1.wav")
    with pytest.raises(ManifestError, match="not plain which of its folders are emotions"):
        read_any(tmp_path / "odd")


def test_votes_follow_the_labels():
    record = {"emotion": "anger", "soft_labels": {"anger": 0.6, "calm": 0.2, "boredom": 0.2}}
    kept, _ = apply_label_map(
        {"a": record}, {"anger": "angry", "calm": "neutral", "boredom": None}, ["angry", "neutral"]
    )
    assert kept["a"]["soft_labels"] == pytest.approx({"angry": 0.75, "neutral": 0.25})
    assert record["emotion"] == "anger" and record["soft_labels"]["calm"] == 0.2
    # "" keeps the recording without a label.
    kept, _ = apply_label_map({"a": record}, {"anger": ""}, ["angry"])
    assert kept["a"]["emotion"] is None and kept["a"]["original_emotion"] == "anger"
    with pytest.raises(ValueError, match="leads to .'furious'."):
        apply_label_map({}, {"anger": "furious"}, ["angry"])


def test_spellings_are_told_from_other_labels():
    labels = ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness")
    assert automatic_map(("angry", "happy", "sad", "calm", "boredem"), labels) == {
        "angry": "anger",
        "happy": "happiness",
        "sad": "sadness",
        "calm": None,
        "boredem": "boredom",
    }
    for first in labels:
        for second in labels:
            assert (suggest(first, [second]) is None) == (first != second), (first, second)


def test_the_command_prepares(table, tmp_path, capsys):
    arguments = [
        str(table),
        str(tmp_path / "out"),
        "--labels=[angry, happy]",
        "--measure=false",
        "--progress=false",
    ]
    assert cli.main(["prepare", "generic", *arguments, "--num_folds=3"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"train: {tmp_path / 'out' / 'train.json'}"
    assert cli.main(["prepare", "generic", *arguments, "--num_folds=3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"manifests", "findings", "data_check"} and any(
        "boredom" in f for f in told["findings"]
    )
    assert cli.main(["prepare"]) == 0 and "RAVDESS" in capsys.readouterr().out.split()
    assert cli.main(["prepare", "RAVDESS"]) == 0 and "num_valid_speakers=" in capsys.readouterr().out
    for wrong, says in (
        (["prepare", "Nothing", "a", "b"], "no recipe 'Nothing'; there are "),
        (
            ["prepare", "Generic", *arguments, "--lables=[x]"],
            "Generic: no argument 'lables'; it takes labels, ",
        ),
        (
            ["prepare", "RAVDESS", str(tmp_path), str(tmp_path / "r")],
            "is not RAVDESS: no file has such a name",
        ),
        (["prepare", "Generic", *arguments, "--labels=[a"], "is no YAML value"),
    ):
        assert cli.main(wrong) == 2 and says in capsys.readouterr().err


def test_manifests_say_where_their_audio_is(table, tmp_path, monkeypatch):
    """What reads a prepared folder finds its recordings, wherever it is called from."""
    monkeypatch.chdir(table.parent)
    prepare_generic(table.name, tmp_path / "out", measure=False, check_audio="off", progress=False)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "out", tmp_path / "out" / "test.json"):
        records, _, root = read_any(source)
        assert records
        for record in records.values():
            assert Path(record["wav"].replace("{data_root}", root)).is_file()
    assert read_any(tmp_path / "out", audio_root="elsewhere")[2] == "elsewhere"


def test_labels_between_commas_and_a_map_that_leaves_one_label(table, tmp_path):
    options = {"measure": False, "check_audio": "off", "progress": False}
    done = prepare_generic(table, tmp_path / "out", labels="angry, happy", **options)
    kept = [r for p in done.manifests.values() for r in json.loads(Path(p).read_text()).values()]
    assert {r["emotion"] for r in kept} == {"angry", "happy"}
    others = "".join(f"{label}: null\n" for label in THEIRS[1:])
    (tmp_path / "map.yaml").write_text(f"Anger: furious\n{others}")
    with pytest.raises(ManifestError, match="only 'furious' is left under labels and label_map"):
        prepare_generic(table, tmp_path / "two", label_map=tmp_path / "map.yaml", **options)


@pytest.mark.skipif(not EMODB.is_dir(), reason=f"{EMODB} is not there")
def test_a_real_corpus_needs_no_code(tmp_path):
    """EmoDB through a pattern and a label map has the recordings that its own preparation finds."""
    (tmp_path / "map.json").write_text(json.dumps({"W": "angry", "F": "happy", "T": "sad", "N": "neutral"}))
    chosen = sorted((EMODB / "wav").glob("*.wav"))[::5]
    (tmp_path / "emodb").mkdir()
    for path in chosen:
        shutil.copy(path, tmp_path / "emodb")
    done = prepare_generic(
        tmp_path / "emodb",
        tmp_path / "out",
        LABELS,
        tmp_path / "map.json",
        pattern=r"(?P<id>(?P<speaker>\d\d)[ab]\d\d(?P<emotion>[A-Z])[a-z])",
        measure=False,
        progress=False,
    )
    records = {k: r for part in done.manifests for k, r in load(done, part).items()}
    assert set(records) == {p.stem for p in chosen if p.stem[5] in "WFTN"}
    assert any("of label 'L' left out: not in the label map" in str(f) for f in done.findings)
