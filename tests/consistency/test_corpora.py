"""Every overlay of hparams/corpora over the base experiment: names, arguments, labels, phases; every label map."""

from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from recipes import bind_preparation
from speechbrain_emo.dataio.labels import automatic_map, mapped_corpora, read_label_map
from speechbrain_emo.experiment import merge_overrides
from speechbrain_emo.phases.phase import PhaseSchedule
from speechbrain_emo.yaml_binding import check_yaml

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
BASE = HPARAMS / "ser_ib.yaml"
CORPORA = sorted((HPARAMS / "corpora").glob("*.yaml"))
MAPS = sorted((HPARAMS / "label_maps").glob("*_emotions.yaml"))
names = pytest.mark.parametrize("path", CORPORA, ids=[p.stem for p in CORPORA])


@lru_cache
def resolved(path):
    """The base experiment with an overlay, references resolved."""
    overrides = merge_overrides([str(path)], "data_folder: given_by_the_user")
    with open(BASE, encoding="utf-8") as stream:
        return YAML(typ="rt", pure=True).load(
            resolve_references(stream, overrides, overrides_must_match=True)
        )


@lru_cache
def recipe(name):
    return import_module(f"recipes.{name}.{name.lower()}_prepare")


def test_there_are_corpora_to_check():
    assert {"ravdess", "meld", "generic", "speechcraft_iemocap"} <= {p.stem for p in CORPORA} and len(
        MAPS
    ) == 2


@names
def test_an_overlay_fits_the_base_experiment(path):
    assert not check_yaml(BASE, merge_overrides([str(path)], "data_folder: x"))
    lines = [
        x
        for x in path.read_text(encoding="utf-8").splitlines()
        if x.strip() and not x.lstrip().startswith("#")
    ]
    phases = any(line.startswith("phases:") for line in lines)
    assert len(lines) <= (60 if phases else 20), "an overlay says what is the corpus's own"
    assert resolved(path)["experiment"] != "ser_ib"


@names
def test_preparations_take_their_arguments_and_give_the_labels(path):
    content = resolved(path)
    assert content["recipes"], "no recipe"
    for name, options in content["recipes"].items():
        bind_preparation(name, dict(options), {"fold": "1", "seed": 0})
        own = getattr(recipe(name), "EMOTIONS", None)
        if own is None:
            continue
        if len(content["recipes"]) == 1:
            assert sorted(content["labels"]) == sorted(own), f"{name} writes {own}"
        else:
            given = (
                read_label_map(HPARAMS.parent / content["label_map"], name)
                if name in mapped_corpora(HPARAMS.parent / content["label_map"])
                else {}
            )
            mapped = {**automatic_map(own, content["labels"]), **given}
            assert {v for v in mapped.values() if v} <= set(content["labels"])
            assert sum(v is not None for v in mapped.values()) >= 2, f"{name}: {mapped}"
    for name in content["test_corpora"] or ():
        assert name in content["recipes"]


@names
def test_folds_are_those_of_the_preparation(path):
    content = resolved(path)
    for options in content["recipes"].values():
        num_folds = options.get("num_folds")
        if num_folds is not None and len(content["recipes"]) == 1 and content["folds"]:
            assert len(content["folds"]) == num_folds
    assert content["folds"] or content["fold"]


@names
def test_phases_and_the_fields_that_tasks_answer(path):
    content = resolved(path)
    schedule = PhaseSchedule(content["phases"], content["cycles"])
    assert set(schedule.tasks) <= set(content["tasks"])
    evaluation = content["evaluation"]
    assert {evaluation["label_task"], evaluation["chain_task"]} <= set(content["tasks"])
    fields = content["answer_format"]["fields"]
    for name in ("describe_fields", "explain_fields"):
        assert set(content[name]) <= set(fields) and content[name][-1] == "emotion"
    assert list(fields["emotion"]) == list(content["labels"])
    for phase in schedule.phases:
        assert set(phase.corpora) <= set(content["recipes"]), (
            f"{phase.name} names corpora that are not prepared"
        )


@pytest.mark.parametrize("name", ["speechcraft_iemocap", "speechcraft_meld"])
def test_pretraining_and_fine_tuning_are_phases_of_one_run(name):
    content = resolved(HPARAMS / "corpora" / f"{name}.yaml")
    (target,) = content["test_corpora"]
    pretrain, finetune = [], []
    for phase in PhaseSchedule(content["phases"]).phases:
        (finetune if phase.corpora == {"SpeechCraft": 0.0} else pretrain).append(phase)
        assert phase.corpora in ({"SpeechCraft": 0.0}, {target: 0.0})
    assert len(pretrain) == len(finetune) == 2
    order = [p.name for p in PhaseSchedule(content["phases"]).phases]
    assert order == [p.name for p in [*pretrain, *finetune]]


@pytest.mark.parametrize("path", MAPS, ids=[p.stem for p in MAPS])
def test_label_maps_name_labels_that_the_recipes_write(path):
    four = {"four_emotions": "IEMOCAP", "seven_emotions": "MELD"}[path.stem]
    targets = {
        "four_emotions": ("angry", "happy", "neutral", "sad"),
        "seven_emotions": recipe("MELD").EMOTIONS,
    }[path.stem]
    assert len([v for v in automatic_map(recipe(four).EMOTIONS, targets).values() if v]) == len(targets)
    for name in mapped_corpora(path):
        label_map = read_label_map(path, name)
        assert set(label_map) <= set(recipe(name).EMOTIONS), f"{name} writes {recipe(name).EMOTIONS}"
        assert {v for v in label_map.values() if v} <= set(targets)
