"""The embedded corpus: what it promises about its causes, its splits and its files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra demo)")

from recipes.Demo import demo_prepare as demo

SIZES = {"num_train": 72, "num_valid": 8, "num_test": 16}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    report = demo.prepare_demo(folder, folder / "manifests", num_processes=2, **SIZES)
    manifests = {
        split: json.loads((folder / "manifests" / f"{split}.json").read_text()) for split in demo.SPLITS
    }
    return folder, manifests, report


def digests(folder):
    files = sorted(Path(folder).rglob("*.wav")) + sorted(Path(folder).rglob("*.json"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def grams(records):
    found = set()
    for record in records:
        words = record["transcript"].split()
        found |= {tuple(words[i : i + 4]) for i in range(len(words) - 3)}
    return found


def test_records_have_what_the_manifest_promises(corpus):
    folder, manifests, _ = corpus
    for split, size in zip(demo.SPLITS, SIZES.values(), strict=True):
        assert len(manifests[split]) == size
        for record in manifests[split].values():
            path = Path(record["wav"].replace("{data_root}", str(folder)))
            samples, rate = soundfile.read(path)
            assert rate == 16000 and len(samples) / rate == pytest.approx(record["duration"], abs=1e-6)
            assert 4 <= len(record["transcript"].split()) <= 9
            assert [word["word"] for word in record["words"]] == record["transcript"].split()
            assert all(0 <= p["start"] < p["end"] <= record["duration"] + 1e-4 for p in record["phones"])


def test_test_voices_and_sentences_are_unseen(corpus):
    _, manifests, _ = corpus
    test, train, valid = (list(manifests[split].values()) for split in ("test", "train", "valid"))
    assert not grams(test) & grams(train) and not grams(test) & grams(valid)
    voices = [{record["params"]["voice"] for record in records} for records in (test, train, valid)]
    assert not voices[0] & voices[1] and not voices[0] & voices[2] and not voices[1] & voices[2]
    assert {record["gender"] for record in test} == {"female", "male"}
    for first, second in (("test", "train"), ("test", "valid")):
        shared = {k: dict(v) for k, v in manifests.items()}
        key = next(iter(shared[first]))
        sentence = next(iter(shared[second].values()))
        shared[first][key] = {**sentence}
        with pytest.raises(ValueError, match="4-grams"):
            demo.validate_demo(shared)


def test_volume_and_emphasis_are_in_the_samples(corpus):
    folder, manifests, _ = corpus
    boosts = []
    for record in manifests["train"].values():
        samples, rate = soundfile.read(record["wav"].replace("{data_root}", str(folder)))
        words = record["words"]
        loud = record["params"]["emphasised"]
        gain = np.ones(len(samples))
        for word in words:
            part = slice(round(word["start"] * rate) + 300, round(word["end"] * rate) - 300)
            if word["word"] in loud:
                gain[round(word["start"] * rate) : round(word["end"] * rate)] = 10 ** (
                    demo.EMPHASIS_GAIN / 20
                )
                level = 20 * np.log10(np.sqrt((samples[part] ** 2).mean()))
                boosts.append(level - demo.BASE_LEVEL - record["params"]["volume_db"])
        span = slice(round(words[0]["start"] * rate), round(words[-1]["end"] * rate))
        level = 20 * np.log10(np.sqrt(((samples / gain)[span] ** 2).mean()))
        assert level == pytest.approx(demo.BASE_LEVEL + record["params"]["volume_db"], abs=0.7)
    assert np.median(boosts) == pytest.approx(demo.EMPHASIS_GAIN, abs=2.5)


def test_rate_and_f0_move_as_the_parameters_say(corpus):
    from speechbrain_emo.lobes.hubert_pretraining import FrameTargets, HubertConfig

    torch = pytest.importorskip("torch")
    folder, manifests, _ = corpus
    targets = FrameTargets(HubertConfig())
    duration, rate, measured, asked = [], [], [], []
    for record in list(manifests["train"].values())[:40]:
        samples, _ = soundfile.read(record["wav"].replace("{data_root}", str(folder)), dtype="float32")
        features = targets(torch.from_numpy(samples)[None] * 30)
        measured.append(float(features.f0[features.voiced].median()) * np.log(2) + np.log(150))
        asked.append(record["params"]["log_f0"])
        speech = [p for p in record["phones"] if p["phone"] != "_"]
        duration.append(np.log(np.mean([p["end"] - p["start"] for p in speech])))
        rate.append(np.log(record["params"]["rate_wpm"]))
    assert np.corrcoef(measured, asked)[0, 1] > 0.95
    assert np.median(np.abs(np.array(measured) - asked)) < 0.08
    assert np.corrcoef(duration, rate)[0, 1] < -0.7


def test_descriptors_follow_thresholds_of_training(corpus):
    _, manifests, report = corpus
    records = list(manifests["train"].values())
    for name in ("volume", "speed"):
        values = [record["descriptors"][name] for record in records]
        for level in demo.DESCRIPTOR_VALUES[name]:
            assert values.count(level) == pytest.approx(len(records) / 3, abs=2)
    for record in manifests["test"].values():
        low, high = report["thresholds"][f"pitch.{record['gender']}"]
        level = np.searchsorted([low, high], record["params"]["log_f0"])
        assert record["descriptors"]["pitch"] == ("low", "normal", "high")[level]
        assert record["emotion"] not in record["descriptors"]["description"]


def test_oracle_equals_an_independent_bayes_classifier(corpus):
    from scipy.stats import multivariate_normal

    _, manifests, report = corpus
    records = list(manifests["test"].values())
    hits = {name: [] for name in demo.EMOTIONS}
    for record in records:
        x = [record["params"][name] for name in ("pitch", "range", "rate", "volume_db")]
        density = {
            name: multivariate_normal(demo.EMOTION_MEANS[name], np.diag(demo.EMOTION_SPREAD) ** 2).logpdf(x)
            for name in demo.EMOTIONS
        }
        hits[record["emotion"]].append(max(density, key=density.get) == record["emotion"])
    assert report["ua"] == pytest.approx(np.mean([np.mean(values) for values in hits.values()]), abs=0.13)


@pytest.mark.parametrize("seed", [1234, 5])
def test_oracle_of_the_default_sizes_is_held(seed):
    plan, _ = demo._plan({"train": 3000, "valid": 250, "test": 400}, seed)
    test = list(plan["test"].values())
    recalls = demo.oracle_recalls(demo._parameters(test), [record["emotion"] for record in test])
    assert 0.88 <= np.mean(list(recalls.values())) <= 0.935


def test_files_do_not_depend_on_processes_and_an_interrupt_is_survived(corpus, tmp_path, monkeypatch):
    folder, _, _ = corpus
    expected = digests(folder)
    run = demo._run_workers

    def interrupted(job_file, total, num_processes):
        jobs = json.loads(Path(job_file).read_text())
        jobs["chunks"] = jobs["chunks"][:1]
        Path(job_file).write_text(json.dumps(jobs))
        run(job_file, 50, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run_workers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.prepare_demo(tmp_path, tmp_path / "manifests", num_processes=1, **SIZES)
    assert not (tmp_path / "manifests" / "oracle.json").exists()
    totals = []

    def counted(job_file, total, num_processes):
        totals.append(total)
        run(job_file, total, num_processes)

    monkeypatch.setattr(demo, "_run_workers", counted)
    demo.prepare_demo(tmp_path, tmp_path / "manifests", num_processes=1, **SIZES)
    assert totals == [sum(SIZES.values()) - 50]
    assert digests(tmp_path) == expected
    demo.prepare_demo(tmp_path, tmp_path / "manifests", num_processes=1, **SIZES)
    assert len(totals) == 1, "a complete corpus is synthesised again"


def test_text_records_keep_away_from_excluded_sentences(corpus):
    _, manifests, _ = corpus
    held_out = [record["transcript"] for split in ("valid", "test") for record in manifests[split].values()]
    records = demo.text_records(300, seed=3, exclude=held_out)
    assert not grams(records) & grams({"transcript": sentence} for sentence in held_out)
    assert records == demo.text_records(300, seed=3, exclude=held_out)
    assert {record["emotion"] for record in records} == set(demo.EMOTIONS)
    assert all("wav" not in record and "params" not in record for record in records)
    for name, values in demo.DESCRIPTOR_VALUES.items():
        assert {record["descriptors"][name] for record in records} == set(values)


def test_sizes_and_processes_are_checked(tmp_path):
    with pytest.raises(ValueError, match="num_test is 2"):
        demo.prepare_demo(tmp_path, tmp_path, num_train=8, num_valid=8, num_test=2)
    with pytest.raises(ValueError, match="num_processes is 0"):
        demo.prepare_demo(tmp_path, tmp_path, num_processes=0)
