"""The packer: chat template, slots anywhere, kinds, labels; one example of each of the three systems."""

import pytest
import torch

from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
from speechbrain_emo.prompts import AnswerField, AnswerFormat, Example, InstructionTask, Packer, Slot, Turn

TEXTS = [
    "the sky is blue today and the dog runs",
    "emotion: sad happy angry neutral",
    "Speech: Voice: A: B:",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tiny_tokenizer(TEXTS, vocab_size=300)


def pack(tokenizer, kinds, turns, answer, lengths):
    packer = Packer(tokenizer, kinds)
    example = Example("u", "t", turns, answer)
    return packer, packer.encode(example, lengths)


def visible(packer, row):
    """The row as text, slot positions as <kind>."""
    out = ""
    for token, kind in zip(row.token_ids, row.kinds):
        out += (
            f"<{packer.slot_kinds[kind - 3]}>"
            if kind >= 3 and token == 0
            else packer.tokenizer.decode([token])
        )
    return out


def test_vib_ser(tokenizer):
    turns = (Turn("user", ("Speech:", Slot("content"), "\nVoice:", Slot("descriptor"))),)
    answer = (
        AnswerField("transcript", "transcript:", " the dog"),
        AnswerField("emotion", "\nemotion:", " sad", 4.0),
    )
    packer, row = pack(tokenizer, ["content", "descriptor"], turns, answer, [{"content": 3, "descriptor": 2}])
    text = visible(packer, row)
    assert "Speech:<content><content><content>\nVoice:<descriptor><descriptor>" in text
    assert text.endswith("transcript: the dog\nemotion: sad" + tokenizer.eos_token)
    answer_ids = [t for t, k in zip(row.token_ids, row.kinds) if k == 2]
    assert [x for x in row.labels if x != -100] == answer_ids
    assert answer_ids[:-1] == packer.answer_ids(answer) and answer_ids[-1] == tokenizer.eos_token_id
    sad = list(packer.tokenize(" sad"))
    assert [w for w in row.label_weights if w == 4.0] == [4.0] * len(sad)


def test_dual_adapters_with_equivalence_replacement(tokenizer):
    """Context text, then the paralinguistic slot of 10, then the linguistic slot; any of them text or nothing."""

    def turns(first, second):
        return (Turn("system", ("the sky",)), Turn("user", ("A: ", first, second)))

    answer = (AnswerField("reply", "", "blue"),)
    lengths = [{"paralinguistic": 10, "linguistic": 4}]
    kinds = ["paralinguistic", "linguistic"]
    packer, speech = pack(tokenizer, kinds, turns(Slot(kinds[0]), Slot(kinds[1])), answer, lengths)
    assert [speech.kinds.count(k) for k in (3, 4)] == [10, 4]
    _, text = pack(
        tokenizer,
        kinds,
        turns(Slot(kinds[0], source="nothing"), Slot(kinds[1], source="text", text="the dog")),
        answer,
        (),
    )
    dog = list(packer.tokenize("the dog"))
    assert [t for t, k in zip(text.token_ids, text.kinds) if k == 4] == dog
    assert 3 not in text.kinds and not text.slots
    assert (
        text.labels[-len(packer.tokenize("blue")) - 1 :] == speech.labels[-len(packer.tokenize("blue")) - 1 :]
    )


def test_jelly_dialogue_of_ten_emotion_slots(tokenizer):
    """Ten history turns, each with its own audio; and the text-only stage with labels as words."""
    parts, text_parts = [], []
    for i in range(10):
        parts += [f"{'AB'[i % 2]}: the dog runs ", Slot("emotion", audio=i), "\n"]
        text_parts += [f"{'AB'[i % 2]}: the dog runs sad\n"]
    answer = (AnswerField("emotion", "emotion:", " happy"),)
    lengths = [{"emotion": 25}] * 10
    packer, row = pack(tokenizer, ["emotion"], (Turn("user", tuple(parts)),), answer, lengths)
    assert row.kinds.count(3) == 250
    assert [s[:2] for s in row.slots] == [("emotion", i) for i in range(10)]
    text = packer.encode(Example("v", "t", (Turn("user", tuple(text_parts)),), answer))
    batch = packer.collate([text, row], audio_offsets=[0, 0])
    index = batch.slots["emotion"]
    assert index.audio.tolist() == sorted(list(range(10)) * 25)
    assert (index.row == 1).all() and (batch.kinds[index.row, index.column] == 3).all()
    with pytest.raises(ValueError, match="asks for audio 9"):
        packer.encode(Example("w", "t", (Turn("user", tuple(parts)),), answer), lengths[:9])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_every_row(tokenizer, side):
    packer = Packer(tokenizer, ["content"])
    rows = [
        packer.encode(
            Example(
                str(n),
                "t",
                (Turn("user", ("the dog " * n, Slot("content"))),),
                (AnswerField("x", "", "sad"),),
            ),
            [{"content": n}],
        )
        for n in (1, 4, 2)
    ]
    batch = packer.collate(rows, side)
    for i, row in enumerate(rows):
        mask = batch.attention_mask[i].bool()
        assert batch.token_ids[i][mask].tolist() == list(row.token_ids)
        assert batch.kinds[i][mask].tolist() == list(row.kinds)
        assert batch.labels[i][mask].tolist() == list(row.labels)
        assert batch.position_ids[i][mask].tolist() == list(range(row.num_positions))
        assert (batch.kinds[i][~mask] == 0).all() and (batch.labels[i][~mask] == -100).all()
        assert mask[-1 if side == "left" else 0]
    index = batch.slots["content"]
    assert (batch.kinds[index.row, index.column] == 3).all()
    assert torch.equal(index.audio, index.row)


def test_generation_row_is_the_training_row_without_its_answer(tokenizer):
    packer = Packer(tokenizer, ["content"])
    fields = (
        AnswerField("transcript", "transcript:", " the dog"),
        AnswerField("emotion", "\nemotion:", " sad"),
    )
    example = Example("u", "t", (Turn("user", (Slot("content"), "the sky")),), fields)
    whole = packer.encode(example, [{"content": 2}])
    prompt = packer.encode(example, [{"content": 2}], with_answer=False)
    assert whole.token_ids[: prompt.num_positions] == prompt.token_ids
    prefix = packer.answer_ids(fields[:1]) + list(packer.tokenize("\nemotion:"))
    scored = packer.encode(example, [{"content": 2}], with_answer=False, answer_prefix_ids=prefix)
    assert whole.token_ids[: scored.num_positions] == scored.token_ids
    assert whole.kinds[: scored.num_positions] == scored.kinds


def test_text_that_looks_like_a_slot_is_refused(tokenizer):
    packer = Packer(tokenizer, ["content"])
    with pytest.raises(ValueError, match="private-use character"):
        packer.encode(Example("u", "t", (Turn("user", ("a \ue0000\ue001",)),)))


def test_too_long(tokenizer):
    packer = Packer(tokenizer, ["content"], max_positions=20)
    with pytest.raises(ValueError, match="at most 20 are allowed"):
        packer.encode(Example("u", "t", (Turn("user", (Slot("content"),)),)), [{"content": 30}])


def test_template_without_chat_template_is_refused(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Packer(bare, [])


def test_answer_round_trip():
    fmt = AnswerFormat(
        {"transcript": "text", "pitch": ["low", "high"], "emphasis": "words", "emotion": ["sad", "happy"]}
    )
    record = {
        "id": "u",
        "transcript": "a: b, c",
        "descriptors": {"pitch": "high", "emphasis": ["b", "c"]},
        "emotion": "sad",
    }
    text = fmt.text(fmt.fields_of(record))
    assert fmt.parse(text) == {"transcript": "a: b, c", "pitch": "high", "emphasis": "b, c", "emotion": "sad"}
    assert fmt.parse("emotion: furious\npitch: high")["emotion"] is None
    with pytest.raises(ValueError, match="allowed: low, high"):
        fmt.fields_of({**record, "descriptors": {"pitch": "hi"}})


def test_wording_is_keyed_by_utterance():
    fmt = AnswerFormat({"emotion": ["sad", "happy"]})
    task = InstructionTask("ser", ["a {content}", "b {content}", "c {content}"], ["emotion"], fmt)
    numbers = [task.prompt_number({"id": f"u{i}"}) for i in range(60)]
    assert numbers == [task.prompt_number({"id": f"u{i}"}) for i in range(60)]
    assert {numbers.count(n) > 8 for n in range(3)} == {True}


@pytest.mark.parametrize("side", ["left", "right"])
def test_rounding_the_width_up_adds_padding_only(tokenizer, side):
    turns = (Turn("user", ("Speech:", Slot("content"))),)
    packer, row = pack(tokenizer, ["content"], turns, (), [{"content": 3}])
    plain, rounded = packer.collate([row], side), packer.collate([row], side, multiple=16)
    width = plain.token_ids.shape[1]
    assert rounded.token_ids.shape[1] == -(-width // 16) * 16 > width
    kept = slice(-width, None) if side == "left" else slice(0, width)
    for name in ("token_ids", "attention_mask", "position_ids", "kinds", "labels"):
        assert torch.equal(getattr(rounded, name)[:, kept], getattr(plain, name))
    assert int(rounded.attention_mask.sum()) == width
