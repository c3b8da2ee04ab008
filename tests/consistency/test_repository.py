"""Recipes, the direction of imports, the front door, and what must not be in a tracked file."""

import ast
import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "speechbrain_emo"
RECIPES = sorted(
    p for p in (REPOSITORY / "recipes").iterdir() if p.is_dir() and not p.name.startswith(("_", "."))
)

# Room -> rooms that it may import (docs/architecture.md). Modules beside the rooms stand for themselves.
ALLOWED = {
    "lobes": {"lobes"},
    "dataio": {"dataio"},
    "alignment": {"alignment", "dataio"},
    "metrics": {"metrics", "dataio"},
    "prompts": {"prompts", "lobes", "dataio"},
    "phases": {"phases", "prompts", "lobes", "dataio"},
    # A training ends by writing the folder that inference reads: `inference.export` alone, which imports no
    # brain.
    "brains": {
        *(
            "brains",
            "phases",
            "prompts",
            "lobes",
            "dataio",
            "metrics",
            "results",
            "plots",
            "baselines",
            "alignment",
        ),
        "inference.export",
    },
    "inference": {
        "inference",
        "alignment",
        "brains",
        "phases",
        "prompts",
        "lobes",
        "dataio",
        "metrics",
        "results",
        "plots",
    },
    "baselines": {"baselines", "metrics", "dataio", "results"},
    "results": {"results", "metrics", "dataio"},
    "report": {"report", "brains", "results", "metrics", "dataio"},
    "listening": {"listening", "report", "results", "metrics", "dataio"},
    "plots": {"plots", "metrics", "dataio"},
}


def files():
    """Tracked files and new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    paths = [REPOSITORY / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def imports(path):
    """Dotted names that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = path.relative_to(REPOSITORY).with_suffix("").parts[: -node.level]
                yield ".".join([*base, node.module or ""]).rstrip("."), node.lineno
            else:
                yield node.module, node.lineno
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def wrong_directions(room, path):
    """Imports of a module of ``room`` that go against the arrows."""
    found = set()
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "recipes":
            found.add(f"{path.name}:{line} imports {name}")
        elif (
            parts[0] == "speechbrain_emo"
            and len(parts) > 1
            and not ALLOWED[room] & {parts[1], ".".join(parts[1:3])}
        ):
            # `from speechbrain_emo import __version__` names no room.
            if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file():
                found.add(f"{path.name}:{line} imports {name}")
    return sorted(found)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_dependencies_point_one_way(room):
    folder = PACKAGE / room
    modules = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
    modules = [path for path in modules if path.is_file()]
    assert modules, f"there is no room {room}: take it out of ALLOWED"
    wrong = [entry for path in modules for entry in wrong_directions(room, path)]
    assert not wrong, f"{room} may import {sorted(ALLOWED[room])} only:\n" + "\n".join(wrong)


def test_every_room_has_a_rule():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    assert rooms <= set(ALLOWED), f"say in ALLOWED what {sorted(rooms - set(ALLOWED))} may import"


def test_a_wrong_direction_would_be_caught(tmp_path):
    module = tmp_path / "lobe.py"
    module.write_text(
        "def f():\n    from speechbrain_emo.brains import speech_llm_brain\n    return speech_llm_brain\n"
    )
    assert any("speechbrain_emo.brains" in entry for entry in wrong_directions("lobes", module))
    module.write_text(
        "import torch\nfrom speechbrain_emo.lobes.speech_llm import SpeechLLM\nSpeechLLM, torch\n"
    )
    assert wrong_directions("lobes", module) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=[p.name for p in RECIPES])
def test_a_recipe_is_complete_and_named_in_the_readme(recipe):
    dataset = recipe.name.lower()
    for name in (f"{dataset}_prepare.py", "README.md", "RESULTS.md"):
        assert (recipe / name).is_file(), f"recipes/{recipe.name} lacks {name}"
    front_door = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"recipes/{recipe.name}" in front_door, f"the table in README.md leaves recipes/{recipe.name} out"
    text = (recipe / "README.md").read_text(encoding="utf-8").lower()
    for word in ("licen", "fault"):
        assert word in text, f"recipes/{recipe.name}/README.md says nothing about its {word}..."
    # An experiment of its own, or one over several corpora that names this preparation.
    module = f"recipes.{recipe.name}.{dataset}_prepare"
    experiments = [p.read_text(encoding="utf-8") for p in (REPOSITORY / "hparams").glob("*.yaml")]
    own = list((REPOSITORY / "hparams").glob(f"{dataset}_*.yaml"))
    own += list((REPOSITORY / "hparams" / "corpora").glob(f"{dataset}.yaml"))
    assert own or any(module in text for text in experiments), (
        f"no experiment in hparams/ prepares {recipe.name}"
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=[p.name for p in RECIPES])
def test_a_row_of_results_names_the_command_that_made_it(recipe):
    text = (recipe / "RESULTS.md").read_text(encoding="utf-8")
    assert "train.py" in text, f"recipes/{recipe.name}/RESULTS.md names no command"


def test_no_path_of_a_machine_in_any_file():
    # Put together here, so that this file does not hold them.
    markers = [
        f"/{'work'}/",
        f"/{'farm'}/",
        f".{'library'}/",
        f"/tmp/{'bash'}_jobs",
        f"/{'root'}/",
        f"/opt/{'pypi'}",
    ]
    markers += [f"{REPOSITORY}/", f"/{'home'}/"]
    found = []
    for path in files():
        if path.suffix in (".png", ".wav", ".safetensors", ".gz", ".flac"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if any(marker in line for marker in markers):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_large_or_generated_file():
    large = [
        f"{p.relative_to(REPOSITORY)}: {p.stat().st_size} bytes" for p in files() if p.stat().st_size > 2**20
    ]
    assert not large, "\n".join(large)
    generated = [
        str(p.relative_to(REPOSITORY)) for p in files() if p.suffix in (".pyc", ".ckpt", ".pt", ".wav")
    ]
    assert not generated, f"data and weights do not belong here: {generated}"


def test_the_two_commands_of_the_readme_are_targets_and_ci_runs_the_tests():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", readme)) | set(
        re.findall(r"^make ([a-z]+)", readme, re.MULTILINE)
    )
    assert {"demo", "test"} <= named <= targets
    assert re.search(r"^make test$", (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_extras_of_setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    extras = parser["options.extras_require"]
    assert {"demo", "align", "emotion2vec", "eval", "dev", "all"} <= set(extras)
    assert parser["options"]["python_requires"] == ">=3.10"
    # ConfigParser has put the other extras into `all` by now.
    for name in set(extras) - {"all"}:
        assert extras[name].strip() in extras["all"], f"extra {name} is not in `all`"
    assert "montreal" not in extras["all"].replace("#", "").lower()
    # What `make setup` installs is what these tests and the demo need.
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "eval", "dev"} <= set(
        re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)[1].split(",")
    )


def test_every_module_that_is_imported_is_declared():
    """A package that only another one happens to bring would vanish with it."""
    import sys

    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    declared = (
        parser["options"]["install_requires"] + "\n" + "\n".join(parser["options.extras_require"].values())
    )
    packages = {
        re.split(r"[<>=;\[ ]", line)[0].lower() for line in declared.splitlines() if line[:1].isalpha()
    }
    provides = {
        "sklearn": "scikit-learn",
        "yaml": "hyperpyyaml",
        "ruamel": "hyperpyyaml",
        "espeakng_loader": "espeakng-loader",
    }
    provides |= {"rouge_score": "rouge-score", "whisper_normalizer": "whisper-normalizer"}
    missing = set()
    for path in [*PACKAGE.rglob("*.py"), *(REPOSITORY / "recipes").rglob("*.py"), REPOSITORY / "train.py"]:
        for name, line in imports(path):
            root = name.split(".")[0]
            own = root in ("speechbrain_emo", "recipes", "__main__") or root in sys.stdlib_module_names
            if not own and provides.get(root, root).lower() not in packages:
                missing.add(f"{path.relative_to(REPOSITORY)}:{line} imports {root}")
    assert not missing, "declare these in setup.cfg:\n" + "\n".join(sorted(missing))
