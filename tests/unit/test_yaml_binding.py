"""The walker catches what it must, and only that."""

import pytest

from speechbrain_emo.yaml_binding import check_yaml


def only(problems):
    assert len(problems) == 1, [str(p) for p in problems]
    return problems[0]


GOOD = """
seed: 1
size: !ref <seed> + 3
layers:
    first: !new:torch.nn.Linear
        in_features: !ref <size>
        out_features: 2
optimizer: !name:torch.optim.AdamW
    betas: [0.9, 0.98]
seeded: !apply:torch.manual_seed [!ref <seed>]
pool: !name:torch.nn.functional.relu
math: !module:math
"""


def test_a_right_file_has_no_problem_and_builds_nothing(monkeypatch):
    import torch

    def refuse(*args, **kwargs):
        raise AssertionError("something was built")

    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda self, in_features, out_features: refuse())
    assert check_yaml(GOOD) == []


@pytest.mark.parametrize(
    "right,wrong,key,message",
    [
        (
            "out_features: 2",
            "out_features: 2\n        biass: true",
            "layers[first]",
            "unexpected keyword argument 'biass'",
        ),
        ("        out_features: 2\n", "", "layers[first]", "missing a required argument: 'out_features'"),
        ("betas:", "beta:", "optimizer", "unexpected keyword argument 'beta'"),
        ("AdamW", "AdamV", "optimizer", "there is no torch.optim.AdamV"),
        ("!new:torch.nn.Linear", "!new:torch.nn.functional.linear", "layers[first]", "needs a class"),
        ("!apply:torch.manual_seed [", "!apply:torch.nn.Linear [", "seeded", "needs a function"),
        ("[!ref <seed>]", "[1, 2, 3, 4]", "seeded", "too many positional arguments"),
        ("!ref <size>", "!ref <sise>", "(file)", "sise"),
        ("!module:math", "!module:math.sqrt", "math", "no module"),
        ("!name:torch.nn.functional.relu", "!nome:torch.nn.functional.relu", "pool", "unknown tag"),
    ],
)
def test_each_kind_of_mistake_is_caught_at_its_place(right, wrong, key, message):
    assert right in GOOD
    problem = only(check_yaml(GOOD.replace(right, wrong, 1)))
    assert problem.key == key and message in problem.message


def test_every_mistake_is_told_at_once():
    text = GOOD.replace("betas:", "beta:").replace("out_features", "outs")
    assert [p.key for p in check_yaml(text)] == ["layers[first]", "optimizer"]


def test_a_name_may_leave_arguments_open_and_a_new_may_not():
    assert check_yaml("a: !name:torch.nn.Linear\n    in_features: 3\n") == []
    assert "missing" in only(check_yaml("a: !new:torch.nn.Linear\n    in_features: 3\n")).message


def test_included_files_are_walked(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "inner.yaml").write_text(
        "layer: !new:torch.nn.Linear\n    in_feature: 1\n    out_features: 1\n"
    )
    outer = tmp_path / "outer.yaml"
    outer.write_text("part: !include:part/inner.yaml\nsize: !ref <part[layer]>\n")
    assert only(check_yaml(outer)).key == "part[layer]"
    outer.write_text("part: !include:part/absent.yaml\n")
    assert "absent.yaml" in only(check_yaml(outer)).message


def test_overrides_and_placeholders():
    text = "data: !PLACEHOLDER\nfolder: !ref <data>/x\nlayer: !name:torch.nn.Linear\n    in_features: 3\n"
    assert check_yaml(text) == []
    assert only(check_yaml(text, "layer: {in_featuress: 3}")).key == "layer"
    assert "datas" in only(check_yaml(text, "datas: /x")).message


def test_code_that_runs_early_is_refused_unread(tmp_path):
    witness = tmp_path / "witness"
    text = f"a: !applyref:pathlib.Path.touch [{witness}]\nb: 1\n"
    assert "!applyref:" in only(check_yaml(text)).tag
    assert not witness.exists()


def test_a_module_that_fails_to_import_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_for_the_test.py").write_text("import not_a_module_of_this_machine\n")
    monkeypatch.syspath_prepend(tmp_path)
    problem = only(check_yaml("a: !name:broken_for_the_test.thing\nb: 1\n"))
    assert "not_a_module_of_this_machine" in problem.message


def test_an_override_that_names_another_class_would_be_ignored_and_is_told():
    text = "layer: !name:torch.nn.Linear\n    in_features: 3\n"
    problems = check_yaml(text, "layer: !name:torch.nn.Bilinear {in1_features: 3}")
    assert "keeps the tag of the file, !name:torch.nn.Linear" in problems[0].message
    assert check_yaml(text, "layer: !name:torch.nn.Linear {in_features: 4}") == []


def test_a_reference_to_a_later_reference_does_not_load_and_is_told():
    from hyperpyyaml import load_hyperpyyaml

    text = "a: {x: !ref <b>}\nb: !ref <c[d]>\nc: {d: {e: 1}}\n"
    with pytest.raises(Exception, match="!ref"):
        load_hyperpyyaml(text)
    assert "move that one up" in only(check_yaml(text)).message
    assert check_yaml("c: {d: {e: 1}}\nb: !ref <c[d]>\na: {x: !ref <b>}\n") == []
