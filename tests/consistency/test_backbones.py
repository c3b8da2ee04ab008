"""The published sizes, without their weights: every fragment has the parameter count that it states."""

from pathlib import Path

import pytest
import torch
import transformers
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "hparams" / "backbones"

# Independent of the fragments: model cards and papers (HuBERT: 316 M, Whisper-large-v3 encoder: 637 M of 1
# 543 M,
# Llama-3.1-8B: 8.03 B, Qwen2.5-7B: 7.62 B, Vicuna-7B: 6.74 B, Qwen2.5-0.5B: 0.49 B).
PUBLISHED = {
    "hubert_large": (315_438_720, "facebook/hubert-large-ll60k"),
    "whisper_large_v3": (636_968_960, "openai/whisper-large-v3"),
    "llama3_8b": (8_030_261_248, "meta-llama/Llama-3.1-8B-Instruct"),
    "qwen2_5_7b": (7_615_616_512, "Qwen/Qwen2.5-7B-Instruct"),
    "vicuna_7b": (6_738_415_616, "lmsys/vicuna-7b-v1.5"),
    "cosyvoice2": (494_032_768, "FunAudioLLM/CosyVoice2-0.5B"),
}


def fragments():
    """(name, mapping) of every backbone; tiny.yaml holds two."""
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "architecture" in content:
            yield path.stem, content
        else:
            for part, mapping in content.items():
                yield f"{path.stem}.{part}", mapping


def build_on_meta(fragment):
    """The transformers model of a fragment on the meta device, without a byte of weights."""
    config = transformers.AutoConfig.for_model(**fragment["architecture"])
    auto = {"encoder": transformers.AutoModel, "llm": transformers.AutoModelForCausalLM}[fragment["kind"]]
    with torch.device("meta"):
        model = auto.from_config(config)
    return model.encoder if config.model_type == "whisper" else model


@pytest.mark.parametrize("name,fragment", list(fragments()), ids=[name for name, _ in fragments()])
def test_the_stated_number_of_parameters_is_the_true_one(name, fragment):
    model = build_on_meta(fragment)
    # transformers makes HuBERT's mask embedding with the legacy torch.Tensor(n), which ignores the device: 4
    # KB.
    assert sum(parameter.numel() for parameter in model.parameters() if not parameter.is_meta) <= 1024
    assert sum(parameter.numel() for parameter in model.parameters()) == fragment["num_parameters"]
    assert {"kind", "source", "revision", "dtype", "num_parameters", "architecture"} <= set(fragment)
    assert getattr(torch, fragment["dtype"]).is_floating_point


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_backbones_have_their_published_size_and_name(name):
    fragment = dict(fragments())[name]
    assert (fragment["num_parameters"], fragment["source"]) == PUBLISHED[name]


@pytest.mark.parametrize("name,fragment", list(fragments()), ids=[name for name, _ in fragments()])
def test_every_architecture_key_is_one_that_the_config_class_knows(name, fragment):
    """A config accepts any keyword; a misspelt one would leave the default size in place unnoticed."""
    config = transformers.AutoConfig.for_model(fragment["architecture"]["model_type"])
    unknown = set(fragment["architecture"]) - set(config.to_dict()) - {"model_type"}
    assert not unknown, f"{name}: {sorted(unknown)} are no arguments of {type(config).__name__}"
