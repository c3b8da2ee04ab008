"""Targets of dialogues: what a small frozen language model answers to styled transcripts, and their file."""

import json

import pytest
import torch

from speechbrain_emo import cli
from speechbrain_emo.brains.dialogue_targets import example_text, prepare_targets, styled_example
from speechbrain_emo.dataio.dialogue import dialogue_record, make_turn
from speechbrain_emo.lobes.speech_llm import SpeechLLM
from speechbrain_emo.lobes.tiny_llm import build_tiny_llm
from speechbrain_emo.prompts import AnswerFormat, DialogueTask, Packer

ANSWERS = {"sad": "so sorry", "happy": "how nice", "angry": "well well well well well well well well"}
WORDS = ["I saw the dog", "the lamp is red", "we go home now", "who was that"]


def dialogue(number, emotion, turns=3):
    made = []
    for i in range(turns):
        audio = {"wav": f"{number}_{i}.wav", "duration": 1.0}
        made.append(make_turn("user", WORDS[(number + i) % 4], audio, "AB"[i % 2], emotion=emotion))
    return dialogue_record(made, make_turn("user", "the corpus says", None, "AB"[turns % 2]), str(number))


def make_task():
    fmt = AnswerFormat({"transcript": "text", "emotion": list(ANSWERS)})
    return DialogueTask(
        "chat", ["{paralinguistic}{linguistic}"], fmt, systems=["be kind"], captions=["({emotion})"]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model that has learnt in text to answer by the caption of the last turn."""
    folder = str(tmp_path_factory.mktemp("llm"))
    build_tiny_llm(
        folder, [*ANSWERS.values(), *WORDS, "be kind (sad) (happy) (angry)"] * 3, 300, 32, 2, 2, 1, 64, 128
    )
    llm, task = SpeechLLM(folder), make_task()
    packer = Packer(llm.tokenizer, task.slot_kinds)
    llm.requires_grad_(True)
    optimizer = torch.optim.AdamW(llm.parameters(), 1e-2)
    rows = []
    for number in range(12):
        # All emotions with all words, in both lengths: nothing but the caption tells the answer.
        emotion, words, turns = list(ANSWERS)[number % 3], number // 3, 1 + number // 3 % 2
        record = {**dialogue(words, emotion, turns), "id": str(number), "target": ANSWERS[emotion]}
        sources = dict.fromkeys(task.slot_kinds, "text")
        rows.append(packer.encode(task.build(record, slot_sources=sources)))
    batch = packer.collate(rows)
    for _ in range(40):
        loss = llm.answer_loss(llm.embed(batch, {}), batch)
        (loss.weighted_sum / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    llm.causal_lm.save_pretrained(folder)
    return folder


@pytest.fixture
def llm(folder):
    return SpeechLLM(folder)


def records():
    return {f"d{i}": dialogue(i, list(ANSWERS)[i % 3], 1 + i // 3 % 2) for i in range(9)}


def count_calls(llm, monkeypatch):
    calls, generate = [], llm.generate

    def counted(embeddings, packed, *rest):
        calls.append(len(packed.ids))
        return generate(embeddings, packed, *rest)

    monkeypatch.setattr(llm, "generate", counted)
    return calls


def test_targets_are_the_model_s_own_answers(llm, tmp_path):
    # Alone and without padding.
    packer, alone = Packer(llm.tokenizer, make_task().slot_kinds), {}
    for name, record in records().items():
        example = styled_example(make_task(), {**record, "id": name})
        packed = packer.collate([packer.encode(example, with_answer=False)], "left")
        alone[name] = llm.generate(llm.embed(packed, {}), packed, 6)[0]
    finished = {name: llm.tokenizer.decode(ids).strip() for name, ids in alone.items() if len(ids) < 6}
    assert 2 <= len(finished) <= 7 and len(set(finished.values())) > 1, (
        "the test needs answers of several kinds"
    )
    made = records()
    report = prepare_targets(
        made, llm, make_task(), tmp_path / "t.jsonl", max_new_tokens=6, max_rows=4, progress=False
    )
    # An answer that is cut off is no target: learnt, it would teach never to end.
    assert {name: r["target"] for name, r in made.items() if "target" in r} == finished
    assert report.num_records == 9 and report.num_truncated == 9 - len(finished) and report.num_empty == 0
    lines = {x["id"]: x for x in map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())}
    assert lines["d0"]["question"] == "system: be kind\nuser: (sad) I saw the dog"
    for name, ids in alone.items():
        example = styled_example(make_task(), {**records()[name], "id": name})
        assert lines[name]["question"] == example_text(example) and lines[name]["num_tokens"] == len(ids)
        assert lines[name]["response"] == llm.tokenizer.decode(ids).strip()
        assert lines[name]["finish"] == ("stop" if name in finished else "length")
        assert lines[name]["settings"]["max_new_tokens"] == 6 and lines[name]["settings"]["llm"] == llm.source
    kept = records()
    report = prepare_targets(
        kept, llm, make_task(), tmp_path / "t.jsonl", max_new_tokens=6, keep_truncated=True, progress=False
    )
    assert report.num_reused == 9 and all(r["target"] for r in kept.values())


def test_a_killed_run_goes_on(llm, tmp_path, monkeypatch):
    file, whole = tmp_path / "t.jsonl", records()
    options = {"max_new_tokens": 6, "progress": False}
    prepare_targets(whole, llm, make_task(), file, **options)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][: len(lines[4]) // 2])
    calls, again = count_calls(llm, monkeypatch), records()
    report = prepare_targets(again, llm, make_task(), file, **options)
    assert sum(calls) == 5 and report.num_reused == 4 and again == whole
    calls.clear()
    prepare_targets(records(), llm, make_task(), file, **options)
    assert calls == []
    # What changes the answer is asked for again: settings, words, weights.
    prepare_targets(records(), llm, make_task(), file, max_new_tokens=5, progress=False)
    assert sum(calls) == 9
    calls.clear()
    changed = records()
    changed["d4"]["turns"][-1]["text"] = "the dog"
    changed["d5"]["turns"][-1]["emotion"] = "sad"
    prepare_targets(changed, llm, make_task(), file, **options)
    assert sum(calls) == 2
    calls.clear()
    with torch.no_grad():
        llm.causal_lm.get_input_embeddings().weight.mul_(1.01)
    prepare_targets(records(), llm, make_task(), file, **options)
    assert sum(calls) == 9


def test_what_cannot_be_asked(llm, folder, tmp_path):
    long = records()
    long["d0"]["turns"][-1]["text"] = "the dog " * 100
    report = prepare_targets(long, llm, make_task(), tmp_path / "t.jsonl", max_new_tokens=6, progress=False)
    assert report.num_too_long == 1 and "target" not in long["d0"] and long["d3"]["target"]
    with pytest.raises(ValueError, match="has LoRA adapters: targets are what the FROZEN model answers"):
        prepare_targets(records(), SpeechLLM(folder, lora={"r": 2}), make_task(), tmp_path / "t.jsonl")
    broken = records()
    broken["d1"]["turns"][-1]["role"] = "assistant"
    with pytest.raises(ValueError, match="d1: the last turn is the assistant's"):
        prepare_targets(broken, llm, make_task(), tmp_path / "t.jsonl")


def test_the_command(folder, tmp_path, capsys):
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    plain = {"asr": {"wav": "{data_root}/x.wav", "duration": 1.0, "speaker": "s", "transcript": "hi"}}
    (manifests / "train.json").write_text(json.dumps({**plain, **records()}))
    (manifests / "valid.json").write_text(json.dumps({"v": dialogue(3, "sad")}))
    (tmp_path / "x.yaml").write_text(
        f"""
manifest_folder: {manifests}
manifests:
    train: !ref <manifest_folder>/train.json
    valid: !ref <manifest_folder>/valid.json
llm: !name:speechbrain_emo.lobes.speech_llm.SpeechLLM
    source: nowhere
format: !new:speechbrain_emo.prompts.AnswerFormat
    fields: {{transcript: text, emotion: [sad, happy, angry]}}
tasks:
    chat: !new:speechbrain_emo.prompts.DialogueTask
        name: chat
        format: !ref <format>
        prompts: ["{{paralinguistic}}{{linguistic}}"]
        systems: [be kind]
        captions: ["({{emotion}})"]
"""
    )
    command = ["targets", str(tmp_path / "x.yaml"), f"--llm={{source: {folder}}}", "--max_new_tokens", "6"]
    command += ["--cuts", "1", "--device", "cpu"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    train = json.loads((manifests / "aligned" / "train.json").read_text())
    assert "asr" in train and "1 others" in out and "valid: " in out
    # Dialogues with a target only; those that were cut are among them.
    dialogues = {name: record for name, record in train.items() if name != "asr"}
    assert dialogues and all(record["target"] for record in dialogues.values()) and len(dialogues) < 12
    command.append("--keep_truncated")
    assert cli.main(command) == 0
    assert "valid: 1 of 1 dialogues have a target" in capsys.readouterr().out
    train = json.loads((manifests / "aligned" / "train.json").read_text())
    assert any("@" in name for name in train)
    assert all(r["target"] for name, r in train.items() if name != "asr")
    lines = (manifests / "aligned" / "targets.jsonl").read_text().splitlines()
    assert cli.main(command) == 0
    assert (manifests / "aligned" / "targets.jsonl").read_text().splitlines() == lines
    for arguments, message in (
        (["--split", "test"], "--split test: the experiment has train, valid"),
        (["--task", "asr"], "the experiment's dialogue tasks are chat"),
        (["nonsense"], "nonsense: not known; overrides of the YAML are --key=value"),
        ([f"--manifest_folder={tmp_path}"], "no such manifest; prepare the corpora first"),
    ):
        assert cli.main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err
