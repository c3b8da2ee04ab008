"""The data check: every fault that the corpora of this field have, made here in small, is found and named."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_emo import cli
from speechbrain_emo.dataio.audio_facts import audio_facts, scan_audio
from speechbrain_emo.dataio.check import KINDS, check_and_write, check_splits
from speechbrain_emo.dataio.corpus_reader import new_record, read_table
from tests.corpora import kinds, write_recording

REPOSITORY = Path(__file__).resolve().parents[2]
ANNOTATIONS = REPOSITORY.parent / "shared" / "data" / "annotations"
needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason=f"{ANNOTATIONS} is not there")
LABELS = ("angry", "happy", "neutral", "sad")


@pytest.fixture
def corpus(tmp_path):
    """Three splits without a fault: two speakers each, every speaker with every emotion."""
    splits = {}
    for split, speakers in (("train", "abcd"), ("valid", "ef"), ("test", "gh")):
        splits[split] = {}
        for speaker in speakers:
            for number, emotion in enumerate(LABELS * 2):
                path = write_recording(tmp_path / "wav" / f"{speaker}{number}.wav")
                splits[split][path.stem] = new_record(
                    str(path), 0.4, emotion, speaker, "female" if speaker in "aceg" else "male"
                )
    return splits


def wav(splits, split, key):
    return Path(splits[split][key]["wav"])


def found(report, kind):
    """The finding of a kind that is there once."""
    (finding,) = [f for f in report.findings if f.kind == kind]
    return finding


def test_a_corpus_without_faults_has_no_finding(corpus):
    report = check_splits(corpus, LABELS, progress=False)
    assert report.ok and (report.num_records, report.num_files) == (64, 64), report.table()


def copied(splits, target, source):
    shutil.copy(wav(splits, *source), wav(splits, *target))


def rewritten(splits, split, key, **options):
    write_recording(wav(splits, split, key), **options)


def as_aiff(splits, split, key):
    path = wav(splits, split, key)
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples, rate, format="AIFF")


def relabelled(splits, split, key, **values):
    splits[split][key].update(values)


def confounded(splits):
    for record in splits["train"].values():
        record["emotion"] = LABELS["abcd".index(record["speaker"])]


# name -> (fault, kind, what the finding says, what it names)
FAULTS = {
    "same bytes in two splits": (
        lambda s: copied(s, ("test", "g0"), ("train", "a0")),
        "identical_in_splits",
        "1 groups",
        "a0.wav",
    ),
    "same bytes under two speakers": (
        lambda s: copied(s, ("train", "b0"), ("train", "a0")),
        "identical_under_speakers",
        "1 groups",
        r"a0.wav = .*b0.wav \(a, b\)",
    ),
    "same bytes with two labels": (
        lambda s: copied(s, ("train", "a1"), ("train", "a0")),
        "identical_under_emotions",
        "1 groups",
        r"\(angry, happy\)",
    ),
    "same bytes twice": (
        lambda s: copied(s, ("train", "a4"), ("train", "a0")),
        "identical",
        "1 groups",
        "a0.wav = .*a4.wav",
    ),
    "speaker in two splits": (
        lambda s: relabelled(s, "test", "g0", speaker="a"),
        "speaker_in_splits",
        "1 of 8 speakers",
        "a: 8 in train, 1 in test",
    ),
    "dialogue in two splits": (
        lambda s: (relabelled(s, "test", "g0", dialogue="d7"), relabelled(s, "train", "a0", dialogue="d7")),
        "dialogue_in_splits",
        "1 of 1 dialogues",
        "d7",
    ),
    "AIFF called .wav": (
        lambda s: as_aiff(s, "train", "a0"),
        "content_not_name",
        "AIFF called .wav",
        "a0.wav",
    ),
    "stereo": (lambda s: rewritten(s, "train", "a0", channels=2), "channels", "2 channels", "a0.wav"),
    "other sample rate": (
        lambda s: rewritten(s, "train", "a0", rate=44100),
        "sample_rate",
        "44100 Hz where most",
        "a0.wav",
    ),
    "24 bit": (lambda s: rewritten(s, "train", "a0", subtype="PCM_24"), "bit_depth", "PCM_24", "a0.wav"),
    "clipped": (
        lambda s: rewritten(s, "train", "a0", level=20.0),
        "clipped",
        "0.1 %",
        r"a0.wav \(\d+\.\d %\)",
    ),
    "silent": (lambda s: rewritten(s, "train", "a0", level=0.0), "silent", "-60 dB", "a0.wav"),
    "empty file": (lambda s: wav(s, "train", "a0").write_bytes(b""), "empty", "no samples", "a0.wav"),
    "header only": (
        lambda s: soundfile.write(wav(s, "train", "a0"), np.zeros(0), 16000),
        "empty",
        "no samples",
        "a0.wav",
    ),
    "text called .wav": (
        lambda s: wav(s, "train", "a0").write_text("no audio"),
        "unreadable",
        "cannot be used",
        "it holds text",
    ),
    "truncated": (
        lambda s: wav(s, "train", "a0").write_bytes(wav(s, "train", "a0").read_bytes()[:500]),
        "unreadable",
        "cannot be used",
        "truncated",
    ),
    "missing file": (lambda s: wav(s, "train", "a0").unlink(), "missing", "not there", "a0.wav"),
    "too short": (
        lambda s: rewritten(s, "train", "a0", seconds=0.01),
        "too_short",
        "below 0.025 s",
        r"\(0.010 s\)",
    ),
    "too long": (lambda s: rewritten(s, "train", "a0", seconds=3.0), "too_long", "above 2 s", r"\(3.0 s\)"),
    "a label that is misspelt": (
        lambda s: relabelled(s, "train", "a0", emotion="Angry"),
        "label_spelling",
        "'Angry' in 1 records is no label: probably 'angry'",
        "Angry",
    ),
    "a label that a split lacks": (
        lambda s: [s["test"].pop(k) for k in [k for k, r in s["test"].items() if r["emotion"] == "sad"]],
        "class_missing",
        "1 labels",
        "test: sad",
    ),
    "no validation part": (lambda s: s.pop("valid"), "no_validation", "train, test", None),
    "speaker and emotion together": (
        confounded,
        "confounded",
        r"speaker and emotion: Cramer's V 0\.\d\d over 64 records; 4 of 8 speakers have one emotion only",
        "a: angry 8",
    ),
    "the response among the turns": (
        lambda s: relabelled(
            s, "train", "a0", turns=[{"role": "user", "text": "yes"}], response={"text": "yes"}
        ),
        "answer_in_context",
        "one of the turns",
        r"a0 \(train\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(corpus, name):
    fault, kind, says, names = FAULTS[name]
    fault(corpus)
    report = check_splits(corpus, LABELS, max_duration=2.0, progress=False)
    # Two spellings are two findings of one kind: that it is no label, and that it looks like one.
    messages = [f for f in report.findings if f.kind == kind]
    assert any(re.search(says, f.message) for f in messages), report.table()
    assert names is None or any(re.search(names, item) for f in messages for item in f.items), report.table(
        50
    )
    assert kind in report.table() and KINDS[kind] in json.dumps(report.to_dict())


def test_every_kind_is_made_by_some_test():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


def test_spellings_are_compared_where_no_labels_are_given(corpus):
    relabelled(corpus, "train", "a0", emotion="Anger")
    report = check_splits(corpus, audio="off")
    message = "'Anger' (1) and 'angry' (15) look like one label"
    assert [f.message for f in report.findings if f.kind == "label_spelling"] == [message]


def test_one_fault_is_not_taken_for_another(corpus):
    rewritten(corpus, "train", "a0", channels=2)
    assert kinds(check_splits(corpus, LABELS, progress=False)) == {"channels"}
    rewritten(corpus, "train", "a0", level=0.0)
    assert kinds(check_splits(corpus, LABELS, progress=False)) == {"silent"}


def test_headers_alone_find_no_levels_and_off_opens_nothing(corpus):
    rewritten(corpus, "train", "a0", level=0.0)
    wav(corpus, "train", "a1").unlink()
    assert kinds(check_splits(corpus, LABELS, audio="headers", progress=False)) == {"missing"}
    assert check_splits(corpus, LABELS, audio="off").ok
    with pytest.raises(ValueError, match="audio is 'some'; allowed: off, headers, full"):
        check_splits(corpus, audio="some")


def test_clipping_over_the_edge_of_a_block(tmp_path, monkeypatch):
    """A run that two blocks share counts once, as if the file were read whole."""
    from speechbrain_emo.dataio import audio_facts as module

    samples = np.zeros(100, np.float32)
    samples[18:23] = 1.0
    samples[60:62] = -1.0  # a peak of two samples is no clipping
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    whole = audio_facts(tmp_path / "a.wav").clipped
    for block in (1, 2, 3, 10, 20, 21):
        monkeypatch.setattr(module, "BLOCK", block)
        share = audio_facts(tmp_path / "a.wav").clipped
        # With a run cut into pieces, what was too short to count when its block was read is not counted later.
        assert share <= whole == 0.05 and share > 0, block
    assert audio_facts(tmp_path / "a.wav").num_samples == 100


def test_the_cache_is_used_until_a_file_changes(corpus, tmp_path, monkeypatch):
    from speechbrain_emo.dataio import audio_facts as module

    paths = [r["wav"] for r in corpus["train"].values()]
    first = scan_audio(paths, cache_file=tmp_path / "c.jsonl", progress=False)
    with open(tmp_path / "c.jsonl", "a") as stream:
        stream.write('{"levels": tr')  # a kill in the middle of a line
    looked = []
    original = module.audio_facts
    monkeypatch.setattr(module, "audio_facts", lambda p, levels: looked.append(p) or original(p, levels))
    rewritten(corpus, "train", "a0", seconds=0.5)
    again = scan_audio(paths, cache_file=tmp_path / "c.jsonl", progress=False)
    assert looked == [paths[0]] and again[paths[0]].duration == 0.5
    assert {k: v for k, v in again.items() if k != paths[0]} == {
        k: v for k, v in first.items() if k != paths[0]
    }


def test_the_report_of_a_preparation(corpus, tmp_path, caplog):
    rewritten(corpus, "train", "a0", channels=2)
    with caplog.at_level(logging.WARNING):
        check_and_write(
            corpus, tmp_path / "out", "Small", logging.getLogger("check"), labels=LABELS, progress=False
        )
    written = json.loads((tmp_path / "out" / "data_check.json").read_text(encoding="utf-8"))
    assert [f["kind"] for f in written["findings"]] == ["channels"] and "Data check of Small" in caplog.text


# -- the command -------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    status = cli.main(["check", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def folder(tmp_path):
    """split/speaker/emotion/x.wav with an AIFF called .wav and a recording that is in both splits."""
    root = tmp_path / "folder"
    for split, speakers in (("train", ("anna", "ben")), ("test", ("carl",))):
        for speaker in speakers:
            for emotion in ("happy", "sad"):
                write_recording(root / split / speaker / emotion / "1.wav")
    shutil.copy(root / "train/anna/sad/1.wav", root / "test/carl/sad/2.wav")
    samples, rate = soundfile.read(root / "train/ben/sad/1.wav")
    soundfile.write(root / "train/ben/sad/1.wav", samples, rate, format="AIFF")
    (root / "train/ben/sad/2.wav").write_bytes(b"")
    return root


def test_check_of_a_folder(capsys, folder):
    status, out, _ = run(capsys, folder)
    assert status == 0
    for kind in (
        "identical_in_splits",
        "identical_under_speakers",
        "content_not_name",
        "empty",
        "no_validation",
    ):
        assert re.search(rf"^{kind}\s+1  ", out, re.MULTILINE), out
    status, out, _ = run(capsys, folder, "--json", "--strict")
    content = json.loads(out)
    assert status == 1 and content["num_of_split"] == {"train": 5, "test": 3}
    ignored = [a for f in content["findings"] for a in ("--ignore", f["kind"])]
    status, out, _ = run(capsys, folder, "--strict", *ignored)
    assert status == 0 and "nothing found" in out
    status, _, err = run(capsys, folder, "--ignore", "leaks")
    assert status == 2 and "kinds ['leaks'] do not exist; allowed: missing" in err


def test_check_of_tables_and_manifests(capsys, folder, tmp_path):
    table = folder / "list.csv"
    rows = ["file,label,speaker,split"]
    rows += [
        f"{p.relative_to(folder)},{p.parent.name.upper()},{p.parts[-3]},{p.parts[-4]}"
        for p in sorted(folder.rglob("*.wav"))
    ]
    table.write_text("\n".join(rows))
    status, out, _ = run(capsys, table, "--labels", "happy,sad")
    assert (
        status == 0
        and "'HAPPY' in 3 records is no label: probably 'happy'" in out
        and "identical_in_splits" in out
    )
    # As two manifests: each is a split.
    for split in ("train", "test"):
        records, _ = read_table(table, check_files=False)
        chosen = {k: r for k, r in records.items() if r["subset"] == split}
        (tmp_path / f"{split}.json").write_text(json.dumps(chosen))
    status, out, _ = run(
        capsys, tmp_path / "train.json", tmp_path / "test.json", "--data_root", folder, "--json"
    )
    assert {"identical_in_splits", "empty", "no_validation"} <= {
        f["kind"] for f in json.loads(out)["findings"]
    }


def test_check_of_files_without_labels_and_of_nothing(capsys, tmp_path):
    write_recording(tmp_path / "a.wav", channels=2)
    (tmp_path / "b.wav").write_text("text")
    status, out, err = run(capsys, tmp_path)
    assert status == 0 and "channels" in out and "unreadable" in out and "the files alone are checked" in err
    status, _, err = run(capsys, tmp_path / "none")
    assert status == 2 and "does not exist; give a table, a folder or a manifest" in err
    status, _, err = run(capsys, tmp_path, "--lables", "a")
    assert status == 2 and "--lables a: not known" in err


# -- faults of ../shared/data/README.md in tables that this test makes, and in the real ones ----------------


def emobox(path, rows):
    path.write_text("".join(json.dumps({"key": k, "wav": f"{k}.wav", "emo": e}) + "\n" for k, e in rows))
    return path


def test_emobox_lists(capsys, tmp_path):
    """EmoBox: a label spelt boredem, a map with Neutral for rows with neutral, folds without a validation part."""
    train = emobox(tmp_path / "train_fold_1.jsonl", [("a", "boredem"), ("b", "neutral"), ("c", "anger")])
    test = emobox(tmp_path / "test_fold_1.jsonl", [("d", "boredem"), ("e", "neutral"), ("f", "anger")])
    label_map = tmp_path / "label_map.json"
    label_map.write_text('{"anger": "Angry", "boredem": "Boredom", "Neutral": "Neutral"}')
    status, out, _ = run(
        capsys, train, test, "--audio", "off", "--labels", "anger,boredom,neutral", "--strict"
    )
    assert (
        status == 1
        and "'boredem' in 2 records is no label: probably 'boredom'" in out
        and "no_validation" in out
    )
    _, out, _ = run(capsys, train, test, "--audio", "off", "--label_map", label_map)
    assert "1 of label 'neutral' left out: not in the label map (did it mean 'Neutral'?)" in out
    assert "the label map's 'Neutral' occurs in no record; 'neutral' occurs" in out


def jelly(path, rows):
    path.write_text(json.dumps({"annotation": rows}))
    return path


def test_dialogue_annotations(capsys, tmp_path):
    """JELLY's stages: the last emotion is the answer, dialogues in two files, the intensity sometimes missing."""

    def row(dialogue, emotions, answer):
        return {
            "path": f"data/{dialogue}/1_1_d{dialogue}.wav",
            "transcript": "Hello.|Hi.",
            "emotion": emotions,
            "speaker": "0|1",
            "text": answer,
            "task": "emotion_prediction_in_conversation",
        }

    valid = jelly(
        tmp_path / "valid.json",
        [row(7, "neutral|weak happy", "weak happy"), row(8, "neutral|happy", "happy")],
    )
    test = jelly(
        tmp_path / "test.json", [row(7, "neutral|weak sad", "weak sad"), row(9, "neutral|neutral", "neutral")]
    )
    _, out, _ = run(capsys, valid, test, "--audio", "off", "--json")
    findings = {f["kind"]: f for f in json.loads(out)["findings"]}
    assert findings["answer_in_context"]["count"] == 4
    assert findings["dialogue_in_splits"]["items"] == ["7: 1 in valid, 1 in test"]
    assert findings["label_incomplete"]["message"] == "1 of 3 emotional records have no intensity"


@needs_annotations
def test_the_real_annotations(capsys):
    stages = ANNOTATIONS / "dailytalk_emotion"
    _, out, _ = run(
        capsys, stages / "stage02_1_valid.json", stages / "stage02_1_test.json", "--audio", "off", "--json"
    )
    findings = {f["kind"]: f for f in json.loads(out)["findings"]}
    # As ../shared/data/README.md counts them.
    assert findings["dialogue_in_splits"]["count"] == 112
    assert findings["answer_in_context"]["count"] > 1000
    lists = ANNOTATIONS / "emobox" / "emodb"
    _, out, _ = run(capsys, lists / "emodb.jsonl", "--audio", "off", "--label_map", lists / "label_map.json")
    assert "'neutral' left out: not in the label map (did it mean 'Neutral'?)" in out
    fold = ANNOTATIONS / "emobox" / "iemocap" / "fold_1"
    _, out, _ = run(
        capsys, fold / "iemocap_train_fold_1.jsonl", fold / "iemocap_test_fold_1.jsonl", "--audio", "off"
    )
    assert "no_validation" in out
