"""Recordings of every kind, good and bad, through the one path from file to explanation."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.utils.fetching import FetchConfig

from speechbrain_emo.dataio.audio import AudioError
from speechbrain_emo.dataio.descriptors import Thresholds, fit_thresholds, measure
from speechbrain_emo.inference import EmotionExplainer, Explanation, Failure
from speechbrain_emo.inference.explanation import compose_sentence
from speechbrain_emo.inference.export import export_model
from speechbrain_emo.inference.safe_loading import UnsafeModelError
from tests.tiny import build_tiny_system, voiced_tone, write_bad_files, write_good_files, write_tone

TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training's folder with an exported model whose temperature is not 1 and that measures."""
    root = tmp_path_factory.mktemp("training")
    system = build_tiny_system(root)
    rows = [measure(voiced_tone(1.0, 100 + 5 * i, seed=i), 16000) for i in range(12)]
    thresholds = fit_thresholds(rows, ["male"] * len(rows))
    settings = {**system.explain, "temperature": TEMPERATURE, "thresholds": thresholds}
    export_model(root / "model", system.model, system.factories, system.answer_format, system.tasks, settings)
    return root


@pytest.fixture(scope="module")
def explainer(folder):
    return EmotionExplainer.from_hparams(source=folder, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_good_files(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return write_bad_files(tmp_path_factory.mktemp("bad"))


def test_every_good_file_gives_a_result(explainer, good):
    for name, result in zip(good, explainer.explain_files(good.values())):
        assert isinstance(result, Explanation), (name, result)
        assert result.name == str(good[name])
        assert sum(result.probabilities.values()) == pytest.approx(1.0)
        assert result.emotion == max(result.scores, key=result.scores.get)
        assert all(math.isfinite(s) for s in result.scores.values())
        assert result.duration == pytest.approx(soundfile.info(good[name]).duration, abs=0.01)


def test_every_bad_file_gives_one_clear_error_that_names_it(explainer, bad):
    for name, (path, said) in bad.items():
        with pytest.raises(AudioError) as caught:
            explainer.explain_file(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and said in message and "\n" not in message, (name, message)


def test_good_and_bad_files_in_one_call(explainer, good, bad):
    """Bad ones are reported in their place; the rest are finished with unchanged results."""
    paths = []
    for index in range(max(len(good), len(bad))):
        paths += [path for path, _ in list(bad.values())[index : index + 1]]
        paths += list(good.values())[index : index + 1]
    alone = dict(zip(good.values(), explainer.explain_files(good.values(), batch_size=1)))
    for batch_size in (1, 4):
        results = explainer.explain_files(paths, batch_size=batch_size)
        assert [r.name for r in results] == [str(p) for p in paths]
        for path, result in zip(paths, results):
            if path in alone:
                assert result.scores == pytest.approx(alone[path].scores, abs=1e-4)
            else:
                assert isinstance(result, Failure) and not result.ok and str(path) in result.error
    with pytest.raises(AudioError):
        explainer.explain_files(paths, on_error="raise")


def test_only_bad_files_and_no_files(explainer, bad):
    assert not any(r.ok for r in explainer.explain_files([path for path, _ in bad.values()], batch_size=2))
    assert explainer.explain_files([]) == []


def test_results_do_not_depend_on_batch_neighbours_or_order(explainer, good):
    paths = list(good.values())
    ones = explainer.explain_files(paths, batch_size=1)
    for order in (paths, paths[::-1], paths[3:] + paths[:3]):
        found = {r.name: r for r in explainer.explain_files(order, batch_size=4)}
        for one in ones:
            assert found[one.name].scores == pytest.approx(one.scores, abs=1e-4)
            assert found[one.name].generated == one.generated


def test_results_differ_between_recordings(explainer, good):
    """Otherwise the tests of invariance prove nothing."""
    results = explainer.explain_files([good["plain"], good["rate_96k"], good["silence"]])
    scores = [np.array(list(r.scores.values())) for r in results]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3 and np.abs(scores[0] - scores[2]).max() > 1e-3


def test_the_name_of_a_file_does_not_matter(explainer, good, tmp_path):
    """A hash of a record's id chooses the wording of its prompt in evaluation."""
    expected = explainer.explain_file(good["plain"])
    for number in range(6):
        copy = shutil.copy(good["plain"], tmp_path / f"{number}.wav")
        assert explainer.explain_file(copy).scores == expected.scores


def test_an_array_is_treated_as_the_file_that_holds_it(explainer, good):
    for name in ("plain", "rate_96k", "channels_8", "bits_24"):
        samples, rate = soundfile.read(good[name], dtype="float32")
        by_array = explainer.explain_array(samples, rate)
        by_file = explainer.explain_file(good[name])
        assert by_array.scores == pytest.approx(by_file.scores, abs=1e-5)
        assert by_array.measured["f0_median"] == pytest.approx(by_file.measured["f0_median"])
    integers, rate = soundfile.read(good["plain"], dtype="int16")
    by_integers = explainer.explain_array(integers, rate)
    assert by_integers.scores == pytest.approx(explainer.explain_file(good["plain"]).scores, abs=1e-5)


def test_a_batch_in_speechbrains_convention(explainer, good):
    waves = [
        torch.from_numpy(soundfile.read(good[n], dtype="float32")[0]) for n in ("plain", "spaces", "bits_24")
    ]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=0.7)
    lens = torch.tensor([len(w) / padded.shape[1] for w in waves])
    for found in (explainer.explain_batch(padded, lens), explainer(padded, lens)):
        for result, wave in zip(found, waves):
            assert result.scores == pytest.approx(explainer.explain_array(wave, 16000).scores, abs=1e-4)
    with pytest.raises(ValueError, match="lens"):
        explainer.explain_batch(padded, lens[:1])
    with pytest.raises(AudioError, match=r"waveforms\[1\]"):
        explainer.explain_batch(torch.stack([waves[0], waves[0] * torch.nan]))


def test_bad_arrays_name_what_they_are(explainer):
    for samples, rate in ((np.zeros(0), 16000), (np.full(16000, np.nan), 16000), (np.zeros(16000), 0)):
        with pytest.raises(AudioError, match="^my take: "):
            explainer.explain_array(samples, rate, name="my take")


def test_a_recording_too_long_for_the_prompt_is_refused_by_name(folder, tmp_path):
    explainer = EmotionExplainer.from_hparams(source=folder, overrides={"explain": {"max_positions": 200}})
    # 19 s are 949 frames: two slots of 190 positions; 1 s is two of 10.
    long, short = write_tone(tmp_path / "long.wav", 19.0), write_tone(tmp_path / "short.wav", 1.0)
    results = explainer.explain_files([long, short])
    assert not results[0].ok and "long.wav: 19.0 s is too long for this model" in results[0].error
    assert results[1].ok


def test_probabilities_are_the_softmax_at_the_temperature(explainer, good):
    result = explainer.explain_file(good["plain"])
    weights = {label: math.exp(score / TEMPERATURE) for label, score in result.scores.items()}
    total = sum(weights.values())
    assert result.probabilities == pytest.approx({label: w / total for label, w in weights.items()})
    assert result.probability == max(result.probabilities.values())


def test_results_are_json_and_readable(explainer, good, bad):
    result = explainer.explain_file(good["plain"])
    content = json.loads(json.dumps(result.to_dict()))
    assert content["ok"] and content["emotion"] == result.emotion and content["measured"]["f0_median"] > 0
    text = str(result)
    assert text.splitlines()[0].startswith(f"{good['plain']}: {result.emotion} (")
    assert "probabilities:" in text and "measured:" in text
    failure = explainer.explain_files([bad["text"][0]])[0]
    assert json.loads(json.dumps(failure.to_dict())) == {
        "ok": False,
        "name": failure.name,
        "error": failure.error,
    }


def answer_with(monkeypatch, explainer, text):
    """Let the model write a given answer: one with random weights writes none that can be read."""
    monkeypatch.setattr(explainer.explainer, "_generate", lambda records, *_: [text] * len(records))


ANSWER = "transcript: bring it back\npitch: {}\nspeed: normal\nvolume: high\nemphasis: it, back\nemotion: {}"


def test_the_written_answer_becomes_fields(explainer, monkeypatch):
    tone = voiced_tone(1.0, 154)
    answer_with(monkeypatch, explainer, ANSWER.format("high", "sad"))
    result = explainer.explain_array(tone, 16000)
    assert result.transcript == "bring it back"
    assert result.descriptors == {
        "pitch": "high",
        "speed": "normal",
        "volume": "high",
        "emphasis": ["it", "back"],
    }
    assert result.sentence.startswith(f"Sounds {result.emotion} (")
    place = f"{round(result.percentiles['pitch'])}th percentile of all speakers"
    assert f"high pitch (measured median F0 154 Hz, {place})" in result.sentence
    assert "emphasis on 'it' and 'back'" in result.sentence
    assert not [w for w in result.warnings if w.startswith("pitch")]
    other = next(label for label in explainer.labels if label != result.emotion)
    answer_with(monkeypatch, explainer, ANSWER.format("high", other))
    again = explainer.explain_array(tone, 16000)
    # The chain that the label is scored after leaves the written emotion out.
    assert again.scores == result.scores
    assert f"the written answer says {other}, the label scores say {result.emotion}" in again.warnings


@pytest.mark.parametrize(
    "said, f0, contradicts",
    [
        ("low", 154, True),
        ("high", 101, True),
        ("unvoiced", 130, True),
        ("high", 154, False),
        ("low", 101, False),
    ],
)
def test_a_descriptor_that_the_signal_contradicts_is_a_warning(explainer, monkeypatch, said, f0, contradicts):
    answer_with(monkeypatch, explainer, ANSWER.format(said, "sad"))
    result = explainer.explain_array(voiced_tone(1.0, f0), 16000, gender="male")
    found = [w for w in result.warnings if w.startswith("pitch: ")]
    assert bool(found) == contradicts, result
    if contradicts:
        assert f"the model says {said}" in found[0] and f"{f0} Hz" in found[0]


def test_a_man_is_not_compared_with_women(explainer, monkeypatch):
    """The model's high is high for a man; quantiles of everybody say nothing against it."""
    known = explainer.thresholds.to_dict()
    known["groups"] = {"all": known["groups"]["all"], "female": known["groups"]["all"]}
    monkeypatch.setattr(explainer, "thresholds", Thresholds.from_dict(known))
    answer_with(monkeypatch, explainer, ANSWER.format("high", "sad"))
    warned = {}
    for gender in ("male", "female", None):
        result = explainer.explain_array(voiced_tone(1.0, 101), 16000, gender=gender)
        warned[gender] = any(w.startswith("pitch: ") for w in result.warnings)
    assert warned == {"male": False, "female": True, None: False}


def test_a_value_beside_the_threshold_is_no_contradiction(explainer, monkeypatch):
    """The training's tones have 100, 105, ..., 155 Hz: the upper edge is 137 Hz, 140 Hz lies 6 percentiles
    above."""
    answer_with(monkeypatch, explainer, ANSWER.format("normal", "sad"))
    result = explainer.explain_array(voiced_tone(1.0, 140), 16000)
    assert result.measured_descriptors["pitch"] == "high"
    assert not [w for w in result.warnings if w.startswith("pitch")]


def test_silence_is_said_to_be_silence(explainer, good):
    result = explainer.explain_file(good["silence"])
    assert result.measured["f0_median"] is None
    assert any("no speech" in w for w in result.warnings)


def test_unreadable_answers_are_warnings_not_failures(explainer, monkeypatch):
    answer_with(monkeypatch, explainer, "mumble mumble")
    result = explainer.explain_array(voiced_tone(), 16000)
    assert result.transcript is None and set(result.descriptors.values()) == {None}
    assert any("names no emotion" in w for w in result.warnings)
    assert result.sentence == f"Sounds {result.emotion} ({100 * result.probability:.0f} %)."


def test_sentence_without_measurements():
    assert compose_sentence("sad (100 %)", {"gender": "female", "pitch": "low", "speed": None}, {}) == (
        "Sounds sad (100 %): female voice, low pitch."
    )


def test_arguments_are_checked(explainer, good):
    with pytest.raises(ValueError, match="use explain_file"):
        explainer.explain_files(str(good["plain"]))
    with pytest.raises(ValueError, match="on_error"):
        explainer.explain_files([], on_error="ignore")
    with pytest.raises(ValueError, match="batch_size"):
        explainer.explain_files([], batch_size=0)
    with pytest.raises(ValueError, match="genders"):
        explainer.explain_files([good["plain"]], genders=[])


def test_the_model_is_frozen_and_in_eval_mode(explainer):
    assert not any(p.requires_grad for p in explainer.parameters())
    assert not any(m.training for m in explainer.mods.modules())


def test_sources_that_hold_no_model(tmp_path):
    with pytest.raises(UnsafeModelError, match="holds no exported model"):
        EmotionExplainer.from_hparams(source=tmp_path)
    for source in (tmp_path / "none", "results/none/1986", "word", "http://example.org/a"):
        with pytest.raises(UnsafeModelError, match="no such folder"):
            EmotionExplainer.from_hparams(source=source)
    with pytest.raises(UnsafeModelError, match="hyperparams.yaml"):
        EmotionExplainer.from_hparams(source=tmp_path, hparams_file="x.yaml")


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that serves the exported model and notes what is asked for."""
    asked = []

    def download(repo_id, filename, **_):
        assert repo_id == "owner/emotion"
        asked.append(filename)
        return str(folder / "model" / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_a_model_from_the_hub(hub, folder, explainer, good, tmp_path):
    fetched = EmotionExplainer.from_hparams(
        source="owner/emotion", savedir=tmp_path / "copy", fetch_config=FetchConfig(revision="v1")
    )
    assert fetched.explain_file(good["plain"]).scores == explainer.explain_file(good["plain"]).scores
    listed = json.loads((folder / "model" / "manifest.json").read_text())["files"]
    assert sorted(hub) == sorted(["manifest.json", *listed])


def test_a_hostile_manifest_on_the_hub_is_refused_before_its_files_are_fetched(hub, folder, tmp_path):
    manifest = json.loads((folder / "model" / "manifest.json").read_text())
    manifest["files"]["../../.bashrc.txt"] = {"size": 1, "sha256": "0" * 64}
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnsafeModelError, match="leads out"):
        EmotionExplainer.from_hparams(source="owner/emotion", savedir=tmp_path / "copy")
    assert not set(hub) - {"manifest.json"}


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch, tmp_path):
    def download(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UnsafeModelError, match="owner/emotion: manifest.json could not be fetched.*no route"):
        EmotionExplainer.from_hparams(source="owner/emotion", savedir=tmp_path)


def test_real_speech(explainer, shared_data):
    """The Berlin recordings, as they are on disk."""
    paths = [p for p in sorted((shared_data / "emodb").rglob("*")) if p.suffix in (".wav", ".flac")][:6]
    if not paths:
        pytest.skip(f"no EmoDB recordings below {shared_data}")
    for result in explainer.explain_files(paths, batch_size=3):
        assert result.ok and 65 < result.measured["f0_median"] < 500
