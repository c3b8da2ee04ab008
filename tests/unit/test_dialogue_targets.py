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
    made = records()
    report = prepare_targets(
        made, llm, make_task(), tmp_path / "t.jsonl", max_new_tokens=6, max_rows=4, progress=False
    )
    # Sad and happy are answered in few tokens; the long answer is cut off and no target.
    assert [made[f"d{i}"].get("target") for i in range(3)] == ["so sorry", "how nice", None]
    assert report.num_records == 9 and report.num_truncated == 3 and report.num_usable == 6
    lines = {x["id"]: x for x in map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())}
    assert (
        lines["d0"]["question"] == "system: be kind\nuser: (sad) I saw the dog"
        and lines["d2"]["finish"] == "length"
    )
    assert lines["d1"]["settings"]["max_new_tokens"] == 6 and lines["d1"]["settings"]["llm"] == llm.source
    # Alone and without padding: the same answers.
    packer = Packer(llm.tokenizer, make_task().slot_kinds)
    for name, record in records().items():
        example = styled_example(make_task(), {**record, "id": name})
        assert example_text(example) == lines[name]["question"]
        packed = packer.collate([packer.encode(example, with_answer=False)], "left")
        ids = llm.generate(llm.embed(packed, {}), packed, 6)[0]
        assert llm.tokenizer.decode(ids).strip() == lines[name]["response"]
    # The style decides: the same words, another answer.
    other = {"x": dialogue(0, "happy", 1), "y": dialogue(0, "sad", 1)}
    prepare_targets(other, llm, make_task(), tmp_path / "t.jsonl", max_new_tokens=6, progress=False)
    assert (other["x"]["target"], other["y"]["target"]) == ("how nice", "so sorry")
    kept = records()
    report = prepare_targets(
        kept, llm, make_task(), tmp_path / "t.jsonl", max_new_tokens=6, keep_truncated=True, progress=False
    )
    assert report.num_reused == 9 and kept["d2"]["target"].startswith("well well")


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
    assert "asr" in train and "1 others" in out and "valid: 1 of 1 dialogues have a target" in out
    cut = [name for name in train if "@" in name]
    assert cut and all(train[name]["target"] in ("so sorry", "how nice") for name in cut)
    assert "d2" not in train, "its answer was cut off"
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
