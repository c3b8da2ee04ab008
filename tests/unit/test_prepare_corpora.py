import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_emo.dataio.manifest import ManifestError, read_manifest, validate_manifest
from speechbrain_emo.dataio.preparation import prepare_corpora, write_fold
from speechbrain_emo.dataio.splits import Split


def prepare(data_folder, save_folder, emotion=None):
    """A corpus of three speakers, one a part; a dialogue's recording beside it."""
    if not Path(data_folder).is_dir():
        raise ManifestError(f"{data_folder} is missing: get it at https://example.org")
    records = {}
    for speaker in "abc":
        audio = {"wav": f"{{data_root}}/{speaker}.wav", "duration": 0.1}
        records[speaker] = {
            **audio,
            "speaker": speaker,
            "gender": None,
            "transcript": "{data_root} yes",
            "emotion": emotion,
        }
        records[speaker]["turns"] = [{"role": "assistant", "transcript": "x", "recording": dict(audio)}]
    split = Split("x", ("a",), ("b",), ("c",))
    labels = None if emotion is None else [emotion]
    return write_fold("Any", records, lambda _: split, data_folder, save_folder, labels, measure=False)


def corpus(folder):
    folder.mkdir(parents=True)
    for speaker in "abc":
        soundfile.write(folder / f"{speaker}.wav", np.random.default_rng(0).normal(0, 0.1, 1600), 16000)


def test_corpora_are_joined(tmp_path):
    corpus(tmp_path / "data" / "One")
    corpus(tmp_path / "elsewhere")
    corpora = {"One": prepare, "Two": partial(prepare, emotion="joy")}
    done = prepare_corpora(tmp_path / "data", tmp_path / "out", corpora, {"Two": str(tmp_path / "elsewhere")})
    raw = json.loads(Path(done.manifests["train"]).read_text())
    assert list(raw) == ["One/a", "Two/a"]
    assert raw["One/a"]["wav"] == "{data_root}/One/a.wav" and raw["One/a"]["corpus"] == "One"
    assert raw["One/a"]["turns"][0]["recording"]["wav"] == "{data_root}/One/a.wav"
    assert raw["One/a"]["transcript"] == "{data_root} yes", "text is no path"
    records = read_manifest(done.manifests["train"], {"data_root": str(tmp_path / "data")})
    assert records["Two/a"]["wav"] == f"{tmp_path}/elsewhere/a.wav" and records["Two/a"]["emotion"] == "joy"
    validate_manifest(records)
    summary = json.loads((tmp_path / "out" / "preparation.json").read_text())
    assert summary["num_records"]["test"] == {"One": 1, "Two": 1}


def test_missing_corpora_are_named_together(tmp_path):
    corpus(tmp_path / "One")
    corpora = {"One": prepare, "Two": prepare, "Three": prepare}
    with pytest.raises(
        ManifestError,
        match="(?s)2 of 3 corpora cannot be prepared:\nTwo: .*example.org\nThree: .*example.org",
    ):
        prepare_corpora(tmp_path, tmp_path / "out", corpora)
    assert not (tmp_path / "out" / "train.json").exists()
    done = prepare_corpora(tmp_path, tmp_path / "out", corpora, skip_missing=True)
    assert [str(f) for f in done.findings if "left out" in f.message][0].startswith("Two: left out: ")
    assert list(json.loads(Path(done.manifests["test"]).read_text())) == ["One/c"]
    with pytest.raises(ManifestError, match="1 of 1 corpora cannot be prepared"):
        prepare_corpora(tmp_path, tmp_path / "out", {"Two": prepare}, skip_missing=True)


@pytest.mark.parametrize("name", ["dual_qwen", "dual_llama"])
def test_the_corpora_of_the_dual_model(tmp_path, repository, name):
    """The paper's experiment says for every absent corpus where to get it."""
    from hyperpyyaml import load_hyperpyyaml

    overrides = {"data_folder": str(tmp_path), "manifest_folder": str(tmp_path / "out")}
    with open(repository / "hparams" / f"{name}.yaml", encoding="utf-8") as stream:
        prepare = load_hyperpyyaml(stream, overrides)["prepare"]
    with pytest.raises(ManifestError) as error:
        prepare()
    for corpus_name, where in (
        ("LibriSpeech", "openslr.org/12"),
        ("TextrolSpeech", "github.com/jishengpeng/TextrolSpeech"),
        ("MELD", "affective-meld.github.io"),
        ("StyleTalk", "github.com/DanielLin94144/StyleTalk"),
        ("DailyTalk", "github.com/keonlee9420/DailyTalk"),
    ):
        assert corpus_name in str(error.value) and where in str(error.value)
    assert "5 of 5 corpora" in str(error.value)
