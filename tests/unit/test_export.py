"""An exported model gives what the trained one gave, wherever its folder is moved to."""

import json
import os
import shutil
from functools import partial

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file

from speechbrain_emo.brains.explainer import Explainer
from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.brains.speech_llm_experiment import run_speech_llm
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.inference import EmotionExplainer, export
from speechbrain_emo.inference.export import ExportError, export_model
from speechbrain_emo.inference.safe_loading import UnsafeModelError, verify_folder
from tests.tiny import build_tiny_system, write_tone


def run_export(system, folder, **changes):
    arguments = {
        "model": system.model,
        "factories": system.factories,
        "answer_format": system.answer_format,
        "tasks": system.tasks,
        "explain": system.explain,
        **changes,
    }
    return export_model(folder, **arguments)


def direct_scores(system, path):
    """Scores of the trained model itself, as evaluation computes them."""
    explain = {k: v for k, v in system.explain.items() if k != "max_duration"}
    explainer = Explainer(system.model, system.packer, system.tasks, **explain)
    waveform = load_audio(path, system.model.encoder.sample_rate)
    batch = AudioBatch(torch.tensor([len(waveform)]), waveforms=waveform[None])
    return explainer.explain([{"id": "recording"}], batch)[0]


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return build_tiny_system(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    return write_tone(tmp_path_factory.mktemp("audio") / "a.wav", 1.2, 180)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("chain", [True, False])
def test_scores_and_text_are_those_of_the_trained_model(tmp_path, tone, lora, chain):
    system = build_tiny_system(tmp_path, lora=lora, chain=chain)
    expected = direct_scores(system, tone)
    run_export(system, tmp_path / "out" / "model")
    result = EmotionExplainer.from_hparams(source=tmp_path / "out", run_opts={"device": "cpu"}).explain_file(
        tone
    )
    assert result.condition == ("own_chain" if chain else "speech")
    assert result.scores == pytest.approx(expected.scores[result.condition], abs=1e-6)
    assert result.generated == expected.generated


def test_weights_of_a_language_model_that_trained_are_kept(tmp_path, tone):
    system = build_tiny_system(tmp_path)
    before = direct_scores(system, tone).scores["speech"]
    system.model.set_trainable(["llm.base", "llm.lora"])
    with torch.no_grad():
        for p in system.model.group_parameters("llm.base"):
            p.mul_(1.1)
    expected = direct_scores(system, tone).scores
    assert expected["speech"] != pytest.approx(before, abs=1e-3)
    folder = run_export(system, tmp_path / "model")
    assert (folder / "adapter" / "model.safetensors").is_file()
    result = EmotionExplainer.from_hparams(source=folder).explain_file(tone)
    assert result.scores == pytest.approx(expected["own_chain"], abs=1e-6)


def test_the_folder_can_be_moved_and_needs_nothing_else(tmp_path, tone):
    system = build_tiny_system(tmp_path / "there")
    expected = direct_scores(system, tone).scores["own_chain"]
    run_export(system, tmp_path / "there" / "model")
    shutil.move(tmp_path / "there" / "model", tmp_path / "here (2)")
    shutil.rmtree(tmp_path / "there")
    text = (tmp_path / "here (2)" / "hyperparams.yaml").read_text()
    assert str(tmp_path) not in text
    result = EmotionExplainer.from_hparams(source=tmp_path / "here (2)").explain_file(tone)
    assert result.scores == pytest.approx(expected, abs=1e-6)


def test_everything_is_listed_and_nothing_is_a_pickle(system, tmp_path):
    folder = run_export(system, tmp_path / "model", facts={"title": "a test"})
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert files - {"manifest.json"} == set(manifest["files"]) == set(verify_folder(folder)["files"])
    assert {"README.md", "front_end.safetensors", "adapter/adapter_model.safetensors"} <= files
    assert not {os.path.splitext(f)[1] for f in files} - {
        ".json",
        ".safetensors",
        ".yaml",
        ".md",
        ".jinja",
        ".txt",
    }
    assert {"torch", "transformers", "peft", "speechbrain"} <= set(manifest["packages"])


def test_only_weights_that_trained_are_written_as_trained(system, tmp_path):
    folder = run_export(system, tmp_path / "model")
    state = load_file(folder / "front_end.safetensors")
    assert set(state) == set(system.model.front_end.state_dict())
    for name, value in system.model.front_end.state_dict().items():
        assert torch.equal(state[name], value)
    assert all("lora_" in name for name in load_file(folder / "adapter" / "adapter_model.safetensors"))


def test_factories_of_a_yaml_are_exported(system, tmp_path, tone):
    """As ``hparams/*.yaml`` gives them, with YAML's own containers and floats."""
    keywords = system.factories
    text = f"""
encoder: !name:speechbrain_emo.lobes.speech_encoder.SpeechEncoder
    source: {keywords["encoder"].keywords["source"]}
llm: !name:speechbrain_emo.lobes.speech_llm.SpeechLLM
    source: {keywords["llm"].keywords["source"]}
    lora: {{r: 2, lora_alpha: 4, lora_dropout: 1.0e-1}}
front_end: !name:speechbrain_emo.lobes.vib_front_end.VIBFrontEnd
    branches: [content, descriptor]
    hidden_size: 16
    latent_size: 8
    adapter_size: 16
    log_var_range: (-6.0, 2.0)
"""
    folder = run_export(system, tmp_path / "model", factories=load_hyperpyyaml(text))
    assert (
        EmotionExplainer.from_hparams(source=folder).explain_file(tone).emotion in system.answer_format.labels
    )


def test_a_large_backbone_stays_where_it_is(tmp_path, tone, monkeypatch):
    system = build_tiny_system(tmp_path)
    expected = direct_scores(system, tone).scores["own_chain"]
    monkeypatch.setattr(export, "MAX_COPY_BYTES", 60_000)  # Between the sizes of the two.
    folder = run_export(system, tmp_path / "model")
    kept = [name for name in ("encoder", "llm") if not (folder / name).exists()]
    external = json.loads((folder / "manifest.json").read_text())["external"]
    assert kept and external == {name: str(tmp_path / "backbones" / name) for name in kept}
    assert EmotionExplainer.from_hparams(source=folder).explain_file(tone).scores == pytest.approx(
        expected, abs=1e-6
    )
    shutil.move(tmp_path / "backbones", tmp_path / "elsewhere")
    with pytest.raises(UnsafeModelError, match="overrides"):
        EmotionExplainer.from_hparams(source=folder)
    overrides = {name: {"source": str(tmp_path / "elsewhere" / name)} for name in kept}
    moved = EmotionExplainer.from_hparams(source=folder, overrides=overrides)
    assert moved.explain_file(tone).scores == pytest.approx(expected, abs=1e-6)


def test_a_name_on_the_hub_stays_a_name_with_its_commit(tmp_path):
    system = build_tiny_system(tmp_path)
    system.model.encoder.model.config._commit_hash = "abc123"
    factories = {
        **system.factories,
        "encoder": partial(system.factories["encoder"].func, source="owner/speech", revision="main"),
        "llm": partial(system.factories["llm"], source="owner/language", revision="v2"),
    }
    text = (run_export(system, tmp_path / "model", factories=factories) / "hyperparams.yaml").read_text()
    assert "source: owner/speech\n  revision: abc123" in text
    assert "source: owner/language" in text and "revision: v2" in text
    assert not (tmp_path / "model" / "llm").exists()


def test_an_older_export_is_replaced_and_no_rest_stays(system, tmp_path):
    folder = run_export(system, tmp_path / "model")
    (folder / "old.txt").write_text("old")
    run_export(system, folder)
    assert not (folder / "old.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failure_leaves_the_older_export_as_it_was(system, tmp_path, monkeypatch):
    folder = run_export(system, tmp_path / "model")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(export, "_write_manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        run_export(system, folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_no_export_is_not_replaced(system, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="no exported model"):
        run_export(system, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"explain": {}}, "label_task is null"),
        ({"explain": {"label_task": "x"}}, "'x'"),
        ({"explain": {"label_task": "label", "beams": 2}}, r"unknown keys \['beams'\]"),
        ({"explain": {"label_task": "label", "temperature": 0.0}}, "above 0"),
        ({"explain": {"label_task": "label", "precision": "fp8"}}, "fp8"),
    ],
)
def test_wrong_settings_say_what_is_wrong(system, tmp_path, changes, what):
    with pytest.raises(ExportError, match=what):
        run_export(system, tmp_path / "model", **changes)
    assert not list(tmp_path.iterdir())


def test_parts_that_inference_may_not_construct_are_refused(system, tmp_path):
    factories = {**system.factories, "front_end": partial(torch.nn.Linear, 1, 1)}
    with pytest.raises(ExportError, match="torch.nn.modules.linear.Linear"):
        run_export(system, tmp_path / "model", factories=factories)
    factories = {**system.factories, "llm": partial(system.factories["llm"], lora=object())}
    with pytest.raises(ExportError, match=r"llm\.lora is a object"):
        run_export(system, tmp_path / "model", factories=factories)


def test_a_class_that_is_not_listed_is_told_before_training(system, tmp_path):
    parts = {**system.factories, "front_end": torch.nn.Linear}
    hparams = {"output_folder": str(tmp_path / "run"), "evaluation": {"label_task": "label"}, **parts}
    with pytest.raises(ExportError, match="front_end is made by torch.nn.*ALLOWED_CLASSES"):
        run_speech_llm(hparams, {"device": "cpu"})
    assert not list(tmp_path.iterdir())


def test_pickled_backbones_are_refused(tmp_path):
    system = build_tiny_system(tmp_path)
    weights = tmp_path / "backbones" / "encoder" / "model.safetensors"
    shutil.move(weights, weights.with_name("pytorch_model.bin"))
    with pytest.raises(ExportError, match="encoder: .*save_pretrained"):
        run_export(system, tmp_path / "model")


def test_features_from_a_cache_need_no_encoder_in_the_model(tmp_path, tone):
    system = build_tiny_system(tmp_path)
    expected = direct_scores(system, tone).scores["own_chain"]
    system.model.encoder = None
    folder = run_export(system, tmp_path / "model")
    assert EmotionExplainer.from_hparams(source=folder).explain_file(tone).scores == pytest.approx(
        expected, abs=1e-6
    )


def test_texts_survive_the_yaml(tmp_path):
    """Prompts with what YAML, HyperPyYAML and templates treat in their own way."""
    system = build_tiny_system(tmp_path, chain=False)
    prompts = [
        "({content})",
        "{descriptor}: yes # no",
        " {content} 'a' \"b\" ",
        "{content}\n- x\n<y>",
        "{content} & *b !c",
        "%x {content}",
    ]
    system.tasks["label"].prompts = prompts
    folder = run_export(system, tmp_path / "model")
    loaded = EmotionExplainer.from_hparams(source=folder)
    assert loaded.explainer.label_task.prompts == prompts
    assert loaded.explainer.label_task.format.spec == system.answer_format.spec
