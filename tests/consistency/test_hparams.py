"""Every YAML of hparams/, without building anything: names, arguments, references, phases, overlays."""

import inspect
import pydoc
import re
from functools import partial
from pathlib import Path

import pytest
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from speechbrain_emo.dry_run import estimate
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
        return YAML(typ="rt", pure=True).load(
            resolve_references(stream, given or None, overrides_must_match=True)
        )


def having(*keys):
    """Experiments whose YAML has all of these keys: those that a test is about."""
    reader = YAML(typ="rt", pure=True)
    return [p for p in EXPERIMENTS if set(keys) <= set(reader.load(p.read_text(encoding="utf-8")))]


SCHEDULED = having("phases", "tasks")
LANGUAGE_MODELS = having("phases", "llm")


def test_there_are_experiments_to_check():
    assert "demo_ib.yaml" in names(EXPERIMENTS)
    assert {"demo_ib.yaml", "ser_ib.yaml", "demo_llm.yaml"} <= set(names(SCHEDULED)) & set(
        names(LANGUAGE_MODELS)
    )
    assert len(FRAGMENTS) == 7


@pytest.mark.parametrize("path", EXPERIMENTS + FRAGMENTS, ids=names(EXPERIMENTS + FRAGMENTS))
def test_every_name_and_argument_binds_to_a_real_signature(path):
    problems = check_yaml(path)
    assert not problems, "\n".join(map(str, problems))


def entries(path):
    """(line number, indentation of the arguments, dotted name) of every `!new:` and `!name:` with a block."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines[:-1]):
        match = re.match(r"^( *)[^#]*: !(?:new|name):([\w.]+)\s*(?:#.*)?$", line)
        indent = re.match(" *", lines[i + 1])[0]
        if match and len(indent) > len(match[1]) and lines[i + 1].strip():
            yield i, indent, match[2]


def takes_any_keyword(dotted):
    parameters = inspect.signature(pydoc.locate(dotted)).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_a_wrong_argument_in_it_would_be_caught(path):
    """The check has teeth on this very file: one more argument to any entry is one more problem."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, indent, dotted in entries(path):
        wrong = [*lines[: i + 1], f"{indent}an_argument_that_nothing_takes: 1", *lines[i + 1 :]]
        problems = check_yaml("\n".join(wrong) + "\n", folder=path.parent)
        caught = [p for p in problems if dotted in p.tag and "an_argument_that_nothing_takes" in p.message]
        assert caught or takes_any_keyword(dotted), f"{path.name}, line {i + 1}: {[str(p) for p in problems]}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_what_a_yaml_calls_of_ours_states_its_arguments(path):
    """A **kwargs would swallow a misspelt argument."""
    ours = {dotted for _, _, dotted in entries(path) if dotted.startswith(("speechbrain_emo.", "recipes."))}
    open_ended = sorted(dotted for dotted in ours if takes_any_keyword(dotted))
    assert not open_ended, f"{open_ended} take any keyword: name their arguments"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names(EXPERIMENTS))
def test_seed_comes_first_and_the_run_is_named(path):
    content = plain(path)
    assert list(content)[0] == "seed"
    assert {"experiment", "output_folder", "run"} <= set(content)


@pytest.mark.parametrize("path", SCHEDULED, ids=names(SCHEDULED))
def test_phases_and_the_tasks_that_they_and_the_evaluation_name(path):
    content = plain(path)
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
    report, fits, wrong = [], [], []
    for path in EXPERIMENTS:
        if not keys <= set(YAML(typ="rt", pure=True).load(path.read_text(encoding="utf-8"))):
            continue
        own = check_yaml(path)
        found = [p for p in check_yaml(path, overrides) if p not in own]
        wrong += [(path.name, p) for p in found if "unexpected keyword argument" in p.message]
        problems = [str(p) for p in found]
        if not problems:
            content = plain(path, overrides)
            tasks = set(content.get("tasks") or ())
            asked = set(PhaseSchedule(content["phases"], content.get("cycles", 1)).tasks) if tasks else set()
            problems = [f"phases name the tasks {sorted(asked - tasks)}"] if asked - tasks else []
        if problems:
            report += [f"over {path.name}: {problem}" for problem in problems]
        else:
            fits.append(path.name)
    # An overlay of one corpus names tasks or a front end that another experiment lacks.
    assert fits, "fits no experiment:\n" + "\n".join(report or [f"none has all of the keys {sorted(keys)}"])
    # Where an experiment that fits builds the same class, the argument is misspelt, not meant for another class.
    texts = [(HPARAMS / name).read_text(encoding="utf-8") for name in fits]
    wrong = [f"over {name}: {p}" for name, p in wrong if any(p.tag in text for text in texts)]
    assert not wrong, "\n".join(wrong)


def size(path):
    """Estimate of an experiment from its YAML alone, on the meta device."""
    content = plain(path)

    def built(key):
        node = content.get(key)
        if node is None:
            return None
        return partial(pydoc.locate(node.tag.value.split(":", 1)[1]), **node)

    modules = {key: built(key) for key in ("encoder", "front_end", "llm")}
    fragment = YAML(typ="safe").load((HPARAMS / "backbones" / "tiny.yaml").read_text(encoding="utf-8"))
    for key in ("encoder", "llm"):
        # The demos train their backbones first; any of the class serves to look group names up.
        if modules[key] is not None and modules[key].keywords.get("architecture") is None:
            name = "whisper" if modules[key].keywords.get("pad_windows") is False else key
            modules[key] = partial(modules[key], architecture=fragment[name]["architecture"])
    settings = {"phases": content["phases"], "cycles": content.get("cycles", 1)}
    return estimate({**modules, **settings}, num_records=100, audio_hours=0.1, sustained_flops=1e12)


@pytest.mark.parametrize("path", LANGUAGE_MODELS, ids=names(LANGUAGE_MODELS))
def test_the_groups_that_phases_train_exist(path):
    """Built on the meta device, so that a wrong group name costs no training run."""
    report = size(path)
    assert all(phase.trainable > 0 for phase in report.phases)


@pytest.mark.parametrize(
    "name,llm,hidden", [("dual_qwen", 7_615_616_512, 3584), ("dual_llama", 8_030_261_248, 4096)]
)
def test_the_dual_experiments_have_the_published_sizes(name, llm, hidden):
    """Whisper-large-v3's encoder and the language model are frozen; of both adapters every weight trains."""
    report = size(HPARAMS / f"{name}.yaml")
    modules = {module.name: module for module in report.modules}
    assert (modules["encoder"].parameters, modules["encoder"].trainable) == (636_968_960, 0)
    assert (modules["llm"].parameters, modules["llm"].trainable) == (llm, 0)
    linguistic = 6400 * 2048 + 2048 + 2048 * hidden + hidden
    # Attention 4 D^2, feed-forward 8 D^2, their biases, two layer norms, and the linear layer.
    paralinguistic = 12 * 1280**2 + (4 + 4 + 1) * 1280 + 4 * 1280 + 1280 * hidden + hidden
    assert modules["front_end"].parameters == modules["front_end"].trainable == linguistic + paralinguistic
    assert 0.003 < report.trainable_share < 0.006
    assert all(phase.trainable == linguistic + paralinguistic for phase in report.phases)


def test_the_paper_s_experiment_has_the_published_sizes():
    """HuBERT-large and Llama-3.1-8B, of which only LoRA and the front end train: well under one percent."""
    report = size(HPARAMS / "iemocap_ib.yaml")
    modules = {module.name: module for module in report.modules}
    assert (modules["encoder"].parameters, modules["encoder"].trainable) == (315_438_720, 0)
    assert (modules["llm"].parameters, modules["llm"].trainable) == (8_030_261_248, 0)
    # Rank 16 on q, k, v and o of 32 layers: r * (in + out), with 1024 outputs of k and v.
    assert modules["llm.lora"].trainable == 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert modules["front_end"].trainable == modules["front_end"].parameters
    assert 0.001 < report.trainable_share < 0.01
