"""RAVDESS, TESS, SAVEE, EmoV-DB, MEAD, CREMA-D, MSP-Podcast, SpeechCraft: small trees in their true layout, made
here."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from recipes import prepare_recipes, recipe_names
from recipes.CREMAD import cremad_prepare as cremad
from recipes.EmoVDB import emovdb_prepare as emovdb
from recipes.MEAD import mead_prepare as mead
from recipes.MSPPodcast import msppodcast_prepare as msppodcast
from recipes.RAVDESS import ravdess_prepare as ravdess
from recipes.SAVEE import savee_prepare as savee
from recipes.SpeechCraft import speechcraft_prepare as speechcraft
from recipes.TESS import tess_prepare as tess
from speechbrain_emo.dataio.manifest import ManifestError
from tests.corpora import savee_tree, write_recording

ANNOTATIONS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "annotations"
QUICK = {"measure": False, "progress": False}


def parts_of(done):
    return {part: json.loads(Path(path).read_text(encoding="utf-8")) for part, path in done.manifests.items()}


def all_of(done):
    return {key: record for records in parts_of(done).values() for key, record in records.items()}


def text_of(done):
    return "\n".join(map(str, done.findings))


# -- trees -------------------------------------------------------------------------------------------------


def ravdess_tree(root):
    for actor in range(1, 9):
        for emotion in range(1, 9):
            for statement in (1, 2):
                name = f"03-01-{emotion:02d}-01-{statement:02d}-01-{actor:02d}"
                # 48 kHz as published, one file with two channels.
                channels = 2 if (actor, emotion, statement) == (1, 2, 1) else 1
                write_recording(root / f"Actor_{actor:02d}" / f"{name}.wav", rate=48000, channels=channels)
    # The copy on Kaggle holds everything twice; song and a broken file are in other copies.
    twin = root / "audio_speech_actors_01-24" / "Actor_01" / "03-01-01-01-01-01-01.wav"
    twin.parent.mkdir(parents=True)
    shutil.copy(root / "Actor_01" / twin.name, twin)
    write_recording(root / "Actor_01" / "03-02-01-01-01-01-01.wav")
    (root / "Actor_02" / "03-01-01-01-01-02-02.wav").write_bytes(b"RIFF")
    write_recording(root / "Actor_02" / "03-01-09-01-01-02-02.wav")
    return root


def tess_tree(root):
    for speaker in ("OAF", "YAF"):
        for emotion in ("angry", "disgust", "Fear", "happy", "neutral", "Pleasant_surprise", "Sad"):
            for word in ("back", "bite", "dog", "home", "juice"):
                short = {"Pleasant_surprise": "ps"}.get(emotion, emotion.lower())
                write_recording(root / f"{speaker}_{emotion}" / f"{speaker}_{word}_{short}.wav", rate=24414)
    (root / "OAF_neutral" / "OAF_bite_neutral.wav").rename(root / "OAF_neutral" / "OA_bite_neutral.wav")
    return root


def emovdb_tree(root):
    for speaker in emovdb.GENDERS:
        for emotion, stem in (
            ("Amused", "amused"),
            ("Angry", "anger"),
            ("Neutral", "neutral"),
            ("Sleepy", "sleepiness"),
        ):
            if (speaker, emotion) == ("josh", "Angry"):
                continue  # josh has no anger
            for number in range(1, 13):
                write_recording(root / f"{speaker}_{emotion}" / f"{stem}_1-15_{number:04d}.wav")
    lines = [f'( arctic_a{n:04d} "Sentence {n}, so it is." )' for n in range(1, 13)]
    (root / "cmuarctic.data").write_text("\n".join([*lines, '( arctic_b0001 "Of the other list." )']))
    return root


def mead_tree(root):
    for speaker in ("M003", "M005", "W009", "W011", "W014", "M007"):
        for emotion in mead.EMOTIONS:
            for level in (1, 2, 3)[: 1 if emotion == "neutral" else 3]:
                write_recording(root / speaker / "audio" / emotion / f"level_{level}" / "001.wav", 0.3)
    (root / "M003" / "audio" / "angry" / "level_1" / "002.m4a").write_bytes(b"m4a")
    return root


def cremad_tree(root):
    people, votes = ["ActorID,Age,Sex,Race,Ethnicity"], ['"","FileName","VoiceVote","VoiceLevel"']
    answers = ["localid,queryType,clipName,respEmo,respLevel"]
    for actor in range(1001, 1007):
        people.append(f'{actor},{20 + actor % 50},"{"Male" if actor % 2 else "Female"}","x","y"')
        for code, label in cremad._OF_CODE.items():
            name = f"{actor}_IEO_{code}_{'XX' if code == 'NEU' else 'HI'}"
            write_recording(root / "AudioWAV" / f"{name}.wav")
            letter = label[0].upper()
            tie = (actor, code) == (1001, "FEA")
            votes.append(f'"1","{name}","{letter}{":N" if tie else ""}","50"')
            for i in range(4):
                heard = "N" if tie and i < 2 else letter
                answers.append(f"{i},1,{name},{heard},50")
            answers.append(f"9,2,{name},D,50")  # of the face: not counted
    write_recording(root / "AudioWAV" / "1006_MTI_SAD_XX.wav", level=0.0)
    (root / "VideoDemographics.csv").write_text("\n".join(people))
    (root / "processedResults").mkdir()
    (root / "processedResults" / "summaryTable.csv").write_text("\n".join(votes))
    (root / "finishedResponses.csv").write_text("\n".join(answers))
    return root


def msppodcast_tree(root):
    rows = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    detailed = {}
    for number in range(60):
        part = ("Train", "Train", "Train", "Development", "Test1", "Test2")[number % 6]
        code = "ANHSUFDCOX"[number // 6]
        name = f"MSP-PODCAST_0001_{number:04d}"
        speaker = "Unknown" if number == 0 else f"{part}{number % 2}"
        rows.append(f"{name}.wav,{code},4.0,3.5,5.0,{speaker},{'Male' if number % 2 else 'Female'},{part}")
        if number != 8:
            write_recording(root / "Audios" / f"{name}.wav")
        detailed[f"{name}.wav"] = {
            f"w{i}": {"EmoClass_Major": label}
            for i, label in enumerate(("Angry", "Neutral", "Neutral", "Other"))
        }
        if number % 3 == 0:
            (root / "Transcripts").mkdir(parents=True, exist_ok=True)
            (root / "Transcripts" / f"{name}.txt").write_text("and so on\n")
    (root / "Labels").mkdir()
    (root / "Labels" / "labels_consensus.csv").write_text("\n".join(rows))
    (root / "Labels" / "labels_detailed.json").write_text(json.dumps(detailed))
    return root


def speechcraft_tree(root):
    root.mkdir(parents=True)
    labels, captions = {}, []
    for recording in range(40):
        for segment in range(2):
            name = f"POD{recording:010d}_S{segment:07d}"
            labels[name] = {
                "gender": "Female",
                "age": ("Youth adult", "Middle-aged", "Elderly")[recording % 3],
                "pitch": "high",
                "speed": "fast",
                "volume": "normal",
                "emotion": ("Happy", "Fearful", "Neutral")[recording % 3],
                "emphasis": "never, again" if segment else "",
                "transcript": "NEVER <COMMA> NEVER AGAIN <PERIOD>",
            }
            captions.append({"id": f"{name}.wav", "description": "A  young woman speaks fast."})
            if (recording, segment) != (3, 0):
                seconds = 31.0 if (recording, segment) == (4, 0) else 0.6
                write_recording(root / "GigaSpeech-M" / f"{recording % 2}" / f"{name}.wav", seconds)
    labels["POD0000000005_S0000000"]["pitch"] = "shrill"
    labels["84_121123_000007_000001"] = {"gender": "Male"}  # LibriTTS-R's part
    (root / "labels.json").write_text(json.dumps(labels))
    (root / "descriptions.jsonl").write_text("".join(json.dumps(c) + "\n" for c in captions))
    return root


# -- tests -------------------------------------------------------------------------------------------------


def test_ravdess(tmp_path):
    tree = ravdess_tree(tmp_path / "RAVDESS")
    done = ravdess.prepare_ravdess(
        tree, tmp_path / "out", fold="2", num_folds=4, num_valid_speakers=2, **QUICK
    )
    parts = parts_of(done)
    assert {p: len({r["speaker"] for r in records.values()}) for p, records in parts.items()} == {
        "train": 4,
        "valid": 2,
        "test": 2,
    }
    assert {r["gender"] for r in parts["test"].values()} == {"female", "male"}
    record = all_of(done)["03-01-06-01-02-01-07"]
    assert (record["emotion"], record["speaker"], record["gender"]) == ("fearful", "07", "male")
    assert record["transcript"] == "Dogs are sitting by the door"
    assert len(all_of(done)) == 8 * 16
    for says in (
        "03-01-01-01-01-01-01 is Actor_01/03-01-01-01-01-01-01.wav already",
        "Actor_01/03-02-01-01-01-01-01.wav: left out: vocal channel 02 is song",
        "Actor_02/03-01-01-01-01-02-02.wav: left out: .*truncated header",
        "emotion 09 is none of 01 to 08",
        "128 recordings; the complete corpus has 1440",
    ):
        assert re.search(says, text_of(done)), says
    check = json.loads((tmp_path / "out" / "data_check.json").read_text())
    assert {f["kind"]: f["count"] for f in check["findings"]} == {"sample_rate": 1, "channels": 1}


def test_tess_has_two_speakers_and_says_what_that_means(tmp_path):
    tree = tess_tree(tmp_path / "TESS")
    done = tess.prepare_tess(tree, tmp_path / "out", fold=1, **QUICK)
    parts = parts_of(done)
    assert len({r["speaker"] for r in parts["test"].values()}) == 1 and len(parts["test"]) == 35
    assert not {r["speaker"] for r in parts["test"].values()} & {
        r["speaker"] for r in {**parts["train"], **parts["valid"]}.values()
    }
    assert not {r["sentence"] for r in parts["train"].values()} & {
        r["sentence"] for r in parts["valid"].values()
    }
    assert "too few to take 1 for validation" in text_of(done)
    record = all_of(done)["OAF_bite_neutral"]
    assert record["transcript"] == "Say the word bite." and record["wav"].endswith("OA_bite_neutral.wav")
    assert all_of(done)["YAF_dog_surprise"]["age"] == 26


def test_savee(tmp_path):
    tree = savee_tree(tmp_path / "SAVEE")
    done = savee.prepare_savee(tree, tmp_path / "out", **QUICK)
    assert len(all_of(done)) == 4 * 14 and all_of(done)["KL_su02"]["emotion"] == "surprise"
    assert all_of(done)["DC_sa01"]["emotion"] == "sadness" and "AudioData/DC/test.wav: left out" in text_of(
        done
    )
    # The copy with all files in one folder is the same corpus.
    flat = tmp_path / "ALL"
    flat.mkdir()
    for path in (tree / "AudioData").glob("*/*.wav"):
        shutil.copy(path, flat / f"{path.parent.name}_{path.name}")
    again = savee.prepare_savee(flat, tmp_path / "again", **QUICK)
    assert {k: r["emotion"] for k, r in all_of(again).items()} == {
        k: r["emotion"] for k, r in all_of(done).items()
    }


def test_emovdb(tmp_path):
    tree = emovdb_tree(tmp_path / "EmoV-DB")
    done = emovdb.prepare_emovdb(tree, tmp_path / "out", **QUICK)
    assert len(all_of(done)) == (4 * 4 - 1) * 12
    record = all_of(done)["sam_sleepiness_0007"]
    assert (record["transcript"], record["gender"]) == ("Sentence 7, so it is.", "male")
    (tree / "cmuarctic.data").unlink()
    again = emovdb.prepare_emovdb(tree, tmp_path / "again", **QUICK)
    assert (
        "cmuarctic.data: not there" in text_of(again)
        and all_of(again)["sam_sleepiness_0007"]["transcript"] is None
    )


def test_mead(tmp_path):
    tree = mead_tree(tmp_path / "MEAD")
    done = mead.prepare_mead(tree, tmp_path / "out", num_folds=3, num_valid_speakers=1, **QUICK)
    assert len(all_of(done)) == 6 * (7 * 3 + 1)
    record = all_of(done)["W009_sad_3_001"]
    assert (record["intensity"], record["gender"]) == ("strong", "female")
    assert "intensity" not in all_of(done)["W009_neutral_1_001"]
    for path in tree.rglob("*.wav"):
        path.rename(path.with_suffix(".m4a"))
    with pytest.raises(ManifestError, match="found: no audio.*convert the .m4a files"):
        mead.prepare_mead(tree, tmp_path / "none", **QUICK)


def test_cremad_and_its_votes(tmp_path):
    tree = cremad_tree(tmp_path / "CREMA-D")
    options = {"num_folds": 3, "num_valid_speakers": 1, **QUICK}
    done = cremad.prepare_cremad(tree, tmp_path / "out", **options)
    assert len(all_of(done)) == 37
    record = all_of(done)["1001_IEO_FEA_HI"]
    assert record["soft_labels"] == {"fear": 0.5, "neutral": 0.5} and record["emotion"] == "fear"
    assert (record["gender"], record["transcript"], record["intensity"]) == (
        "male",
        "It's eleven o'clock.",
        "strong",
    )
    assert "1 recordings have no votes, the first 1006_MTI_SAD_XX" in text_of(done)
    # Known fault: a recording without sound.
    check = json.loads((tmp_path / "out" / "data_check.json").read_text())
    silent = [f for f in check["findings"] if f["kind"] == "silent"]
    assert len(silent) == 1 and "1006_MTI_SAD_XX.wav" in silent[0]["items"][0]
    # What the crowd heard: ties and recordings without votes are left out.
    heard = cremad.prepare_cremad(tree, tmp_path / "heard", labels_from="heard", **options)
    assert set(all_of(done)) - set(all_of(heard)) == {"1001_IEO_FEA_HI", "1006_MTI_SAD_XX"}
    # Without each answer, the summary's winners.
    (tree / "finishedResponses.csv").unlink()
    again = cremad.prepare_cremad(tree, tmp_path / "again", **options)
    assert all_of(again)["1001_IEO_FEA_HI"]["soft_labels"] == {"fear": 0.5, "neutral": 0.5}
    assert "soft labels hold the emotions with most votes only" in text_of(again)
    with pytest.raises(ValueError, match="labels_from is 'both'; allowed: acted, heard"):
        cremad.prepare_cremad(tree, tmp_path / "x", labels_from="both")


@pytest.mark.skipif(not (ANNOTATIONS / "cremad").is_dir(), reason=f"{ANNOTATIONS}/cremad is not there")
def test_cremad_on_the_real_tables():
    votes, findings = cremad.read_votes(ANNOTATIONS / "cremad")
    people, _ = cremad.read_demographics(ANNOTATIONS / "cremad")
    assert len(people) == 91 and Counter(p["gender"] for p in people.values()) == {"Male": 48, "Female": 43}
    assert len(votes) == 7442 and all(sum(v.values()) == pytest.approx(1, abs=1e-5) for v in votes.values())
    # Independent of the reader: ties are the rows with a colon.
    with open(ANNOTATIONS / "cremad" / "summaryTable.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(len(v) > 1 for v in votes.values()) == sum(":" in r["VoiceVote"] for r in rows)
    assert sum(cremad.heard(v) is None for v in votes.values()) == sum(":" in r["VoiceVote"] for r in rows)
    assert all(re.fullmatch(cremad.PATTERN, r["FileName"]) for r in rows)
    assert {r["FileName"].split("_")[1] for r in rows} == set(cremad.SENTENCES)


def test_msppodcast(tmp_path):
    tree = msppodcast_tree(tmp_path / "MSP")
    done = msppodcast.prepare_msppodcast(tree, tmp_path / "out", progress=False)
    parts = parts_of(done)
    assert {p: len(r) for p, r in parts.items()} == {"train": 23, "valid": 8, "test": 8}
    record = parts["train"]["MSP-PODCAST_0001_0006"]
    assert (record["emotion"], record["transcript"]) == ("neutral", "and so on")
    assert record["soft_labels"] == pytest.approx({"angry": 1 / 3, "neutral": 2 / 3}, abs=1e-5)
    assert record["ratings"] == {"arousal": 4.0, "valence": 3.5, "dominance": 5.0}
    assert parts["train"]["MSP-PODCAST_0001_0000"]["speaker_unknown"] is True
    for says in (
        "6 recordings left out: emotion X .no label.",
        "MSP-PODCAST_0001_0008: left out: .*no such file",
    ):
        assert re.search(says, text_of(done)), says
    four = msppodcast.prepare_msppodcast(
        tree, tmp_path / "four", "Test2", ("angry", "happy", "neutral", "sad"), progress=False
    )
    assert {r["emotion"] for r in all_of(four).values()} == {"angry", "happy", "neutral", "sad"}
    with pytest.raises(ValueError, match="'Test3' unknown"):
        msppodcast.prepare_msppodcast(tree, tmp_path / "x", "Test3")


def test_speechcraft(tmp_path):
    tree = speechcraft_tree(tmp_path / "SpeechCraft")
    shares = {"valid_share": 0.2, "test_share": 0.2, "progress": False}
    done = speechcraft.prepare_speechcraft(tree, tmp_path / "out", **shares)
    parts = parts_of(done)
    assert sum(map(len, parts.values())) == 78
    recordings = {p: {r["speaker"] for r in records.values()} for p, records in parts.items()}
    assert not recordings["train"] & recordings["test"] and not recordings["train"] & recordings["valid"]
    record = all_of(done)["POD0000000002_S0000001"]
    assert record["transcript"] == "Never, never again." and record["emotion"] == "neutral"
    assert record["descriptors"] == {
        "gender": "female",
        "age": "senior",
        "pitch": "high",
        "volume": "normal",
        "speed": "fast",
        "emphasis": ["never", "again"],
        "description": "A young woman speaks fast.",
    }
    assert "pitch" not in all_of(done)["POD0000000005_S0000000"]["descriptors"]
    for says in (
        "1 clips left out: no audio",
        "1 clips left out: outside 0.5 to 30 s",
        "1 clips left out: not a clip of GigaSpeech",
        "pitch 'shrill' of 1 clips is unknown",
    ):
        assert says in text_of(done), says
    # A part of the corpus is split as the whole.
    for path in (tree / "GigaSpeech-M" / "0").iterdir():
        path.unlink()
    half = speechcraft.prepare_speechcraft(tree, tmp_path / "half", **shares)
    assert all(set(parts_of(half)[part]) <= set(parts[part]) for part in parts)


@pytest.mark.parametrize(
    "name",
    ["CREMAD", "EmoVDB", "MEAD", "MSPPodcast", "RAVDESS", "SAVEE", "SpeechCraft", "TESS", "ESD", "Generic"],
)
def test_another_folder_is_refused_with_the_way_to_get_the_corpus(name, tmp_path):
    assert name in recipe_names()
    (tmp_path / "other").mkdir()
    write_recording(tmp_path / "other" / "x.wav")
    for folder in ("other", "none"):
        with pytest.raises(ManifestError, match="is not|holds none of|does not exist|no folder") as refused:
            prepare_recipes({name: {}}, tmp_path / folder, tmp_path / "out")
        assert name == "Generic" or re.search(r"see recipes/|https?://", str(refused.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not (ANNOTATIONS / "dailytalk_emotion").is_dir(), reason=f"{ANNOTATIONS}/dailytalk_emotion is not there"
)
def test_patterns_fit_the_real_paths():
    """JELLY's lists name files of MEAD, TESS, EmoV-DB and CREMA-D as their archives do."""
    seen = Counter()
    for path in (ANNOTATIONS / "dailytalk_emotion").glob("stage01_*.json"):
        for row in json.loads(path.read_text(encoding="utf-8"))["annotation"]:
            place = row["path"].rpartition(".")[0]
            for corpus, recipe in (("MEAD", mead), ("TESS", tess), ("CREMA", cremad), ("EmoV", emovdb)):
                if f"/{corpus}" in place:
                    seen[corpus, bool(re.fullmatch(rf"(?:.*/)?{recipe.PATTERN}", place, re.IGNORECASE))] += 1
    assert seen["MEAD", True] > 100, seen
    assert not [key for key in seen if not key[1]], seen


def test_several_corpora_under_common_labels(tmp_path):
    ravdess_tree(tmp_path / "data" / "RAVDESS")
    cremad_tree(tmp_path / "data" / "CREMAD")
    label_map = Path(__file__).resolve().parents[2] / "hparams" / "label_maps" / "four_emotions.yaml"
    recipes = {
        "RAVDESS": {"num_folds": 4, "num_valid_speakers": 2, **QUICK},
        "CREMAD": {"num_folds": 3, "num_valid_speakers": 1, **QUICK},
    }
    labels = ["angry", "happy", "neutral", "sad"]
    done = prepare_recipes(
        recipes, tmp_path / "data", tmp_path / "out", "1", 7, None, labels, label_map, ["CREMAD"]
    )
    parts = parts_of(done)
    assert {r["emotion"] for r in all_of(done).values()} == set(labels)
    assert {r["corpus"] for r in parts["train"].values()} == {"RAVDESS", "CREMAD"}
    assert {r["corpus"] for r in parts["test"].values()} == {"CREMAD"}
    calm = [r for r in parts["train"].values() if r.get("original_emotion") == "calm"]
    assert calm and {r["emotion"] for r in calm} == {"neutral"}
    votes = [r["soft_labels"] for r in all_of(done).values() if r.get("soft_labels")]
    assert all(set(v) <= set(labels) and sum(v.values()) == pytest.approx(1) for v in votes)
    assert "of label 'fear' left out: the label map says so" in text_of(done)
    assert (tmp_path / "out" / "data_check.json").is_file()
