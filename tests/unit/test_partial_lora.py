"""Partial LoRA: each adapter changes its own positions and no other, in every kind of pass."""

import json

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from speechbrain_emo.lobes.partial_lora import PartialLoRALinear
from speechbrain_emo.lobes.speech_llm import SpeechLLM
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.prompts import AnswerField, Example, Packer, Slot, Turn

TEXTS = [
    "the sky is blue and the sea is blue",
    "emotion: sad happy angry neutral",
    "listen to the speech",
] * 3
SIZES = {"vocab_size": 320, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
ADAPTERS = {
    "emotion": {"kinds": ["emotion"], "r": 4, "lora_alpha": 16, "lora_dropout": 0.0},
    "text": {"kinds": ["text", "answer"], "r": 4, "lora_alpha": 16, "lora_dropout": 0.0},
}
LENGTHS = (3, 7, 5)
EMOTION = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_llm(
        tmp_path_factory.mktemp("llm"), TEXTS, intermediate_size=48, initializer_range=0.2, **SIZES
    )


def randomize(llm, names=("emotion", "text"), seed=0):
    """B starts at zero, which would make every adapter the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            for module in llm.partial.modules(name):
                for p in module.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return llm


@pytest.fixture
def llm(folder):
    return randomize(SpeechLLM(folder, lora=ADAPTERS))


def batch(llm, side="right", with_answer=True, lengths=LENGTHS, source="speech"):
    """Prompts whose emotion slot stands in the middle, of different lengths."""
    packer = Packer(llm.tokenizer, ["emotion"])
    rows = []
    for i, length in enumerate(lengths):
        turn = Turn("user", ("listen " * (i + 1), Slot("emotion", 0, source), " emotion:"))
        answer = (AnswerField("emotion", "", ("sad", "happy", "neutral")[i % 3]),)
        rows.append(packer.encode(Example(f"u{i}", "e", (turn,), answer), [{"emotion": length}], with_answer))
    packed = packer.collate(rows, side)
    noise = torch.randn(
        len(lengths), max(lengths), llm.hidden_size, generator=torch.Generator().manual_seed(7)
    )
    return packed, noise


def hidden_states(llm, packed, slots):
    """Hidden states of all layers and the outputs of every adapted projection."""
    projections = {}

    def keep(path):
        return lambda module, args, output: projections.__setitem__(path, (args[0], output))

    hooks = [layer.register_forward_hook(keep(path)) for path, layer in llm.partial.layers.items()]
    with torch.no_grad(), llm._kinds(packed):
        states = llm.causal_lm.get_decoder()(
            inputs_embeds=llm.embed(packed, {"emotion": slots}),
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            output_hidden_states=True,
        ).hidden_states
    for hook in hooks:
        hook.remove()
    return states, projections


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["emotion", "text"])
def test_nothing_changes_before_the_first_bound_position(llm, name, side):
    """Also the defect of the released code: an adapter that is never active would change nothing anywhere."""
    packed, slots = batch(llm, side)
    before, _ = hidden_states(llm, packed, slots)
    randomize(llm, [name], seed=1)
    after, _ = hidden_states(llm, packed, slots)
    bound = packed.kinds == EMOTION if name == "emotion" else (packed.kinds == 1) | (packed.kinds == 2)
    for row in range(len(LENGTHS)):
        first = int(bound[row].nonzero()[0])
        valid = packed.attention_mask[row].bool()
        for one, two in zip(before, after, strict=True):
            early = valid.clone()
            early[first:] = False
            assert torch.equal(one[row][early], two[row][early])
        late = valid.clone()
        late[:first] = False
        assert (before[-1][row][late] != after[-1][row][late]).any(-1).all()


@pytest.mark.parametrize("name", ["emotion", "text"])
def test_a_projection_changes_at_the_bound_positions_only(llm, name):
    """In the first layer, where inputs are the same: bit-identical at all other positions."""
    packed, slots = batch(llm)
    _, before = hidden_states(llm, packed, slots)
    randomize(llm, [name], seed=1)
    _, after = hidden_states(llm, packed, slots)
    valid = packed.attention_mask.bool()
    bound = (packed.kinds == EMOTION) if name == "emotion" else (packed.kinds == 1) | (packed.kinds == 2)
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"):
        assert torch.equal(before[path][0], after[path][0])
        changed = (before[path][1] != after[path][1]).any(-1)
        assert torch.equal(changed & valid, bound & valid)


def test_the_equation(llm):
    """y = W x + sum_a m_a (alpha/r) B_a A_a x, position by position."""
    packed, slots = batch(llm)
    _, projections = hidden_states(llm, packed, slots)
    for path, (x, y) in projections.items():
        layer = llm.partial.layers[path]
        wanted = layer.base_layer(x)
        for name, kinds in (("emotion", (EMOTION,)), ("text", (1, 2))):
            module = layer.adapters[name]
            for b in range(x.shape[0]):
                for t in range(x.shape[1]):
                    if int(packed.kinds[b, t]) in kinds:
                        wanted[b, t] += 4.0 * module.lora_B.weight @ (module.lora_A.weight @ x[b, t])
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)


def test_generation_with_a_cache_equals_the_full_forward_pass(llm):
    """Prompt pass and cached steps give the logits of one pass over prompt and answer."""
    packed, slots = batch(llm, "left", False)
    embeddings = llm.embed(packed, {"emotion": slots})
    written = llm.generate(embeddings, packed, 6)
    packer = Packer(llm.tokenizer, ["emotion"])
    for row, length in enumerate(LENGTHS):
        ids = written[row]
        turn = Turn("user", ("listen " * (row + 1), Slot("emotion"), " emotion:"))
        encoded = packer.encode(
            Example("u", "e", (turn,)), [{"emotion": length}], with_answer=False, answer_prefix_ids=ids
        )
        whole = packer.collate([encoded])
        full = llm.embed(whole, {"emotion": slots[row : row + 1]})
        with torch.no_grad(), llm._kinds(whole):
            logits = llm.causal_lm(inputs_embeds=full, position_ids=whole.position_ids).logits[0]
        prompt = packer.collate(
            [packer.encode(Example("u", "e", (turn,)), [{"emotion": length}], with_answer=False)]
        )
        start = prompt.token_ids.shape[1]
        cached, cache = llm.extend(full[:, :start], None, prompt)
        for step, token in enumerate(ids):
            torch.testing.assert_close(cached, logits[start + step - 1], atol=1e-5, rtol=1e-5)
            assert int(cached.argmax()) == token
            cached, cache = llm.extend(full[:, start + step : start + step + 1], cache, prompt)
        assert int(cached.argmax()) == llm.end_of_answer_id or len(ids) == 6


def test_beams_take_the_kinds_of_their_prompt(llm):
    """Beam search of a batch equals beam search of each row alone."""
    packed, slots = batch(llm, "left", False)
    together = llm.generate(llm.embed(packed, {"emotion": slots}), packed, 5, num_beams=4)
    for row, length in enumerate(LENGTHS):
        packer = Packer(llm.tokenizer, ["emotion"])
        turn = Turn("user", ("listen " * (row + 1), Slot("emotion"), " emotion:"))
        one = packer.collate(
            [packer.encode(Example("u", "e", (turn,)), [{"emotion": length}], with_answer=False)], "left"
        )
        alone = llm.generate(llm.embed(one, {"emotion": slots[row : row + 1]}), one, 5, num_beams=4)
        assert alone[0] == together[row]


def test_scores_of_labels_equal_full_passes(llm):
    packed, slots = batch(llm, "left", False)
    candidates = [llm.tokenizer(x, add_special_tokens=False)["input_ids"] for x in ("sad", "happy blue")]
    scores = llm.score(llm.embed(packed, {"emotion": slots}), packed, candidates)
    packer = Packer(llm.tokenizer, ["emotion"])
    for row, length in enumerate(LENGTHS):
        turn = Turn("user", ("listen " * (row + 1), Slot("emotion"), " emotion:"))
        for k, text in enumerate(("sad", "happy blue")):
            example = Example("u", "e", (turn,), (AnswerField("emotion", "", text),))
            whole = packer.collate([packer.encode(example, [{"emotion": length}])])
            loss = llm.answer_loss(llm.embed(whole, {"emotion": slots[row : row + 1]}), whole)
            assert float(scores[row, k]) == pytest.approx(-float(loss.nll_sum / loss.num_tokens), abs=1e-5)


def train(llm, names=("emotion", "text")):
    for name in names:
        for module in llm.trainable_groups()[f"llm.lora.{name}"]:
            module.requires_grad_(True)
    return llm.train()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_adapters_get_a_gradient(folder, checkpointing):
    """The released code's defect, an adapter that is never active, would leave one of them without."""
    llm = SpeechLLM(folder, lora=ADAPTERS, gradient_checkpointing=checkpointing)
    train(randomize(llm))
    packed, slots = batch(llm)
    llm.answer_loss(llm.embed(packed, {"emotion": slots}), packed).weighted_sum.backward()
    for name in ADAPTERS:
        for path, layer in llm.partial.layers.items():
            # What the last layer's emotion positions ask for reaches no answer: theirs are keys and values only.
            reaches = not (name == "emotion" and path == "model.layers.2.self_attn.q_proj")
            for p in layer.adapters[name].parameters():
                assert p.grad is not None and bool(p.grad.any()) == reaches, (name, path)


def test_recomputed_layers_know_the_kinds(folder):
    """Gradients with and without checkpointing are the same, dropout included."""
    adapters = {k: {**v, "lora_dropout": 0.3} for k, v in ADAPTERS.items()}
    gradients = []
    for checkpointing in (False, True):
        llm = train(randomize(SpeechLLM(folder, lora=adapters, gradient_checkpointing=checkpointing)))
        packed, slots = batch(llm)
        slots.requires_grad_()
        torch.manual_seed(3)
        llm.answer_loss(llm.embed(packed, {"emotion": slots}), packed).weighted_sum.backward()
        gradients.append([slots.grad, *(p.grad for m in llm.lora_modules() for p in m.parameters())])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_an_adapter_without_a_position_gets_no_gradient_and_raises_nothing(folder):
    llm = train(randomize(SpeechLLM(folder, lora=ADAPTERS)))
    packed, _ = batch(llm, source="nothing")
    llm.answer_loss(llm.embed(packed, {}), packed).weighted_sum.backward()
    for module in llm.partial.modules("emotion"):
        assert all(p.grad is None or not p.grad.any() for p in module.parameters())
    assert all(p.grad.any() for m in llm.partial.modules("text") for p in m.parameters())


def test_groups_train_one_by_one(folder):
    """Stage 2-1 trains the text adapter alone: the other one stays in eval mode and has no gradient."""
    llm = train(randomize(SpeechLLM(folder, lora=ADAPTERS)), ["text"])
    assert all(m.training for m in llm.partial.modules("text"))
    assert not any(m.training for m in llm.partial.modules("emotion"))
    packed, slots = batch(llm)
    llm.answer_loss(llm.embed(packed, {"emotion": slots}), packed).weighted_sum.backward()
    assert all(p.grad is None for m in llm.partial.modules("emotion") for p in m.parameters())
    assert not {id(p) for m in llm.trainable_groups()["llm.base"] for p in m.parameters(recurse=False)} & {
        id(p) for m in llm.lora_modules() for p in m.parameters()
    }


def test_any_number_of_adapters(folder):
    """Three, one of them on another projection and of another rank; where all act at all kinds they sum."""
    lora = {
        **ADAPTERS,
        "answer": {"kinds": ["answer"], "r": 2, "target_modules": ["o_proj"], "lora_alpha": 4},
    }
    llm = randomize(SpeechLLM(folder, lora=lora), ["emotion", "text", "answer"])
    assert sorted(llm.trainable_groups()) == [
        "llm.base",
        "llm.lora.answer",
        "llm.lora.emotion",
        "llm.lora.text",
    ]
    packed, slots = batch(llm)
    before, _ = hidden_states(llm, packed, slots)
    randomize(llm, ["answer"], 1)
    after, _ = hidden_states(llm, packed, slots)
    answer = packed.kinds == 2
    assert torch.equal(before[1][~answer], after[1][~answer])
    assert (before[1][answer] != after[1][answer]).any(-1).all()


def test_saved_adapters_load_in_peft(llm, folder, tmp_path):
    """Bound to every kind of position, an adapter is a plain LoRA: peft reads its files and computes the same."""
    llm.save_adapter(tmp_path / "both")
    with safe_open(tmp_path / "both" / "emotion" / "adapter_model.safetensors", "pt") as stream:
        assert json.loads(stream.metadata()["bound_to"]) == ["emotion"]
    config = json.loads((tmp_path / "both" / "text" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4
    everywhere = {"text": {**ADAPTERS["text"], "kinds": ["text", "answer", "emotion"]}}
    one = randomize(SpeechLLM(folder, lora=everywhere), ["text"])
    one.save_adapter(tmp_path / "one")
    packed, slots = batch(one)
    embeddings = one.embed(packed, {"emotion": slots})
    base = AutoModelForCausalLM.from_pretrained(folder)
    peft = PeftModel.from_pretrained(base, tmp_path / "one" / "text").eval()
    with torch.no_grad(), one._kinds(packed):
        ours = one.causal_lm(inputs_embeds=embeddings, attention_mask=packed.attention_mask).logits
        theirs = peft(inputs_embeds=embeddings, attention_mask=packed.attention_mask).logits
    mask = packed.attention_mask.bool()
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


def test_checkpoints_bring_the_adapters_back(llm, folder, tmp_path):
    llm.save_checkpoint(tmp_path / "c")
    other = SpeechLLM(folder, lora=ADAPTERS)
    other.load_checkpoint(tmp_path / "c")
    packed, slots = batch(llm)
    with torch.no_grad():
        losses = [
            m.answer_loss(m.embed(packed, {"emotion": slots}), packed).weighted_sum for m in (llm, other)
        ]
    assert torch.equal(*losses)


def test_what_does_not_fit_is_refused(llm, folder, tmp_path):
    llm.save_adapter(tmp_path / "a")
    swapped = {**ADAPTERS, "emotion": {**ADAPTERS["emotion"], "kinds": ["text"]}}
    with pytest.raises(ValueError, match="is bound to"):
        SpeechLLM(folder, lora=swapped).load_adapter(tmp_path / "a")
    with pytest.raises(ValueError, match="r is 4"):
        SpeechLLM(folder, lora={**ADAPTERS, "text": {**ADAPTERS["text"], "r": 2}}).load_adapter(
            tmp_path / "a"
        )
    with pytest.raises(FileNotFoundError, match="third"):
        SpeechLLM(folder, lora={**ADAPTERS, "third": ADAPTERS["text"]}).load_adapter(tmp_path / "a")
    with pytest.raises(ValueError, match="every adapter of a partial LoRA"):
        SpeechLLM(folder, lora={"emotion": ADAPTERS["emotion"], "r": 4})
    with pytest.raises(ValueError, match="unknown keys"):
        SpeechLLM(folder, lora={"emotion": {**ADAPTERS["emotion"], "rank": 4}})
    with pytest.raises(ValueError, match="no linear layer"):
        SpeechLLM(folder, lora={"emotion": {**ADAPTERS["emotion"], "target_modules": ["nothing"]}})


def test_merging_is_refused_with_the_reason(llm, folder):
    with pytest.raises(ValueError, match="act at some positions only.*emotion"):
        llm.merge_adapter()
    plain = SpeechLLM(folder, lora={"r": 2})
    with torch.no_grad():
        for module in plain.lora_modules():
            for p in module.parameters():
                p.normal_(std=0.2)
    packed, slots = batch(plain)
    before = plain.answer_loss(plain.embed(packed, {"emotion": slots}), packed).weighted_sum
    plain.merge_adapter()
    assert not plain.has_lora
    after = plain.answer_loss(plain.embed(packed, {"emotion": slots}), packed).weighted_sum
    assert float(after) == pytest.approx(float(before), rel=1e-4)


def test_a_pass_without_kinds_is_refused(llm):
    with pytest.raises(ValueError, match="without the kinds"):
        llm.causal_lm(inputs_embeds=torch.zeros(1, 2, llm.hidden_size))
    with pytest.raises(ValueError, match="needs the packed prompt"):
        llm.extend(torch.zeros(1, 2, llm.hidden_size))
    layer = next(iter(llm.partial.layers.values()))
    assert isinstance(layer, PartialLoRALinear)
    with pytest.raises(ValueError, match="without the kinds"):
        layer(torch.zeros(1, 2, layer.in_features))


def test_dropout_is_the_adapter_s_own(folder):
    """Rates may differ: each adapter is dropped by its own, and its mean over draws is the value without."""
    lora = {
        "emotion": {**ADAPTERS["emotion"], "lora_dropout": 0.5},
        "text": ADAPTERS["text"],
    }
    llm = train(randomize(SpeechLLM(folder, lora=lora)))
    layer = llm.partial.layers["model.layers.0.self_attn.q_proj"]
    kinds = torch.tensor([[1, EMOTION]])
    x = torch.randn(1, 2, layer.in_features, generator=torch.Generator().manual_seed(0))
    names = ("padding", "text", "answer", "emotion")
    with torch.no_grad(), llm.partial.state.scope(kinds, names):
        llm.partial.state.enter(0, 1, 2, "cpu")
        torch.manual_seed(0)
        drawn = torch.stack([layer(x) for _ in range(2000)])
        low = layer.adapters["emotion"]
        wanted = layer.base_layer(x[0, 1]) + 4.0 * F.linear(
            F.linear(x[0, 1], low.lora_A.weight), low.lora_B.weight
        )
    assert torch.equal(drawn[:, 0, 0], drawn[:1, 0, 0].expand(2000, -1))
    assert drawn[:, 0, 1].std(0).min() > 0
    spread = drawn[:, 0, 1].std(0) / 2000**0.5
    assert ((drawn[:, 0, 1].mean(0) - wanted).abs() < 5 * spread).all()
