import json
import os

import numpy as np
import pytest
import soundfile

from speechbrain_emo.dataio.manifest import (
    Finding,
    ManifestError,
    read_manifest,
    split_hash,
    validate_manifest,
    validate_splits,
    write_manifest,
    write_text_atomically,
)

LABELS = ["joy", "fear"]


@pytest.fixture
def corpus(tmp_path):
    """Two good records whose files exist."""
    records = {}
    for name, seconds in (("a", 1.0), ("b", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(int(seconds * 16000)), 16000)
        records[name] = {
            "wav": f"{{data_root}}/{name}.wav",
            "duration": seconds,
            "speaker": f"s{name}",
            "gender": "female",
            "transcript": "Grüße {an} alle",
            "emotion": "joy",
            "descriptors": {"pitch": "high"},
        }
    return records


def test_written_records_come_back(tmp_path, corpus):
    write_manifest(tmp_path / "new" / "m.json", corpus)
    back = read_manifest(tmp_path / "new" / "m.json", {"data_root": tmp_path})
    assert list(back) == ["a", "b"]
    assert back["a"]["wav"] == f"{tmp_path}/a.wav"
    assert back["a"]["transcript"] == "Grüße {an} alle"
    back["a"]["wav"] = corpus["a"]["wav"]
    assert back["a"] == corpus["a"]
    assert "Grüße" in (tmp_path / "new" / "m.json").read_text(encoding="utf-8")


def test_speechbrains_data_set_takes_the_records(tmp_path, corpus):
    from speechbrain.dataio.dataset import DynamicItemDataset

    write_manifest(tmp_path / "m.json", corpus)
    records = read_manifest(tmp_path / "m.json", {"data_root": tmp_path})
    data = DynamicItemDataset(records, output_keys=["id", "wav", "duration"])
    assert data[0] == {"id": "a", "wav": f"{tmp_path}/a.wav", "duration": 1.0}
    # SpeechBrain's own reader fills placeholders in every string: the braces of the transcript stop it.
    with pytest.raises(KeyError):
        DynamicItemDataset.from_json(tmp_path / "m.json", replacements={"data_root": str(tmp_path)})


def test_paths_of_a_dialogue_are_filled(tmp_path):
    write_manifest(tmp_path / "m.json", {"d": {"audios": [{"wav": "{data_root}/1.wav"}, {"wav": "2.wav"}]}})
    audios = read_manifest(tmp_path / "m.json", {"data_root": "x"})["d"]["audios"]
    assert [a["wav"] for a in audios] == ["x/1.wav", "2.wav"]


def test_a_failed_write_leaves_the_old_file(tmp_path, corpus, monkeypatch):
    path = tmp_path / "m.json"
    write_manifest(path, corpus)
    old = path.read_bytes()
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        write_manifest(path, {"a": {"duration": float("nan")}})
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        write_manifest(path, {"a": {"wav": path}})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(path, "new")
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("[]", "a manifest is a JSON object"),
        ('{"a": 1}', "a manifest is a JSON object"),
        ('{"a": {}, "a": {}}', "ids that occur twice: a"),
        ('{"a": {"wav": "{data_root}/a.wav"}}', "no value given for {data_root}"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, text, words):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ManifestError, match=words):
        read_manifest(tmp_path / "m.json")
    with pytest.raises(ManifestError, match="no such manifest; run the corpus's preparation"):
        read_manifest(tmp_path / "none.json")


def test_good_records_have_no_findings(tmp_path, corpus):
    assert (
        validate_manifest(corpus, LABELS, require_transcript=True, replacements={"data_root": tmp_path}) == []
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"wav": "{data_root}/none.wav"}, "none.wav: no such file"),
        ({"wav": ""}, "no 'wav' and no 'audios'"),
        ({"wav": "{elsewhere}/a.wav"}, "no value given for {elsewhere}"),
        ({"duration": 0.9}, "duration 0.900 s in the record, 1.000 s in the file"),
        ({"duration": 0.001}, "is not a number of at least 0.025 seconds"),
        ({"duration": "1.0"}, "is not a number"),
        ({"duration": float("nan")}, "is not a number"),
        ({"speaker": None}, "no 'speaker'"),
        ({"gender": "f"}, "gender 'f' is not female, male or null"),
        ({"emotion": "joyful"}, "emotion 'joyful' is not one of joy, fear"),
        ({"transcript": " "}, "empty transcript"),
        ({"transcript": 3}, "transcript is int"),
        ({"start": -1}, "start -1 is not a non-negative integer"),
        ({"stop": 1.5}, "stop 1.5 is not a non-negative integer"),
        ({"start": 8000, "stop": 16001, "duration": 0.5}, "outside its 16000 samples"),
        ({"start": 8000}, "duration 1.000 s in the record, 0.500 s in the file"),
        ({"descriptors": {"pitch": "shrill"}}, "descriptor pitch = 'shrill' is not one of low, high"),
        ({"descriptors": ["high"]}, "descriptors is list"),
        ({"audios": [{"wav": "{data_root}/none.wav", "duration": 1.0}]}, "none.wav: no such file"),
        ({"audios": ["a.wav"]}, "an entry of 'audios' is str"),
    ],
)
def test_each_fault_is_named(tmp_path, corpus, change, words):
    corpus["a"].update(change)
    with pytest.raises(ManifestError) as caught:
        validate_manifest(
            corpus,
            LABELS,
            require_transcript=True,
            replacements={"data_root": tmp_path},
            descriptor_values={"pitch": ["low", "high"]},
        )
    assert words in str(caught.value)
    assert "\n  a: " in str(caught.value) and "\n  b: " not in str(caught.value)


def test_all_faults_are_listed_at_once(tmp_path, corpus):
    corpus["a"].update(emotion="x", speaker="")
    corpus["b"].update(wav="none.wav")
    with pytest.raises(ManifestError, match="3 faults in the manifest"):
        validate_manifest(corpus, LABELS, replacements={"data_root": tmp_path})
    many = {str(i): {"wav": "none.wav", "duration": 1.0, "speaker": "s"} for i in range(80)}
    with pytest.raises(ManifestError, match="80 faults in the manifest:\n(.|\n)*... and 30 more"):
        validate_manifest(many)


def test_duplicates(corpus):
    pairs = [*corpus.items(), ("a", corpus["b"])]
    with pytest.raises(ManifestError, match="a: the id occurs 2 times"):
        validate_manifest(pairs, check_audio=False)
    corpus["c"] = dict(corpus["a"])
    assert validate_manifest(corpus, check_audio=False) == [Finding("c", "the same audio as a")]


def test_findings_that_do_not_prevent_use(corpus):
    corpus["a"].update(transcript=None, emotion=None)
    assert [str(f) for f in validate_manifest(corpus, LABELS, check_audio=False)] == [
        "a: empty transcript",
        "a: no emotion",
    ]
    with pytest.raises(ManifestError, match="the manifest has no records"):
        validate_manifest({})


def test_splits_share_nothing(corpus):
    a, b = {"a": corpus["a"]}, {"b": corpus["b"]}
    assert validate_splits({"train": a, "valid": b}) == []
    with pytest.raises(ManifestError, match="ids in train and test: a"):
        validate_splits({"train": a, "valid": b, "test": a})
    with pytest.raises(ManifestError, match="test: 0 records, at least 1"):
        validate_splits({"train": a, "test": {}})
    renamed = {"x": dict(corpus["a"], speaker="other")}
    with pytest.raises(ManifestError, match="audio in train and test: {data_root}/a.wav"):
        validate_splits({"train": a, "test": renamed})


def test_speaker_independence_is_a_promise(corpus):
    corpus["b"]["speaker"] = "sa"
    splits = {"train": {"a": corpus["a"]}, "test": {"b": corpus["b"]}}
    with pytest.raises(ManifestError, match="speaker sa is in train and test: the split promises"):
        validate_splits(splits)
    assert [str(f) for f in validate_splits(splits, speaker_independent=False)] == [
        "speaker sa is in train and test"
    ]


def test_split_hash_sees_ids_and_names_only(corpus):
    reference = split_hash({"train": ["a", "b"], "test": ["c"]})
    assert reference == split_hash({"test": {"c": {}}, "train": {"b": {"duration": 1}, "a": {}}})
    assert (
        len(
            {
                reference,
                split_hash({"train": ["a"], "test": ["b", "c"]}),
                split_hash({"train": ["a", "b", "c"]}),
            }
        )
        == 3
    )
    # Written down once: result files of different versions are compared by it.
    assert reference == "b32cfcc6f59e055fcebcc56ad1fbf08cca10e988f5d753feb54ab3ae8992a010"


def test_a_manifest_is_readable_by_others(tmp_path):
    write_manifest(tmp_path / "m.json", {"a": {}})
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "m.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": {}}
