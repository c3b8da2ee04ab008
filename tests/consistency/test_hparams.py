"""Every YAML of hparams/, without building anything: names, arguments, references, phases, overlays."""

from functools import partial
from pathlib import Path

import pytest
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from speechbrain_emo.experiment import merge_overrides
from speechbrain_emo.phases.phase import PhaseSchedule
from speechbrain_emo.yaml_binding import check_yaml

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
EXPERIMENTS = sorted(HPARAMS.glob("*.yaml"))
OVERLAYS = sorted((HPARAMS / "overlays").glob("*.yaml"))
FRAGMENTS = sorted((HPARAMS / "backbones").glob("*.yaml"))


def names(paths):
    return [str(path.relative_to(HPARAMS)) for path in paths]


def plain(path, overrides=""):
    """A YAML with references and includes resolved, tags left alone."""
    reader = YAML(typ="rt", pure=True)
    content = reader.load(path.read_text(encoding="utf-8"))
    given = reader.load(overrides) or {}
    for key, value in content.items():
        if getattr(getattr(value, "tag", None), "value", None) == "!PLACEHOLDER" and key not in given:
            given[key] = f"given_by_the_user/{key}"
    with open(path, encoding="utf-8") as stream:
        return YAML(typ="rt", pure=True).load(resolve_references(stream, given or None, overrides_must_match=True))


def test_there_are_experiments_to_check():
    assert "demo_ib.yaml" in names(EXPERIMENTS)
    assert len(FRAGMENTS) == 7


@pytest.mark.parametrize("path", EXPERIMENTS + FRAGMENTS, ids=names(EXPERIMENTS + FRAGMENTS))
def test_every_name_and_argument_binds_to_a_real_signature(path):
    problems = check_yaml(path)
    assert not problems, "\n".join(map(str, problems))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_a_wrong_argument_in_it_would_be_caught(path):
    """The check has teeth on this very file: each tagged mapping with one more argument is a problem."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    tagged = [
        i
        for i, line in enumerate(lines[:-1])
        if line.rstrip().split("#")[0].rstrip().endswith(tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"))
        and (": !new:" in line or ": !name:" in line)
        and len(lines[i + 1]) - len(lines[i + 1].lstrip()) > len(line) - len(line.lstrip())
    ]
    if not tagged:
        pytest.skip(f"{path.name} passes no arguments to anything")
    before = len(check_yaml(path))
    i = tagged[0]
    indent = " " * (len(lines[i + 1]) - len(lines[i + 1].lstrip()))
    wrong = "\n".join([*lines[: i + 1], f"{indent}an_argument_that_nothing_takes: 1", *lines[i + 1 :]]) + "\n"
    problems = check_yaml(wrong, folder=path.parent)
    assert len(problems) == before + 1
    assert any("an_argument_that_nothing_takes" in p.message or "missing" in p.message for p in problems)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_seed_comes_first_and_the_run_is_named(path):
    content = plain(path)
    assert list(content)[0] == "seed"
    assert {"experiment", "output_folder", "run"} <= set(content)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_phases_and_the_tasks_that_they_and_the_evaluation_name(path):
    content = plain(path)
    if "phases" not in content or "tasks" not in content:
        pytest.skip(f"{path.name} has no list of phases over tasks")
    schedule = PhaseSchedule(content["phases"], content.get("cycles", 1))
    assert set(schedule.tasks) <= set(content["tasks"]), "a phase names a task that `tasks` does not define"
    evaluation = content.get("evaluation") or {}
    asked = {value for key, value in evaluation.items() if key.endswith("_task") and value is not None}
    assert asked <= set(content["tasks"]), "the evaluation asks for a task that `tasks` does not define"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_required_files_are_there(path):
    for required in plain(path).get("requires") or ():
        needed = HPARAMS / required["file"]
        assert needed.is_file()
        overrides = required.get("overrides")
        assert not check_yaml(needed, dict(overrides) if overrides else None)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names(OVERLAYS))
def test_an_overlay_is_small_and_fits_an_experiment(overlay):
    text = overlay.read_text(encoding="utf-8")
    changed = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(changed) <= 25, "an ablation is a few lines; this one is an experiment of its own"
    overrides = merge_overrides([str(overlay)], "")
    keys = set(YAML(typ="rt", pure=True).load(overrides))
    fits = [path for path in EXPERIMENTS if keys <= set(YAML(typ="rt", pure=True).load(path.read_text("utf-8")))]
    assert fits, f"no experiment has all of the keys {sorted(keys)}"
    for path in fits:
        problems = check_yaml(path, overrides)
        assert not problems, f"over {path.name}:\n" + "\n".join(map(str, problems))
        content = plain(path, overrides)
        if "phases" in content and "tasks" in content:
            assert set(PhaseSchedule(content["phases"], content.get("cycles", 1)).tasks) <= set(content["tasks"])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_the_groups_that_phases_train_exist(path):
    """Built on the meta device where the YAML gives architectures: a wrong group name costs no training run."""
    import pydoc

    from speechbrain_emo.dry_run import estimate

    content = plain(path)
    if "phases" not in content or "llm" not in content:
        pytest.skip(f"{path.name} trains no speech language model")

    def built(key):
        node = content.get(key)
        if node is None:
            return None
        return partial(pydoc.locate(node.tag.value.split(":", 1)[1]), **node)

    modules = {key: built(key) for key in ("encoder", "front_end", "llm")}
    fragment = YAML(typ="safe").load((HPARAMS / "backbones" / "tiny.yaml").read_text(encoding="utf-8"))
    for key in ("encoder", "llm"):
        # The demo trains its backbones first; any of the class serves to look group names up.
        if modules[key] is not None and "architecture" not in modules[key].keywords:
            modules[key] = partial(modules[key], architecture=fragment[key]["architecture"])
    report = estimate(
        {**modules, "phases": content["phases"], "cycles": content.get("cycles", 1)},
        num_records=100,
        audio_hours=0.1,
        sustained_flops=1e12,
    )
    assert all(phase.trainable > 0 for phase in report.phases)
