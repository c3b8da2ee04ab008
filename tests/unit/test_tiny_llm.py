"""The tiny language model's folder is a hub model's folder."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from speechbrain_emo.lobes.tiny_llm import SPECIAL_TOKENS, build_tiny_llm, train_tiny_tokenizer

TEXTS = ["the sky is blue and the sea is blue", "emotion: sad", "pitch: high, speed: slow"] * 3
SIZES = {"vocab_size": 320, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_llm(tmp_path_factory.mktemp("llm"), TEXTS, intermediate_size=48, **SIZES)


def test_folder_loads_through_the_auto_classes(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.vocab_size == len(tokenizer) <= 320
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.pad_token == "<|pad|>" and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len({tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}) == len(SPECIAL_TOKENS)


def test_parameter_count_is_the_closed_form(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    d, ffn, kv = 32, 48, 16
    layer = 2 * d * d + 2 * d * kv + 3 * d * ffn + 2 * d
    assert sum(p.numel() for p in model.parameters()) == model.config.vocab_size * d + 2 * layer + d


@pytest.mark.parametrize(
    "text", ["the sky is blue.", " sad", "Ärger, naïve 漢字 !", "a  b\n\tc", "don't , stop"]
)
def test_text_survives_the_tokenizer(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chat_template_has_all_roles_and_single_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [
        {"role": r, "content": c} for r, c in (("system", "be brief"), ("user", "hi"), ("assistant", "yo"))
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|bos|><|system|>be brief<|end|><|user|>hi<|end|><|assistant|>yo<|end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 3
    asked = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked) and asked.endswith("<|assistant|>")
    with pytest.raises(Exception, match="role tool is unknown"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_same_seed_same_weights_and_callers_generator_untouched(tmp_path, folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = build_tiny_llm(tmp_path / "again", TEXTS, intermediate_size=48, **SIZES)
    assert torch.equal(torch.rand(3), expected)
    other = build_tiny_llm(tmp_path / "other", TEXTS, intermediate_size=48, seed=7, **SIZES)
    a, b, c = (
        AutoModelForCausalLM.from_pretrained(f).model.layers[0].mlp.up_proj.weight
        for f in (folder, again, other)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (
        AutoTokenizer.from_pretrained(again).get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 200}, "at least 262"),
        ({"hidden_size": 30}, "hidden_size is 30"),
        ({"num_heads": 32}, "even whole number"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads, 3"),
    ],
)
def test_bad_sizes_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build_tiny_llm(tmp_path / "x", TEXTS, **{**SIZES, **change})


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="needs text"):
        train_tiny_tokenizer(["", ""])
