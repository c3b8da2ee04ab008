"""The speech LLM against full-logits and brute-force computations, and its invariances."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from speechbrain.utils.checkpoints import Checkpointer
from transformers import AutoModelForCausalLM

from speechbrain_emo.lobes.speech_llm import PUBLISHED_ARCHITECTURES, SpeechLLM, build_meta
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.prompts import AnswerField, Example, Packer, Slot, Turn

TEXTS = [
    "the sky is blue and the sea is blue",
    "emotion: sad happy angry neutral",
    "listen to the speech and write what is said with its emotion",
    "pitch: high, speed: slow, volume: normal",
] * 3
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
SIZES = {"vocab_size": 340, "hidden_size": 48, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Weights larger than usual: attention of a fresh model is nearly uniform and would hide a wrong mask.
    return build_tiny_llm(
        tmp_path_factory.mktemp("llm"), TEXTS, intermediate_size=64, initializer_range=0.2, **SIZES
    )


def randomize_lora(llm, seed=0):
    """lora_B starts at zero, which would make every adapter the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in llm.trainable_groups()["llm.lora"]:
            for p in module.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return llm


@pytest.fixture
def llm(folder):
    return randomize_lora(SpeechLLM(folder, lora=LORA))


def rows_of(packer, lengths, answers, with_answer=True):
    words = "listen to the speech and write what is said".split()
    rows = []
    for i, (length, answer) in enumerate(zip(lengths, answers)):
        text = " ".join(words[: 1 + i % len(words)])
        example = Example(
            f"u{i}",
            "ser",
            (Turn("system", ("be brief",)), Turn("user", (Slot("content"), text, Slot("descriptor"), " go"))),
            (
                AnswerField("transcript", "said:", f" {answer}", 0.5),
                AnswerField("emotion", " emotion:", " sad", 4.0),
            ),
        )
        slots = [{"content": length, "descriptor": max(1, length // 2)}]
        rows.append(packer.encode(example, slots, with_answer=with_answer))
    return rows


def make_batch(llm, lengths=(3, 9, 1, 6), side="right", with_answer=True, seed=0):
    """A packed batch and front-end outputs (N, S, d) that need gradients."""
    packer = Packer(llm.tokenizer, ["content", "descriptor"])
    answers = ["the sky", "the sea is blue and the sky is blue", "slow", "high and low"]
    answers = (answers * len(lengths))[: len(lengths)]
    packed = packer.collate(rows_of(packer, lengths, answers, with_answer), side=side)
    slots = {}
    for offset, kind in enumerate(("content", "descriptor")):
        slots[kind] = torch.stack(
            [
                torch.randn(
                    max(lengths),
                    llm.hidden_size,
                    generator=torch.Generator().manual_seed(1000 * seed + 10 * i + offset),
                )
                for i in range(len(lengths))
            ]
        ).requires_grad_()
    return packed, slots


def one_row(llm, i, lengths, side="left", with_answer=False):
    """Row i of ``make_batch`` packed by itself."""
    packed, slots = make_batch(llm, lengths, side, with_answer)
    packer = Packer(llm.tokenizer, ["content", "descriptor"])
    answers = ["the sky", "the sea is blue and the sky is blue", "slow", "high and low"]
    row = rows_of(packer, lengths, (answers * len(lengths))[: len(lengths)], with_answer)[i]
    return packer.collate([row], side=side), {k: v[i : i + 1, : lengths[i]] for k, v in slots.items()}


def full_logits_loss(llm, embeddings, packed):
    """The textbook loss: all logits, shifted labels."""
    logits = llm.causal_lm(
        inputs_embeds=embeddings, attention_mask=packed.attention_mask, position_ids=packed.position_ids
    ).logits
    nll = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        packed.labels[:, 1:].flatten(),
        ignore_index=-100,
        reduction="none",
    )
    return (nll * packed.label_weights[:, 1:].flatten()).sum(), nll.sum()


def gradients(loss, llm, slots):
    for tensor in (*llm.parameters(), *slots.values()):
        tensor.grad = None
    loss.backward()
    found = {n: p.grad.clone() for n, p in llm.named_parameters() if p.grad is not None}
    return {**found, **{k: v.grad.clone() for k, v in slots.items()}}


def train_lora(llm):
    for module in llm.trainable_groups()["llm.lora"]:
        module.requires_grad_(True).train()


# Embedding


def test_embed_puts_speech_in_the_slots_and_tokens_elsewhere(llm):
    packed, slots = make_batch(llm)
    embeddings = llm.embed(packed, slots)
    table = llm.causal_lm.get_input_embeddings().weight
    for b in range(packed.token_ids.shape[0]):
        counts = {3: 0, 4: 0}
        for p in range(packed.token_ids.shape[1]):
            kind = int(packed.kinds[b, p])
            if kind >= 3:
                expected = slots["content" if kind == 3 else "descriptor"][b, counts[kind]]
                counts[kind] += 1
            else:
                expected = table[packed.token_ids[b, p]]
            assert torch.equal(embeddings[b, p], expected)
    embeddings.sum().backward()
    # Row 0 has three content positions: the others are padding of the front end.
    assert torch.equal(slots["content"].grad[0, :3], torch.ones(3, llm.hidden_size))
    assert slots["content"].grad[0, 3:].abs().sum() == 0


def test_embed_names_a_missing_kind_and_a_wrong_size(llm):
    packed, slots = make_batch(llm)
    with pytest.raises(ValueError, match="'descriptor'.*content"):
        llm.embed(packed, {"content": slots["content"]})
    with pytest.raises(ValueError, match="needed: .*48"):
        llm.embed(packed, {**slots, "content": slots["content"][..., :20]})


# Loss


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("logit_chunk", [4096, 7])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_answer_loss_equals_full_logits_loss(folder, side, logit_chunk, gradient_checkpointing):
    settings = {"logit_chunk": logit_chunk, "gradient_checkpointing": gradient_checkpointing}
    llm = randomize_lora(SpeechLLM(folder, lora=LORA, **settings))
    train_lora(llm)
    packed, slots = make_batch(llm, side=side)
    expected, expected_nll = full_logits_loss(llm, llm.embed(packed, slots), packed)
    expected_gradients = gradients(expected, llm, slots)
    out = llm.answer_loss(llm.embed(packed, slots), packed)
    got = gradients(out.weighted_sum, llm, slots)
    torch.testing.assert_close(out.weighted_sum, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.nll_sum, expected_nll.detach(), rtol=1e-5, atol=1e-5)
    assert int(out.num_tokens) == int((packed.labels != -100).sum()) > 20
    assert float(out.weight) == float(packed.label_weights.sum())
    assert set(got) == set(expected_gradients) and len(got) > 20
    for name, value in got.items():
        torch.testing.assert_close(value, expected_gradients[name], rtol=1e-4, atol=1e-4)


def test_frozen_base_has_no_gradient(llm):
    train_lora(llm)
    packed, slots = make_batch(llm)
    llm.answer_loss(llm.embed(packed, slots), packed).weighted_sum.backward()
    lora = {id(p) for m in llm.trainable_groups()["llm.lora"] for p in m.parameters()}
    for name, p in llm.named_parameters():
        assert (p.grad is not None) == (id(p) in lora), name
        assert ("lora_" in name) == (id(p) in lora), name


def test_loss_does_not_depend_on_the_padding_side(llm):
    losses = []
    for side in ("right", "left"):
        packed, slots = make_batch(llm, side=side)
        losses.append(llm.answer_loss(llm.embed(packed, slots), packed))
    torch.testing.assert_close(losses[0].weighted_sum, losses[1].weighted_sum, rtol=1e-5, atol=1e-5)
    assert int(losses[0].num_correct) == int(losses[1].num_correct)


def test_loss_of_a_batch_is_the_sum_over_rows(llm):
    lengths = (3, 40, 1, 6)
    packed, slots = make_batch(llm, lengths)
    total = llm.answer_loss(llm.embed(packed, slots), packed).weighted_sum
    parts = 0
    for i in range(len(lengths)):
        row, row_slots = one_row(llm, i, lengths, "right", with_answer=True)
        parts = parts + llm.answer_loss(llm.embed(row, row_slots), row).weighted_sum
    torch.testing.assert_close(total, parts, rtol=1e-5, atol=1e-4)


def test_a_label_with_nothing_before_it_is_not_counted(llm):
    """Plain text for language-model pretraining: every position is labelled, also the first."""
    for side in ("right", "left"):
        packed, _ = make_batch(llm, side=side)
        everywhere = torch.where(packed.attention_mask.bool(), packed.token_ids, -100)
        packed = dataclasses.replace(
            packed, labels=everywhere, label_weights=packed.attention_mask.float(), slots={}
        )
        out = llm.answer_loss(llm.embed(packed, {}), packed)
        assert int(out.num_tokens) == int((packed.attention_mask.sum(1) - 1).sum())


def test_num_correct_counts_the_arg_max(llm):
    packed, slots = make_batch(llm)
    embeddings = llm.embed(packed, slots)
    logits = llm.causal_lm(
        inputs_embeds=embeddings, attention_mask=packed.attention_mask, position_ids=packed.position_ids
    ).logits
    best = F.pad(logits.argmax(-1)[:, :-1], (1, 0), value=-1)
    # Labels that the model does predict on every other answer position.
    answer = packed.labels != -100
    flip = answer & (torch.arange(answer.shape[1])[None] % 2 == 0)
    packed = dataclasses.replace(packed, labels=torch.where(flip, best, packed.labels))
    expected = int((answer & (packed.labels == best)).sum())
    assert expected >= int(flip.sum()) > 5
    assert int(llm.answer_loss(embeddings, packed).num_correct) == expected


# Scores and generation


def candidates_of(llm):
    texts = [" sad", " happy", " angry and neutral", " the sea is blue and the sky is blue", " neutral"]
    return [llm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]


def brute_force(llm, packed, slots, candidate):
    """One full forward pass over prompt and candidate, a row at a time, without padding."""
    end = llm.end_of_answer_id
    table = llm.causal_lm.get_input_embeddings()
    answer = torch.tensor([*candidate, end])
    scores = []
    for b in range(packed.token_ids.shape[0]):
        there = packed.attention_mask[b].bool()
        prompt = llm.embed(packed, slots)[b, there]
        logits = llm.causal_lm(inputs_embeds=torch.cat([prompt, table(answer)])[None]).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        scores.append(rows[torch.arange(len(answer)), answer].mean())
    return torch.stack(scores)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_rows", [256, 7, 1])
def test_scores_equal_brute_force(llm, side, max_rows):
    packed, slots = make_batch(llm, side=side, with_answer=False)
    candidates = candidates_of(llm)
    assert len({len(c) for c in candidates}) >= 3
    scores = llm.score(llm.embed(packed, slots), packed, candidates, max_rows=max_rows)
    with torch.no_grad():
        expected = torch.stack([brute_force(llm, packed, slots, c) for c in candidates], 1)
    assert scores.shape == (4, 5) and scores.std() > 0.01
    assert (scores - expected).abs().max() < 1e-5


def test_scores_do_not_depend_on_batch_or_neighbours(llm):
    """Alone, among 32, and beside a prompt ten times as long."""
    lengths = tuple(1 + i % 9 for i in range(31)) + (120,)
    packed, slots = make_batch(llm, lengths, "left", with_answer=False)
    candidates = candidates_of(llm)
    together = llm.score(llm.embed(packed, slots), packed, candidates)
    worst = 0.0
    for i in range(32):
        row, row_slots = one_row(llm, i, lengths)
        alone = llm.score(llm.embed(row, row_slots), row, candidates)
        worst = max(worst, float((alone[0] - together[i]).abs().max()))
    assert worst < 1e-4
    print(f"largest difference between batch 1 and 32: {worst:.2e}")


def test_scores_do_not_depend_on_the_other_candidates(llm):
    packed, slots = make_batch(llm, with_answer=False, side="left")
    embeddings = llm.embed(packed, slots)
    candidates = candidates_of(llm)
    together = llm.score(embeddings, packed, candidates)
    for k, candidate in enumerate(candidates):
        torch.testing.assert_close(
            llm.score(embeddings, packed, [candidate])[:, 0], together[:, k], rtol=0, atol=1e-5
        )


def test_score_of_the_answer_is_its_loss(llm):
    """Scoring and training see the same tokens: label scores are minus the mean training loss."""
    packed, slots = make_batch(llm, (5,), "right", with_answer=True)
    answer = packed.labels[0][packed.labels[0] != -100].tolist()
    out = llm.answer_loss(llm.embed(packed, slots), packed)
    prompt, slots = make_batch(llm, (5,), "left", with_answer=False)
    score = llm.score(llm.embed(prompt, slots), prompt, [answer[:-1]])
    torch.testing.assert_close(score[0, 0], -out.nll_sum / out.num_tokens, rtol=0, atol=1e-5)


def test_score_refuses_what_it_cannot_score(llm):
    packed, slots = make_batch(llm)
    embeddings = llm.embed(packed, slots)
    with pytest.raises(ValueError, match="with_answer=False"):
        llm.score(embeddings, packed, [[5]])
    packed, slots = make_batch(llm, with_answer=False)
    for candidates in ([], [[5], []]):
        with pytest.raises(ValueError, match="candidates"):
            llm.score(embeddings, packed, candidates)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_does_not_depend_on_the_batch(llm, num_beams):
    lengths = tuple(1 + i % 9 for i in range(31)) + (80,)
    packed, slots = make_batch(llm, lengths, "left", with_answer=False)
    together = llm.generate(llm.embed(packed, slots), packed, 12, num_beams=num_beams)
    assert len(together) == 32 and len({tuple(r) for r in together}) > 5
    for i in range(0, 32, 1 if num_beams == 1 else 8):
        row, row_slots = one_row(llm, i, lengths)
        assert llm.generate(llm.embed(row, row_slots), row, 12, num_beams=num_beams) == [together[i]]


def test_greedy_generation_is_the_arg_max_of_full_forward_passes(llm):
    packed, slots = make_batch(llm, with_answer=False, side="left")
    written = llm.generate(llm.embed(packed, slots), packed, 6)
    table = llm.causal_lm.get_input_embeddings()
    for b, ids in enumerate(written):
        sequence = llm.embed(packed, slots)[b, packed.attention_mask[b].bool()]
        expected = []
        for _ in range(6):
            with torch.no_grad():
                token = int(llm.causal_lm(inputs_embeds=sequence[None]).logits[0, -1].argmax())
            if token == llm.end_of_answer_id:
                break
            expected.append(token)
            sequence = torch.cat([sequence, table(torch.tensor([token]))])
        assert ids == expected


def test_generation_stops_at_the_end_token_and_leaves_it_out(folder):
    llm = SpeechLLM(folder)
    packed, slots = make_batch(llm, with_answer=False, side="left")
    written = llm.generate(llm.embed(packed, slots), packed, 8)
    # The second token of row 0 now ends an answer.
    llm.tokenizer.eos_token = llm.tokenizer.convert_ids_to_tokens(written[0][1])
    end = llm.end_of_answer_id
    again = llm.generate(llm.embed(packed, slots), packed, 8)
    assert again == [ids[: ids.index(end)] if end in ids else ids for ids in written]
    assert len(again[0]) <= 1


def test_generation_refuses_right_padding(llm):
    packed, slots = make_batch(llm, with_answer=False, side="right")
    with pytest.raises(ValueError, match="side='left'"):
        llm.generate(llm.embed(packed, slots), packed, 4)


def test_published_generation_settings_do_not_reach_greedy_search(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.save_pretrained(tmp_path)
    plain = SpeechLLM(folder)
    packed, slots = make_batch(plain, with_answer=False, side="left")
    expected = plain.generate(plain.embed(packed, slots), packed, 8)
    plain.save_pretrained(tmp_path / "penalised")
    model.generation_config.save_pretrained(tmp_path / "penalised")
    penalised = SpeechLLM(tmp_path / "penalised")
    assert penalised.generate(penalised.embed(packed, slots), packed, 8) == expected


def test_checkpointed_model_still_scores_and_generates(folder):
    plain = SpeechLLM(folder)
    recomputing = SpeechLLM(folder, gradient_checkpointing=True)
    for p in recomputing.parameters():
        p.requires_grad_(True)
    recomputing.train()
    packed, slots = make_batch(plain, with_answer=False, side="left")
    embeddings = plain.embed(packed, slots).detach()
    torch.testing.assert_close(
        plain.score(embeddings, packed, [[5, 6]]), recomputing.score(embeddings, packed, [[5, 6]])
    )
    assert plain.generate(embeddings, packed, 5) == recomputing.generate(embeddings, packed, 5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_checkpointing_recomputes_frozen_layers(folder, gradient_checkpointing):
    """Frozen layers are in eval mode, in which transformers does not recompute."""
    llm = SpeechLLM(folder, lora=LORA, gradient_checkpointing=gradient_checkpointing)
    train_lora(llm)
    calls = []
    # Before, not after: recomputation stops as soon as the last saved tensor is there.
    llm.causal_lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    packed, slots = make_batch(llm)
    llm.answer_loss(llm.embed(packed, slots), packed).weighted_sum.backward()
    assert len(calls) == (2 if gradient_checkpointing else 1)
    assert not llm.causal_lm.model.layers[0].training


# Precision and freezing


def test_lora_is_float32_on_a_bfloat16_base_and_small_steps_change_it(folder):
    llm = SpeechLLM(folder, lora=LORA, dtype="bfloat16")
    train_lora(llm)
    assert llm.causal_lm.get_input_embeddings().weight.dtype is torch.bfloat16
    weights = [p for m in llm.trainable_groups()["llm.lora"] for p in m.parameters()]
    assert len(weights) == 3 * 4 * 2 and {p.dtype for p in weights} == {torch.float32}
    randomize_lora(llm)
    before = [p.detach().clone() for p in weights]
    packed, slots = make_batch(llm)
    with torch.autocast("cpu", torch.bfloat16):
        out = llm.answer_loss(llm.embed(packed, slots), packed)
    assert out.weighted_sum.dtype is torch.float32
    out.weighted_sum.backward()
    torch.optim.SGD(weights, lr=1.0)
    for p in weights:
        p.grad.sign_()
    torch.optim.SGD(weights, lr=5e-6).step()
    for old, new in zip(before, weights):
        moved = new.grad != 0
        assert moved.float().mean() > 0.9
        assert (old != new)[moved].float().mean() > 0.99


def test_a_base_in_bfloat16_must_not_train(folder):
    llm = SpeechLLM(folder, dtype="bfloat16")
    llm.requires_grad_(True)
    packed, slots = make_batch(llm)
    with pytest.raises(ValueError, match="float32.*autocast"):
        llm.answer_loss(llm.embed(packed, slots), packed)


def test_nothing_trains_by_default_and_groups_do_not_overlap(llm, folder):
    assert not any(p.requires_grad for p in llm.parameters())
    assert not any(m.training for m in llm.modules())
    groups = llm.trainable_groups()
    lora = [id(p) for m in groups["llm.lora"] for p in m.parameters()]
    base = [id(p) for m in groups["llm.base"] for p in m.parameters(recurse=False)]
    base_all = {id(p) for m in groups["llm.base"] for p in m.parameters()}
    assert not set(lora) & base_all and base_all == set(base)
    assert set(lora) | base_all == {id(p) for p in llm.parameters()}
    assert len(lora) == len(set(lora)) == 3 * 4 * 2
    plain = SpeechLLM(folder)
    assert plain.trainable_groups() == {"llm.lora": [], "llm.base": [plain.model]}


def test_train_leaves_frozen_parts_in_eval_mode(folder):
    llm = SpeechLLM(folder, lora={**LORA, "lora_dropout": 0.1})
    llm.train()
    assert [n for n, m in llm.named_modules() if m.training] == [""]
    for module in llm.trainable_groups()["llm.lora"]:
        module.requires_grad_(True)
    llm.train()
    training = {n for n, m in llm.named_modules() if m.training}
    assert any("lora_dropout" in n for n in training)
    assert all("lora_" in n for n in training if n)
    llm.eval()
    assert not any(m.training for m in llm.modules())


# Saving and loading


def lora_state(llm):
    return {n: p.detach().clone() for n, p in llm.named_parameters() if "lora_" in n}


def test_adapter_round_trip_is_bit_identical_and_peft_reads_it(llm, folder, tmp_path):
    llm.save_adapter(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    other = SpeechLLM(folder, lora=LORA)
    assert any(not torch.equal(a, b) for a, b in zip(lora_state(llm).values(), lora_state(other).values()))
    pointers = [p.data_ptr() for p in other.parameters()]
    other.load_adapter(tmp_path / "adapter")
    assert pointers == [p.data_ptr() for p in other.parameters()]
    for (name, a), b in zip(lora_state(llm).items(), lora_state(other).values()):
        assert torch.equal(a, b), name
    assert not any(p.requires_grad for p in other.parameters())
    packed, slots = make_batch(llm)
    embeddings = llm.embed(packed, slots)
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter"
    ).eval()
    keywords = {"inputs_embeds": embeddings, "attention_mask": packed.attention_mask}
    assert torch.equal(by_peft(**keywords).logits, other.causal_lm(**keywords).logits)


def test_adapter_loading_is_strict(llm, folder, tmp_path):
    llm.save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="r is 4, this model has 2"):
        SpeechLLM(folder, lora={**LORA, "r": 2}).load_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="lora_alpha is 8, this model has 4"):
        SpeechLLM(folder, lora={**LORA, "lora_alpha": 4}).load_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="0 missing.*12 unexpected"):
        SpeechLLM(folder, lora={**LORA, "target_modules": ["q_proj", "v_proj"]}).load_adapter(
            tmp_path / "adapter"
        )
    with pytest.raises(ValueError, match="6 missing"):
        SpeechLLM(
            folder, lora={**LORA, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]}
        ).load_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="lora=None"):
        SpeechLLM(folder).load_adapter(tmp_path / "adapter")
    with pytest.raises(OSError, match="adapter_config"):
        llm.load_adapter(tmp_path / "nowhere")


def test_checkpointer_writes_trainable_weights_only(llm, folder, tmp_path):
    checkpointer = Checkpointer(tmp_path, recoverables={"llm": llm})
    saved = checkpointer.save_checkpoint()
    assert sorted(p.name for p in (saved.path / "llm.ckpt").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before = lora_state(llm)
    randomize_lora(llm, seed=3)
    assert checkpointer.recover_if_possible() is not None
    for (name, a), b in zip(before.items(), lora_state(llm).values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpoint_of_a_trained_base(tmp_path, tied, lora):
    source = build_tiny_llm(tmp_path / "llm", TEXTS, intermediate_size=64, tie_word_embeddings=tied, **SIZES)
    llm = SpeechLLM(source, lora=lora)
    for module in llm.trainable_groups()["llm.base"]:
        module.requires_grad_(True)
    packed, slots = make_batch(llm)
    llm.answer_loss(llm.embed(packed, slots), packed).weighted_sum.backward()
    torch.optim.SGD([p for p in llm.parameters() if p.requires_grad], lr=1e-2).step()
    # A later phase freezes the base: what it learned must still be in the checkpoint.
    llm.requires_grad_(False)
    saved = Checkpointer(tmp_path / "save", recoverables={"llm": llm}).save_checkpoint()
    assert (saved.path / "llm.ckpt" / "model.safetensors").exists()
    other = SpeechLLM(source, lora=lora)
    Checkpointer(tmp_path / "save", recoverables={"llm": other}).recover_if_possible()
    for (name, a), b in zip(llm.named_parameters(), other.parameters()):
        assert torch.equal(a, b), name
    fresh = SpeechLLM(source, lora=lora)
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), other.parameters()))
    assert (other.causal_lm.lm_head.weight is other.causal_lm.model.embed_tokens.weight) == tied


def test_frozen_base_without_adapter_saves_nothing(folder, tmp_path):
    llm = SpeechLLM(folder)
    llm.save_checkpoint(tmp_path / "llm")
    assert list((tmp_path / "llm").iterdir()) == []
    llm.load_checkpoint(tmp_path / "llm")
    llm._base_changed = True
    with pytest.raises(ValueError, match="build the model anew"):
        llm.load_checkpoint(tmp_path / "llm")


def test_pretrained_base_round_trip(folder, tmp_path, llm):
    plain = SpeechLLM(folder)
    with torch.no_grad():
        plain.causal_lm.model.norm.weight.add_(0.25)
    plain.save_pretrained(tmp_path / "base")
    again = SpeechLLM(tmp_path / "base", lora=LORA)
    assert torch.equal(again.causal_lm.model.norm.weight, plain.causal_lm.model.norm.weight)
    assert again.tokenizer.chat_template == plain.tokenizer.chat_template
    with pytest.raises(ValueError, match="save_adapter"):
        llm.save_pretrained(tmp_path / "no")


# Published sizes, without weights


def llama_parameters(vocab, d, layers, kv, ffn, bias=False):
    """Closed form of a Llama (with ``bias``: Qwen2, whose q, k and v have one), untied."""
    layer = 2 * d * d + 2 * d * kv + 3 * d * ffn + 2 * d + (d + 2 * kv if bias else 0)
    return 2 * vocab * d + layers * layer + d


@pytest.mark.parametrize(
    "name, total, closed_form",
    [
        # Totals as on the models' pages (safetensors metadata of the hub).
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, (128256, 4096, 32, 1024, 14336)),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, (152064, 3584, 28, 512, 18944, True)),
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616, (32000, 4096, 32, 4096, 11008)),
    ],
)
def test_published_parameter_counts(name, total, closed_form):
    llm = build_meta(name)
    assert sum(p.numel() for p in llm.parameters()) == total == llama_parameters(*closed_form)
    assert {p.device.type for p in llm.parameters()} == {"meta"}


def test_lora_parameters_at_the_published_size():
    r = 16
    llm = build_meta(
        "meta-llama/Llama-3.1-8B-Instruct", lora={"r": r}, dtype="bfloat16", gradient_checkpointing=True
    )
    lora = [p for m in llm.trainable_groups()["llm.lora"] for p in m.parameters()]
    # A is (r, in) and B (out, r): r times in + out, for q, k, v and o.
    per_layer = r * ((4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096))
    assert sum(p.numel() for p in lora) == 32 * per_layer == 13_631_488
    assert {p.dtype for p in lora} == {torch.float32}
    base = sum(p.numel() for m in llm.trainable_groups()["llm.base"] for p in m.parameters())
    assert base == 8_030_261_248


# Bad settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"quantization": "3bit"}, "'3bit'"),
        ({"lora": {"rank": 4}}, r"unknown keys \['rank'\]"),
        ({"lora": {"bias": "all"}}, "lora.bias"),
        ({"lora": {"modules_to_save": ["lm_head"]}}, "lora.modules_to_save"),
        ({"logit_chunk": 0}, "logit_chunk is 0"),
    ],
)
def test_bad_settings_are_named(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        SpeechLLM(folder, **settings)


def test_four_bit_needs_bitsandbytes_and_a_gpu(folder):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: nothing to refuse")
    with pytest.raises(ValueError, match="quantization='4bit' needs"):
        SpeechLLM(folder, quantization="4bit")


def test_missing_source_is_explained(tmp_path):
    with pytest.raises(ValueError, match="neither source nor architecture"):
        SpeechLLM()
    with pytest.raises(OSError, match="local folder"):
        SpeechLLM(str(tmp_path))
    with pytest.raises(ValueError, match="model_type"):
        SpeechLLM(architecture={"hidden_size": 8})


def test_every_published_architecture_names_its_model_type():
    assert all("model_type" in settings for settings in PUBLISHED_ARCHITECTURES.values())
