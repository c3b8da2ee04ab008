"""Exported models are data: nothing in them may run, and nothing that the manifest does not list is
opened."""

import json
import os
import pickle
import shutil

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_emo.inference import EmotionExplainer
from speechbrain_emo.inference.export import export_model
from speechbrain_emo.inference.safe_loading import (
    ALLOWED_CLASSES,
    UnsafeModelError,
    check_relative_path,
    check_yaml,
    load_checked_yaml,
    sha256_of,
    verify_folder,
)
from tests.tiny import build_tiny_system


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    system = build_tiny_system(folder)
    return export_model(
        folder / "model", system.model, system.factories, system.answer_format, system.tasks, system.explain
    )


@pytest.fixture
def model(exported, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(exported, tmp_path / "model")


def relist(folder, name):
    """Make the manifest agree with a changed file, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# MARK is replaced by a path; a text that is acted on makes that file.
DANGEROUS = {
    "apply": "a: !apply:pathlib.Path.touch [!new:pathlib.Path [MARK]]",
    "apply_system": "a: !apply:os.system ['touch MARK']",
    "new": "a: !new:subprocess.Popen\n  args: [touch, MARK]",
    "nested": "a:\n  b:\n  - c: {d: [1, {e: !apply:os.system ['touch MARK']}]}",
    "in_an_allowed_class": "f: !new:speechbrain_emo.prompts.tasks.AnswerFormat\n"
    "  fields: {emotion: !apply:os.system ['touch MARK']}",
    "python_tag": "a: !!python/object/apply:os.system ['touch MARK']",
    "verbatim_tag": "a: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch MARK']",
    "tag_handle": "%TAG !e! tag:yaml.org,2002:python/object/apply:\n---\na: !e!os.system ['touch MARK']",
    "tuple_plain": "a: (!!python/object/apply:os.system ['touch MARK'])",
    "tuple_tag": "a: !tuple \"(!!python/object/apply:os.system ['touch MARK'])\"",
    "applyref": "a: !applyref:os.system ['touch MARK']",
    "anchor": "a: &x !apply:os.system ['touch MARK']\nb: *x",
    "key": "? !apply:os.system ['touch MARK']\n: 1",
    "ref_attribute": "a: !new:pathlib.Path [MARK]\nb: !ref <a.touch>",
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_text_that_runs_code_is_refused_before_anything_runs(name, tmp_path):
    mark = tmp_path / "mark"
    text = DANGEROUS[name].replace("MARK", str(mark))
    with pytest.raises(UnsafeModelError, match=r"hyperparams\.yaml, line \d+: "):
        load_checked_yaml(text, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["apply_system", "new", "nested", "in_an_allowed_class", "tuple_plain", "anchor"]
)
def test_without_the_check_these_texts_do_run(name, tmp_path):
    """Otherwise the test above would prove nothing."""
    mark = tmp_path / "mark"
    try:
        load_hyperpyyaml(DANGEROUS[name].replace("MARK", str(mark)))["a"].wait(10)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # The exit status in place of a value.
    assert mark.exists()


@pytest.mark.parametrize(
    "text, what, line",
    [
        ("a: 1\nb: !apply:os.getcwd []", "!apply:os.getcwd", 2),
        ("a: !name:os.system", "!name:os.system", 1),
        ("a: !module:os", "!module:os", 1),
        ("a: !include:other.yaml", "!include:other.yaml", 1),
        ("b: 1\na: !copy <b>", "!copy", 2),
        ("a: !ref <b>", "<b>", 1),
        ("a: !ref <model_folder>/../x", "<model_folder>/../x", 1),
        ("a: !ref <model_folder[0]>", "<model_folder[0]>", 1),
        ("a: !new:os.path.join [b]", "!new:os.path.join", 1),
        ("a: !new:speechbrain_emo.prompts.tasks.AnswerFormat [b]", "AnswerFormat", 1),
        ("a: !new:speechbrain_emo.prompts.tasks.AnswerFormat.parse {}", "parse", 1),
        ("a: !!set {b}", "set", 1),
        ("a: !PLACEHOLDER", "!PLACEHOLDER", 1),
        ("a: &x 1", "anchor", 1),
        ("a: {c: 1}\nb:\n  <<: {d: 1}", "merge", 3),
        ("a: 1\nb: 2\na: 3", "'a' stands there twice", 3),
        ("a: {b: {c: 1, c: 2}}", "'c' stands there twice", 1),
        ("[a]: 1", "a key that is a list", 1),
        ("a: (1, 2)", "tuple", 1),
        ('a:\n- "(1, 2)"', "tuple", 2),
        ("%YAML 1.1\n---\na: 1", "directive", 1),
    ],
)
def test_message_names_the_tag_and_the_line(text, what, line):
    with pytest.raises(UnsafeModelError) as caught:
        check_yaml(text, "h.yaml")
    if "\n---" not in text:
        assert str(caught.value).startswith(f"h.yaml, line {line}: ")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "text", ["- a", "a: [", "a: 1\n---\nb: 2", "", "a: " + "[" * 5000, "x" * 5_000_000, "a: \x00"]
)
def test_other_texts_give_one_clear_error(text):
    with pytest.raises(UnsafeModelError, match=r"^h\.yaml"):
        check_yaml(text, "h.yaml")


def test_plain_values_are_what_they_were(tmp_path):
    text = (
        'model_folder:\na: [1, 1.0e-5, true, null, "no", "1e-3", "x: y # z"]\n'
        "b: |-\n  (a text)\nc: !ref <model_folder>/llm"
    )
    values = load_checked_yaml(text, tmp_path)
    assert values["a"] == [1, 1e-5, True, None, "no", "1e-3", "x: y # z"]
    assert values["b"] == "(a text)"
    assert values["c"] == f"{tmp_path}/llm"


def test_every_allowed_class_exists_and_is_ours():
    import pydoc

    for name in ALLOWED_CLASSES:
        assert name.startswith("speechbrain_emo.")
        found = pydoc.locate(name)
        assert isinstance(found, type) and f"{found.__module__}.{found.__qualname__}" == name


@pytest.mark.parametrize(
    "path",
    [
        "../x.json",
        "/etc/x.json",
        "a/../../x.json",
        "./x.json",
        "a//x.json",
        "a\\x.json",
        "C:x.json",
        "",
        None,
        "a/\0.json",
    ],
)
def test_paths_out_of_the_folder_are_refused(path):
    with pytest.raises(UnsafeModelError):
        check_relative_path(path)


@pytest.mark.parametrize(
    "path", ["a.ckpt", "llm/pytorch_model.bin", "x.PT", "x.pkl", "modeling.py", "weights", "x.exe"]
)
def test_pickles_code_and_unknown_endings_are_refused(path):
    with pytest.raises(UnsafeModelError, match="refused"):
        check_relative_path(path)


def test_the_export_passes(model):
    assert "hyperparams.yaml" in verify_folder(model)["files"]


def test_a_changed_byte_is_found(model):
    path = model / "front_end.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnsafeModelError, match=r"front_end\.safetensors: its content differs"):
        EmotionExplainer.from_hparams(source=model)


def test_a_cut_file_is_found(model):
    path = model / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnsafeModelError, match=r"model\.safetensors: \d+ bytes, manifest\.json says \d+"):
        EmotionExplainer.from_hparams(source=model)


def test_a_missing_file_is_found(model):
    (model / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UnsafeModelError, match=r"adapter_config\.json: listed in manifest\.json but missing"):
        EmotionExplainer.from_hparams(source=model)


def test_a_link_out_of_the_folder_is_refused(model, tmp_path):
    path = model / "encoder" / "config.json"
    shutil.move(path, tmp_path / "config.json")
    path.symlink_to(tmp_path / "config.json")
    with pytest.raises(UnsafeModelError, match=r"config\.json: a link to .*outside"):
        EmotionExplainer.from_hparams(source=model)


def test_a_linked_folder_is_refused(model, tmp_path):
    shutil.move(model / "llm", tmp_path / "llm")
    (model / "llm").symlink_to(tmp_path / "llm")
    with pytest.raises(UnsafeModelError, match="link"):
        EmotionExplainer.from_hparams(source=model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_config.json", "modeling_x.py"])
def test_an_unlisted_file_beside_a_backbone_is_refused(model, name):
    """transformers looks for some files by name."""
    (model / "llm" / name).write_text("{}")
    with pytest.raises(UnsafeModelError, match=rf"{name}: not listed"):
        EmotionExplainer.from_hparams(source=model)


def test_an_unlisted_file_at_the_top_is_not_opened(model):
    (model / "notes.pkl").write_bytes(b"not a pickle")
    (model / "README.md").write_text("corrected by a reader")
    assert EmotionExplainer.from_hparams(source=model).labels


def test_a_listed_pickle_is_refused_and_not_read(model, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'mark'}",)

    (model / "front_end.ckpt").write_bytes(pickle.dumps(Touch()))
    relist(model, "front_end.ckpt")
    with pytest.raises(UnsafeModelError, match=r"front_end\.ckpt.*refused"):
        EmotionExplainer.from_hparams(source=model)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_with_another_ending_is_not_unpickled(model, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'mark'}",)

    (model / "front_end.safetensors").write_bytes(pickle.dumps(Touch()))
    relist(model, "front_end.safetensors")
    with pytest.raises(UnsafeModelError, match=r"front_end\.safetensors"):
        EmotionExplainer.from_hparams(source=model)
    assert not (tmp_path / "mark").exists()


def test_a_relisted_hostile_yaml_is_refused(model, tmp_path):
    path = model / "hyperparams.yaml"
    path.write_text(path.read_text() + f"x: !apply:os.system ['touch {tmp_path / 'mark'}']\n")
    relist(model, "hyperparams.yaml")
    with pytest.raises(UnsafeModelError, match=r"hyperparams\.yaml, line \d+: tag '!apply:os.system'"):
        EmotionExplainer.from_hparams(source=model)
    assert not (tmp_path / "mark").exists()


def test_code_named_by_a_config_is_refused(model):
    path = model / "llm" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModelForCausalLM": "x.Y"}}))
    relist(model, "llm/config.json")
    with pytest.raises(UnsafeModelError, match="auto_map"):
        EmotionExplainer.from_hparams(source=model)


@pytest.mark.parametrize("source", ["/etc", "../backbone", "a/b/c", "https://example.org/x", "~/llm"])
def test_a_backbone_outside_the_folder_is_refused(model, source):
    path = model / "hyperparams.yaml"
    path.write_text(path.read_text().replace("!ref <model_folder>/llm", source))
    relist(model, "hyperparams.yaml")
    with pytest.raises(UnsafeModelError, match="neither inside the model folder nor a name on the hub"):
        EmotionExplainer.from_hparams(source=model)


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("    r: 2", "    r: 2\n    megatron_core: antigravity\n    megatron_config: {}", "megatron_core"),
        ("  lora:", "  attn_implementation: owner/kernel\n  lora:", "owner/kernel"),
        ("source: !ref <model_folder>/llm", "architecture: {model_type: llama}", "source is None"),
    ],
)
def test_settings_that_import_code_are_refused(model, old, new, what):
    path = model / "hyperparams.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    relist(model, "hyperparams.yaml")
    with pytest.raises(UnsafeModelError, match=what):
        EmotionExplainer.from_hparams(source=model)


def test_a_kernel_named_by_a_config_is_refused(model):
    path = model / "encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attn_implementation": "owner/kernel"}))
    relist(model, "encoder/config.json")
    with pytest.raises(UnsafeModelError, match="owner/kernel"):
        EmotionExplainer.from_hparams(source=model)


@pytest.mark.parametrize(
    "name", ["llm/model.safetensors", "adapter/adapter_model.safetensors", "encoder/config.json"]
)
def test_listed_rubbish_is_one_clear_error(model, name):
    (model / name).write_bytes(b"{}" if name.endswith("json") else b"rubbish")
    relist(model, name)
    with pytest.raises((UnsafeModelError, OSError, ValueError)) as caught:
        EmotionExplainer.from_hparams(source=model)
    assert "\n" not in str(caught.value).strip() or name.split("/")[0] in str(caught.value)


def test_unknown_and_missing_keys_are_refused(model):
    path = model / "hyperparams.yaml"
    text = path.read_text()
    path.write_text(text + "jit: true\n")
    relist(model, "hyperparams.yaml")
    with pytest.raises(UnsafeModelError, match=r"unknown keys \['jit'\]"):
        EmotionExplainer.from_hparams(source=model)
    path.write_text(text.replace("slot_kinds:", "slots:"))
    relist(model, "hyperparams.yaml")
    with pytest.raises(UnsafeModelError, match="unknown keys"):
        EmotionExplainer.from_hparams(source=model)


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda m: m.update(format="x"), "not the manifest"),
        (lambda m: m.update(format_version=99), "format version 99"),
        (lambda m: m["files"].pop("hyperparams.yaml"), "lists no hyperparams.yaml"),
        (lambda m: m["files"].update({"../../x.json": {"size": 1, "sha256": "0" * 64}}), "leads out"),
        (lambda m: m["files"].update({"x.json": {"size": "1", "sha256": "0" * 64}}), "no size and sha256"),
        (lambda m: m["files"].pop("front_end.safetensors"), "front_end.safetensors"),
        (lambda m: m.update(external={"llm": 3}), "external"),
    ],
)
def test_bad_manifests(model, change, what):
    edit_manifest(model, change)
    with pytest.raises(UnsafeModelError, match=what):
        EmotionExplainer.from_hparams(source=model)


def test_a_manifest_that_is_no_json(model):
    (model / "manifest.json").write_text("{")
    with pytest.raises(UnsafeModelError, match="not JSON"):
        EmotionExplainer.from_hparams(source=model)
