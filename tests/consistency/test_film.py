"""The experiments of word-level synthesis without training: published sizes, and overlays that do what they say."""

from pathlib import Path

import pytest
import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from speechbrain_emo.lobes.emotion_supervision import SUPERVISIONS, TokenObjective
from speechbrain_emo.lobes.speech_token_lm import PUBLISHED_ARCHITECTURE, SpeechTokenLM

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
OVERLAYS = sorted((HPARAMS / "overlays").glob("film_*.yaml"))


def plain(name, overrides=None):
    """A YAML as plain data, its tags ignored."""
    text = (HPARAMS / name).read_text(encoding="utf-8")
    reader = YAML(typ="rt", pure=True)
    given = {
        key: f"given/{key}"
        for key, value in reader.load(text).items()
        if getattr(getattr(value, "tag", None), "value", None) == "!PLACEHOLDER"
    }
    resolved = resolve_references(text, {**given, **(overrides or {})} or None)
    return YAML(typ="rt", pure=True).load(resolved.read())


def build(content):
    """The language model of an experiment on the meta device."""
    settings = {k: v for k, v in content["lm"].items() if k != "architecture"}
    with torch.device("meta"):
        return SpeechTokenLM(
            dict(content["lm"]["architecture"]),
            num_emotions=len(content["labels"]),
            num_intensities=len(content["intensities"]),
            **settings,
        )


def test_the_paper_s_experiment_has_the_published_sizes():
    content = plain("esd_film.yaml")
    assert {**PUBLISHED_ARCHITECTURE, **content["lm"]["architecture"]} == {
        "model_type": "qwen2",
        **PUBLISHED_ARCHITECTURE,
    }
    lm = build(content)
    counts = {
        name: sum(p.numel() for module in modules for p in module.parameters())
        for name, modules in lm.trainable_groups().items()
    }
    assert counts["text_embedding"] + counts["body"] == 494_032_768
    assert counts["film"] == (5 + 3) * 896 + 896 * 1792 + 1792
    assert counts["head"] == 896 * 6564 + 6564 and counts["speech_embedding"] == 896 * 6564
    with torch.device("meta"):
        objective = TokenObjective(lm, **content["objective"])
    (phase,) = content["phases"]
    objective.set_trainable(phase["train"])
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert trained == counts["film"] + counts["head"] + 896 * 5 + 5
    assert (phase["lr"], phase["epochs"], phase["batch_size"], content["micro_batch_size"]) == (1e-5, 5, 8, 4)
    assert content["max_grad_norm"] == 5.0 and content["sampling"]["tau"] == 0.1


@pytest.mark.parametrize("overlay", OVERLAYS, ids=[path.stem for path in OVERLAYS])
def test_an_overlay_changes_what_it_names(overlay):
    changes = YAML(typ="safe", pure=True).load(overlay.read_text(encoding="utf-8"))
    before, after = plain("demo_film.yaml"), plain("demo_film.yaml", changes)
    if overlay.stem not in ("film_weight_0_2", "film_token_side_loss"):  # The defaults, for sweeps.
        assert any(before[key] != after[key] for key in changes)
    for name, value in changes.items():
        assert after[name] == value
    assert after["objective"]["supervision"] == after["supervision"] in SUPERVISIONS
    lm = after["lm"]
    assert (lm["film_mode"], lm["intensity"]) == (after["film_mode"], after["intensity"])
    assert set(after["manifests"]["train"]) == set(after["train_manifests"])
