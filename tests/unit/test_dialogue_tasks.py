"""Choice and dialogue tasks, equivalence replacement, and which audios a prompt loads."""

import random
from collections import Counter

import pytest

from speechbrain_emo.brains.speech_data import SpeechData, SpeechRecords, renumber_audios
from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
from speechbrain_emo.phases import Phase, draw_slot_sources
from speechbrain_emo.prompts import AnswerFormat, ChoiceTask, DialogueTask, InstructionTask, Packer
from speechbrain_emo.prompts.tasks import keyed_random

FORMAT = AnswerFormat(
    {
        "transcript": "text",
        "gender": ["female", "male"],
        "pitch": ["low", "medium", "high"],
        "emotion": ["angry", "happy", "neutral", "sad"],
    },
    {"pitch": 3.0, "response": 2.0},
)
CAPTIONS = ["a {gender} voice, pitch {pitch}, {emotion}", "{emotion} {gender} voice", "pitch {pitch}"]
PROMPTS = [
    "{paralinguistic}{linguistic}\nPitch? {choices}",
    "Choose from {choices}: {paralinguistic}{linguistic}",
]
THIRDS = {"speech": 1 / 3, "text": 1 / 3, "nothing": 1 / 3}


def pitch_task(**more):
    return ChoiceTask("pitch", PROMPTS, "pitch", "The pitch is {value}.", FORMAT, captions=CAPTIONS, **more)


def record(key="u", **more):
    descriptors = {"pitch": "low", "gender": "female"}
    return {"id": key, "transcript": "good day", "emotion": "sad", "descriptors": descriptors, **more}


def dialogue(key="d", turns=3):
    audios = [{"wav": f"{i}.wav", "duration": 1.0 + i} for i in range(turns)]
    spoken = []
    for i in range(turns):
        descriptors = {"pitch": "high", "gender": "male"}
        spoken.append(
            {
                "role": "user",
                "audio": i,
                "text": f"word {i}",
                "emotion": "happy",
                "descriptors": descriptors,
            }
        )
        spoken.append({"role": "assistant", "text": f"reply {i}"})
    last = spoken[-2]
    own = {"transcript": last["text"], "emotion": last["emotion"], "descriptors": last["descriptors"]}
    return {"id": key, "audios": audios, "turns": spoken[:-1], "response": {"text": "the end"}, **own}


def prompt_text(example):
    return "".join(p if isinstance(p, str) else f"<{p.kind}>" for t in example.turns for p in t.parts)


def test_a_choice_is_asked_for_and_answered_with_a_sentence():
    example = pitch_task().build(record())
    assert FORMAT.text(example.answer) == "The pitch is low."
    assert [(f.value, f.weight) for f in example.answer] == [(" low", 3.0), ("", 1.0)]
    text = prompt_text(example)
    assert all(value in text for value in ("low", "medium", "high", "<linguistic>", "<paralinguistic>"))


def test_lists_are_shuffled_by_the_key_and_evenly():
    task = pitch_task()
    first = Counter(task.draw_choices(record(f"u{i}"))[0] for i in range(1500))
    assert all(abs(n / 1500 - 1 / 3) < 0.05 for n in first.values())
    assert task.draw_choices(record("u7")) == task.draw_choices(record("u7"))
    drawn = {tuple(task.draw_choices(record(), keyed_random(1, epoch))) for epoch in range(60)}
    assert len(drawn) == 6


def test_shorter_lists_hold_the_true_value():
    task = pitch_task(num_choices=[2, 3])
    lists = [task.draw_choices(record(), keyed_random(i)) for i in range(300)]
    assert {len(x) for x in lists} == {2, 3} and all("low" in x for x in lists)
    assert len(task.draw_choices(record(), num_choices=2)) == 2


def test_matching_a_sentence_to_the_list():
    task = pitch_task()
    choices = ["low", "medium", "high"]
    assert task.match("The pitch is High.", choices) == "high"
    assert task.match("The pitch is lower.", choices) is None
    assert task.match("low or high", choices) is None
    assert task.match("", choices) is None


def test_held_out_wordings_are_never_drawn_in_training():
    task = pitch_task(held_out=["{paralinguistic} {choices} ?"])
    drawn = {task.prompt_number(record(), random.Random(i)) for i in range(100)}
    assert drawn == {0, 1} and {task.prompt_number(record(f"u{i}")) for i in range(50)} == {0, 1}
    assert prompt_text(task.build(record(), prompt_number=2)).startswith("<paralinguistic> ")


def test_captions_use_what_the_record_knows():
    task = pitch_task()
    texts = {task.slot_text(record(), "paralinguistic", random.Random(i)) for i in range(60)}
    assert texts == {" a female voice, pitch low, sad", " sad female voice", " pitch low"}
    assert task.slot_text({"id": "u", "emotion": "sad"}, "paralinguistic", random.Random(0)) == " emotion sad"
    assert task.slot_text(record(), "linguistic") == " good day"
    with pytest.raises(ValueError, match="no transcript"):
        task.slot_text({"id": "u"}, "linguistic")


def test_a_record_may_say_what_stands_in_for_a_slot():
    own = record(slot_texts={"linguistic": " good good day"})
    assert pitch_task().slot_text(own, "linguistic") == " good good day"


@pytest.mark.parametrize(
    "change,message",
    [
        ({"field": "transcript"}, "no list of values"),
        ({"sentence": "It is low."}, "once"),
        ({"prompts": ["{linguistic}"]}, "needs"),
        ({"num_choices": [1]}, "allowed: 2 to 3"),
        ({"field": "age"}, "unknown fields"),
    ],
)
def test_wrong_choice_tasks_are_refused(change, message):
    arguments = {
        "prompts": PROMPTS,
        "field": "pitch",
        "sentence": "It is {value}.",
        "format": FORMAT,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        ChoiceTask("pitch", **arguments)


def test_a_task_can_be_for_some_corpora_and_some_values():
    task = ChoiceTask(
        "emotion",
        ["{linguistic} {choices}"],
        "emotion",
        "{value}",
        FORMAT,
        corpora=["a"],
        values=["sad", "happy"],
    )
    assert task.applies(record(corpus="a")) and not task.applies(record(corpus="b"))
    assert not task.applies({**record(corpus="a"), "emotion": "angry"})
    assert sorted(task.draw_choices(record())) == ["happy", "sad"]
    with pytest.raises(ValueError, match="not allowed by the answer format"):
        ChoiceTask("e", ["{choices}"], "emotion", "{value}", FORMAT, values=["bored"])


# -- dialogues -----------------------------------------------------------------------------------------------


def chat(**more):
    return DialogueTask("chat", ["{paralinguistic}{linguistic}"], FORMAT, captions=CAPTIONS[:1], **more)


def test_a_dialogue_has_its_slots_in_every_spoken_turn():
    example = chat(systems=["Be kind."]).build(dialogue())
    assert [t.role for t in example.turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [(s.kind, s.audio) for s in example.slots] == [
        (kind, audio) for audio in range(3) for kind in ("paralinguistic", "linguistic")
    ]
    assert [(f.value, f.weight) for f in example.answer] == [("the end", 2.0)]


def test_the_styled_transcript_is_the_same_prompt_in_words():
    sources = {"paralinguistic": "text", "linguistic": "text"}
    example = chat().build(dialogue(), slot_sources=sources)
    assert [s.text for s in example.slots][:2] == [" a male voice, pitch high, happy", " word 0"]
    mixed = chat().build(dialogue(), history_sources=sources)
    assert [s.source for s in mixed.slots] == ["text"] * 4 + ["speech"] * 2


def test_the_language_model_s_own_answer_goes_before_the_corpus_s():
    assert chat().build({**dialogue(), "target": "my own"}).answer[0].value == "my own"
    nothing = {**dialogue(), "response": None}
    assert not chat().applies(nothing) and chat().build(nothing).answer == ()


def test_history_is_cut_from_the_front():
    example = chat(max_history=2).build(dialogue())
    assert [t.role for t in example.turns] == ["user", "assistant", "user"]
    assert {s.audio for s in example.slots} == {1, 2}
    alone = chat(max_history=0).build(dialogue())
    assert [s.audio for s in alone.slots] == [2, 2]


def test_typed_turns_are_text():
    made = dialogue()
    made["turns"][0] = {"role": "user", "text": "typed"}
    example = chat().build(made)
    assert example.turns[0].parts == ("typed",)
    made["turns"] = made["turns"][:2]
    with pytest.raises(ValueError, match="must be the user's"):
        chat().build(made)


def test_single_turn_tasks_are_about_the_last_turn_of_a_dialogue():
    example = pitch_task().build(dialogue())
    assert {s.audio for s in example.slots} == {2}
    asr = InstructionTask("asr", ["{linguistic} Words?"], ["transcript"], FORMAT)
    assert asr.build(dialogue()).answer[0].value == " word 2"


def test_only_the_used_audios_are_loaded_and_counted_anew():
    example, used = renumber_audios(pitch_task().build(dialogue()))
    assert used == [2] and {s.audio for s in example.slots} == {0}
    example, used = renumber_audios(chat(max_history=2).build(dialogue()))
    assert used == [1, 2] and [s.audio for s in example.slots] == [0, 0, 1, 1]


# -- equivalence replacement ---------------------------------------------------------------------------------


def err_phase(**more):
    return Phase(
        "err",
        (),
        {"asr": 0.5, "pitch": 0.5},
        epochs=1,
        lr=1e-3,
        slot_sources_by_task={"asr": {"paralinguistic": THIRDS}, "pitch": {"linguistic": THIRDS}},
        **more,
    )


def test_which_slot_is_replaced_depends_on_the_task():
    kinds = ("linguistic", "paralinguistic")
    drawn = Counter()
    for i in range(3000):
        for task in ("asr", "pitch"):
            drawn[task, tuple(draw_slot_sources(err_phase(), kinds, random.Random(i), task).values())] += 1
    assert {k[1][0] for k in drawn if k[0] == "asr"} == {"speech"}
    assert {k[1][1] for k in drawn if k[0] == "pitch"} == {"speech"}
    assert len(drawn) == 6 and all(abs(n / 3000 - 1 / 3) < 0.04 for n in drawn.values())


def test_wrong_policies_are_refused():
    with pytest.raises(ValueError, match="tasks of the phase"):
        Phase("p", (), {"asr": 1.0}, epochs=1, lr=1.0, slot_sources_by_task={"ser": {}})
    with pytest.raises(ValueError, match=r"slot_sources_by_task\[asr\]\[linguistic\]"):
        policy = {"asr": {"linguistic": {"speech": 0.5}}}
        Phase("p", (), {"asr": 1.0}, epochs=1, lr=1.0, slot_sources_by_task=policy)
    with pytest.raises(ValueError, match="corpora"):
        Phase("p", (), {"asr": 1.0}, epochs=1, lr=1.0, corpora={"a": 2.0})


def make_data(records, phase, seed=3):
    tokenizer = train_tiny_tokenizer(["good day word reply the end pitch low medium high"], vocab_size=300)
    packer = Packer(tokenizer, ("paralinguistic", "linguistic"))
    tasks = {
        "asr": InstructionTask(
            "asr", ["{paralinguistic}{linguistic} Words?"], ["transcript"], FORMAT, captions=CAPTIONS
        ),
        "pitch": pitch_task(),
        "chat": chat(),
    }
    speech = SpeechRecords(records, 16000, frames_of_samples=lambda n: -(-n // 320))
    import torch

    speech.load = lambda audio: torch.ones(round(audio["duration"] * 16000))
    positions = {"paralinguistic": lambda f: 4, "linguistic": lambda f: -(-f // 5)}
    return SpeechData(speech, tasks, packer, lambda k, f: positions[k](f), seed, {phase.name: phase})


def test_draws_hang_on_the_utterance_and_not_on_the_batch():
    records = {f"u{i}": {**record(f"u{i}"), "wav": "x", "duration": 0.5} for i in range(30)}
    data = make_data(records, err_phase())
    items = data.draw_items(err_phase(), "1.err", 4)
    whole = data.micro_batch(items, 4, "1.err")
    parts = [data.micro_batch([item], 4, "1.err") for item in reversed(items)]
    assert tuple(reversed([p.sources[0] for p in parts])) == whole.sources
    assert len(set(whole.sources)) == 6
    again = make_data(records, err_phase()).micro_batch(items, 4, "1.err")
    assert again.sources == whole.sources and again.packed.token_ids.equal(whole.packed.token_ids)
    assert data.micro_batch(items, 5, "1.err").sources != whole.sources


def test_records_get_only_tasks_that_they_can_answer():
    records = {"plain": {"id": "plain", "transcript": "good day", "wav": "x", "duration": 1.0, "corpus": "a"}}
    records["talk"] = {**dialogue("talk"), "corpus": "b"}
    phase = Phase("p", (), {"asr": 0.1, "pitch": 0.1, "chat": 0.8}, epochs=1, lr=1.0)
    data = make_data(records, phase)
    seen = {}
    for epoch in range(60):
        for item in data.draw_items(phase, "1.p", epoch):
            seen.setdefault(item.record, set()).add(item.task)
    assert seen == {0: {"asr"}, 1: {"asr", "pitch", "chat"}}
    assert {(i.record, i.task) for i in data.all_items(sorted(phase.tasks))} == {
        (0, "asr"),
        (1, "asr"),
        (1, "pitch"),
        (1, "chat"),
    }


def test_a_corpus_can_be_drawn_in_part():
    records = {
        f"{c}{i}": {**record(), "wav": "x", "duration": 1.0, "corpus": c} for c in "ab" for i in range(400)
    }
    phase = Phase("p", (), {"asr": 1.0}, epochs=1, lr=1.0, corpora={"a": 0.2})
    data = make_data(records, phase)
    counts = Counter(data.records[i.record]["corpus"] for i in data.draw_items(phase, "1.p", 1))
    assert counts["b"] == 400 and 55 < counts["a"] < 105


def test_a_dialogue_is_packed_with_all_its_audios():
    phase = Phase("p", (), {"chat": 1.0}, epochs=1, lr=1.0)
    data = make_data({"talk": dialogue("talk")}, phase)
    (item,) = data.draw_items(phase, "1.p", 1)
    micro = data.micro_batch([item], 1, "1.p")
    assert micro.audio.num_audios == 3 and micro.num_frames == 50 + 100 + 150
    index = micro.packed.slots["linguistic"]
    assert index.audio.tolist() == [0] * 10 + [1] * 20 + [2] * 30
    assert data.frames(0, "chat") == 450 and data.frames(0, "asr") == 150
