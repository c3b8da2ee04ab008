import itertools
import logging

import pytest

from speechbrain_emo.dataio.manifest import ManifestError, validate_splits
from speechbrain_emo.dataio.splits import (
    RANDOM_SPLIT_WARNING,
    choose_valid_speakers,
    leave_one_session_out,
    leave_one_speaker_and_sentence_out,
    leave_one_speaker_out,
    random_split,
    sentence_groups,
    speaker_and_sentence_folds,
)

SPEAKERS = {"01": "female", "02": "male", "03": "female", "04": "male", "05": "female", "06": "male"}
SENTENCES = ["a", "b", "c", "d", "e"]


def corpus():
    return {
        f"{s}{t}{v}": {"speaker": s, "gender": g, "sentence": t, "session": str((int(s) + 1) // 2)}
        for (s, g), t, v in itertools.product(SPEAKERS.items(), SENTENCES, "xy")
    }


def speakers(records, ids):
    return {records[i]["speaker"] for i in ids}


@pytest.mark.parametrize("fold", list(SPEAKERS))
@pytest.mark.parametrize("seed", range(5))
def test_leave_one_speaker_out(fold, seed):
    records = corpus()
    split = leave_one_speaker_out(records, fold, num_valid_speakers=2, seed=seed)
    parts = [speakers(records, ids) for ids in (split.train, split.valid, split.test)]
    assert parts[2] == {fold}
    assert len(parts[1]) == 2 and len(parts[0]) == 3
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    assert sorted(split.train + split.valid + split.test) == sorted(records)
    assert {SPEAKERS[s] for s in parts[1]} == {"female", "male"}


@pytest.mark.parametrize("fold", list(SPEAKERS))
def test_a_share_of_every_speaker_validates_and_the_test_speaker_stays_unseen(fold):
    records = corpus()
    split = leave_one_speaker_out(records, fold, num_valid_speakers=0, seed=3, valid_share=0.2)
    assert speakers(records, split.test) == {fold}
    assert speakers(records, split.train) == speakers(records, split.valid) == set(SPEAKERS) - {fold}
    assert all(sum(records[i]["speaker"] == s for i in split.valid) == 2 for s in set(SPEAKERS) - {fold})
    assert sorted(split.train + split.valid + split.test) == sorted(records)
    assert validate_splits(split.select(_with_audio(records)), split.speaker_independent)
    with pytest.raises(ManifestError, match="is in train and valid"):
        validate_splits(split.select(_with_audio(records)))
    # Promised for the test part, and held there.
    moved = split.select(_with_audio(records))
    moved["valid"][split.test[0]] = moved["test"].pop(split.test[0])
    with pytest.raises(ManifestError, match=f"speaker {fold} is in valid and test"):
        validate_splits(moved, split.speaker_independent)
    assert split == leave_one_speaker_out(dict(reversed(records.items())), fold, 0, 3, 0.2)


def test_a_share_with_sentences_held_out():
    records = corpus()
    split = leave_one_speaker_and_sentence_out(records, "02-1", 0, num_groups=2, valid_share=0.3)
    assert split.speaker_independent == "test" and split.valid
    held_out = {records[i]["sentence"] for i in split.test}
    assert not held_out & {records[i]["sentence"] for i in split.train + split.valid}
    assert "02" not in speakers(records, split.train + split.valid)


def _with_audio(records):
    return {i: {**r, "wav": f"{i}.wav"} for i, r in records.items()}


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    records = corpus()
    backwards = dict(reversed(records.items()))
    splits = [leave_one_speaker_out(records, "01", 2, seed) for seed in range(20)]
    assert splits == [leave_one_speaker_out(backwards, "01", 2, seed) for seed in range(20)]
    assert len({s.valid for s in splits}) > 2


def test_validation_speakers_differ_between_folds():
    records = corpus()
    assert len({leave_one_speaker_out(records, f, 2, 0).valid for f in SPEAKERS}) > 2
    drawn = [choose_valid_speakers(records, 1, seed)[0] for seed in range(300)]
    # Each of six speakers is drawn 50 times on average, with a deviation of 6.5.
    assert all(25 < drawn.count(s) < 75 for s in SPEAKERS)


def test_leave_one_session_out():
    records = corpus()
    split = leave_one_session_out(records, "2", num_valid_speakers=2, seed=3)
    assert speakers(records, split.test) == {"03", "04"}
    assert not speakers(records, split.valid) & {"03", "04"}
    assert not speakers(records, split.valid) & speakers(records, split.train)


def test_a_session_that_shares_a_speaker_is_refused():
    records = corpus()
    records["extra"] = {"speaker": "03", "gender": "female", "session": "1"}
    with pytest.raises(ValueError, match="session 1 does not hold out its speakers: 03"):
        leave_one_session_out(records, "1")


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_speaker_and_sentence_folds_test_everything_once_and_leak_nothing(groups):
    records = corpus()
    tested = []
    for fold in speaker_and_sentence_folds(records, groups):
        split = leave_one_speaker_and_sentence_out(records, fold, 1, seed=0, num_groups=groups)
        held_out = {records[i]["sentence"] for i in split.test}
        for ids in (split.train, split.valid):
            assert ids
            assert not held_out & {records[i]["sentence"] for i in ids}
            assert fold[:2] not in speakers(records, ids)
        assert not speakers(records, split.train) & speakers(records, split.valid)
        tested += split.test
    assert sorted(tested) == sorted(records)


def test_sentence_groups_cover_all_and_do_not_change():
    groups = sentence_groups(["a01", "a02", "a04", "a05", "a07", "b01", "b02", "b03", "b09", "b10"])
    assert sorted(s for g in groups for s in g) == sorted({s for g in groups for s in g})
    # Expected value: written down when the scheme was fixed; results of different versions hang on it.
    assert groups == sentence_groups(["b10", "b09", "b03", "b02", "b01", "a07", "a05", "a04", "a02", "a01"])
    assert [len(g) for g in groups] == [5, 5]


def test_random_split_warns(caplog):
    with caplog.at_level(logging.WARNING):
        split = random_split(corpus(), 0.1, 0.2, seed=1)
    assert RANDOM_SPLIT_WARNING in caplog.text
    assert split.warnings == (RANDOM_SPLIT_WARNING,) and not split.speaker_independent
    assert len(split.test) == 12 and len(split.valid) == 6 and len(split.train) == 42
    assert not set(split.train) & set(split.test)


def test_bad_arguments():
    records = corpus()
    with pytest.raises(ValueError, match="fold '07' is not a speaker of the records: 01, 02"):
        leave_one_speaker_out(records, "07")
    with pytest.raises(ValueError, match="num_valid_speakers 5 leaves nobody to train on: there are 5"):
        leave_one_speaker_out(records, "01", num_valid_speakers=5)
    with pytest.raises(ValueError, match=r"valid_share 0.1 .*num_valid_speakers is 1"):
        leave_one_speaker_out(records, "01", num_valid_speakers=1, valid_share=0.1)
    with pytest.raises(ValueError, match="valid_share 1.0"):
        leave_one_speaker_out(records, "01", num_valid_speakers=0, valid_share=1.0)
    with pytest.raises(ValueError, match="num_groups 1"):
        sentence_groups(["a", "b"], 1)
    with pytest.raises(ValueError, match="fold '01-7' is not one of"):
        leave_one_speaker_and_sentence_out(records, "01-7")
    with pytest.raises(ValueError, match="together below 1"):
        random_split(records, 0.5, 0.5)


def test_validation_speakers_without_gender_or_of_one_gender():
    unknown = {s: {"speaker": s, "gender": None} for s in "abcd"}
    assert len(choose_valid_speakers(unknown, 2)) == 2
    women = {s: {"speaker": s, "gender": "female"} for s in "abcd"} | {
        "m": {"speaker": "m", "gender": "male"}
    }
    chosen = choose_valid_speakers(women, 4)
    assert "m" in chosen and len(chosen) == 4
    assert choose_valid_speakers(women, 0) == []
