"""Conversations with a tiny dialogue model: what is kept between turns, what may be edited, what is refused."""

import io
import json
import struct
import time

import pytest
import torch

from speechbrain_emo import cli
from speechbrain_emo.brains.speech_language_model import AudioBatch
from speechbrain_emo.dataio.audio import AudioError, load_audio
from speechbrain_emo.inference import ChatError, ChatTurn, EmotionalChat, EmotionExplainer
from speechbrain_emo.inference.export import ExportError, complete_chat_settings, export_model
from speechbrain_emo.inference.safe_loading import UnsafeModelError
from speechbrain_emo.metrics.judges import read_responses
from speechbrain_emo.prompts import Packer
from tests.tiny import write_tone
from tests.tiny_dual import CHAT, build_tiny_dual

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return build_tiny_dual(tmp_path_factory.mktemp("dual"))


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waves")
    return [str(write_tone(folder / f"{i}.wav", 0.5 + 0.3 * i, 110 + 40 * i)) for i in range(4)]


@pytest.fixture(scope="module")
def loaded(system):
    return EmotionalChat.from_hparams(source=system.folder, run_opts=CPU)


@pytest.fixture
def chat(loaded):
    """The one model, with everything as it was loaded."""
    loaded.reset()
    loaded.system, loaded.past_speech, loaded.overflow, loaded.keep_cache = None, "speech", "drop", True
    loaded.context = 1024
    yield loaded
    loaded.reset()


def fresh(chat, history, turn, **settings):
    """The answer of a conversation that has read nothing yet, and the logits of its first token."""
    chat.reset()
    chat.history = [ChatTurn(t.role, t.text, t.audio, dict(t.attributes)) for t in history]
    for name, value in settings.items():
        setattr(chat, name, value)
    return chat.say(turn)


def test_a_reply_is_what_training_would_generate(chat, system, waves):
    """Prompt and answer come from the task, the packer and `generate`: there is no second path."""
    reply = chat.say(waves[0])
    packer = Packer(system.model.llm.tokenizer, system.model.front_end.slot_kinds)
    record = {"id": "recording", "turns": [{"role": "user", "text": "", "audio": 0}], "audios": [{}]}
    example = system.tasks["dialogue"].build(record, prompt_number=0)
    assert example.turns[0].parts == ("You are kind.",)
    wave = load_audio(waves[0], 16000)
    features, frames = system.model.features(AudioBatch(torch.tensor([len(wave)]), waveforms=wave[None]))
    slots = system.model.front_end(features, frames).slots
    lengths = [{k: system.model.front_end.num_positions(k, int(frames[0])) for k in packer.slot_kinds}]
    packed = packer.collate([packer.encode(example, lengths, with_answer=False)], "left")
    expected = system.model.llm.generate(
        system.model.llm.embed(packed, slots), packed, CHAT["max_new_tokens"]
    )[0]
    assert list(reply.token_ids) == expected and reply.num_positions == packed.token_ids.shape[1]
    assert str(reply) == packer.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert chat.history == [ChatTurn("user", "", waves[0]), ChatTurn("assistant", reply.text)]


def test_kept_keys_and_values_change_nothing_but_the_cost(chat, waves):
    """Five turns, speech and text: only the new turn is read, answers and logits as when everything is read again."""
    turns = [waves[0], "What now?", waves[1], waves[2], "I am so sorry."]
    kept, last = [], []
    for turn in turns:
        kept.append(chat.say(turn))
        last.append(len(chat._keys))
    assert len({r.token_ids for r in kept}) >= 4, (
        "the answers hardly depend on the turns: the test would prove little"
    )
    chat.reset()
    chat.keep_cache = False
    again = [chat.say(turn) for turn in turns]
    assert [r.token_ids for r in kept] == [r.token_ids for r in again]
    assert [r.num_reused for r in again] == [0] * 5
    assert [r.num_positions for r in kept] == [r.num_positions for r in again]
    for before, reply in zip(kept, kept[1:]):
        # All of the earlier prompt is kept, and of the answer what the template writes the same way.
        assert reply.num_reused >= before.num_positions
        assert reply.num_positions - reply.num_reused < reply.num_positions / 2 + 30
    assert all(n >= r.num_positions for n, r in zip(last, kept))


def test_logits_with_and_without_kept_positions_agree(chat, waves):
    logits = []
    for keep in (True, False):
        chat.reset()
        chat.keep_cache = keep
        chat.say(waves[0])
        turns = [*chat.history, chat._turn(waves[1], None, None)]
        row, _, audios = chat._fit(turns, 4)
        chat._slots = {t.key: chat._encode(t.waveform) for t in turns if t.is_speech}
        found, reused = chat._read(row, audios)
        logits.append(found)
        assert (reused > 0) == keep
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_an_edited_history_is_read_again(chat, waves):
    for turn in (waves[0], "Hello there.", waves[1]):
        chat.say(turn)
    edited = chat.history[:]
    edited[1] = ChatTurn("assistant", "I hear you.")
    chat.history[1].text = "I hear you."
    found = chat.say(waves[2])
    assert 0 < found.num_reused < 60
    assert found.token_ids == fresh(chat, edited, waves[2]).token_ids
    # Another recording in an old turn.
    chat.reset()
    chat.say(waves[0])
    answer = chat.history[1].text
    chat.history[0].audio = waves[3]
    found = chat.say("What now?")
    assert (
        found.token_ids
        == fresh(chat, [ChatTurn("user", "", waves[3]), ChatTurn("assistant", answer)], "What now?").token_ids
    )
    # Taken back.
    chat.reset()
    first = chat.say(waves[0])
    chat.say(waves[1])
    del chat.history[-2:]
    second = chat.say(waves[2])
    assert (
        second.token_ids
        == fresh(
            chat, [ChatTurn("user", "", waves[0]), ChatTurn("assistant", first.text)], waves[2]
        ).token_ids
    )
    # The system prompt.
    before = fresh(chat, [], waves[0]).token_ids
    chat.system = "You are angry, low and sad."
    chat.history = []
    assert chat.say(waves[0]).token_ids != before
    chat.history = [ChatTurn("bot", "x")]
    with pytest.raises(ChatError, match="role 'bot'; allowed: user, assistant"):
        chat.say("Hello.")
    chat.history = [ChatTurn("user", " ")]
    with pytest.raises(ChatError, match="turn 0 of the history is empty"):
        chat.say("Hello.")


def test_streaming(chat, waves):
    pieces = list(chat.stream(waves[0]))
    reply = chat.last_reply
    assert "".join(pieces).strip() == reply.text and len(pieces) > 3
    assert 0 < reply.first_token_seconds
    before = chat.history[:]
    stream = chat.stream(waves[1])
    next(stream)
    stream.close()
    assert chat.history == before and chat.last_reply is reply
    after = chat.say(waves[2])
    assert after.token_ids == fresh(chat, before, waves[2]).token_ids
    assert chat.say("Hello.", max_new_tokens=2).finish in ("length", "stop")
    with pytest.raises(ChatError, match="max_new_tokens is 0; allowed: 1 and above"):
        chat.say("Hello.", max_new_tokens=0)


def test_past_speech_as_text(chat, waves):
    chat.past_speech = "text"
    chat.say(waves[0])
    chat.say(waves[1])
    words, attributes = chat.transcribe(waves[0]), chat.describe(waves[0]).values
    first = chat.history[0]
    assert (
        first.text == words
        and first.attributes == attributes
        and set(attributes) == {"gender", "pitch", "emotion"}
    )
    assert not chat.history[2].attributes, "the turn that is answered is heard"
    assert chat.history[1].text
    caption = f"({attributes['gender']} voice, {attributes['pitch']} pitch, {attributes['emotion']})"
    row, _, audios = chat._fit(chat.history[:3], 4)
    shown = chat.packer.tokenizer.decode(row.token_ids)
    assert caption in shown and len(audios) == 1
    # Edited attributes are used, unknown ones refused.
    first.attributes["emotion"] = "angry"
    row, _, _ = chat._fit(chat.history[:3], 4)
    assert "angry)" in chat.packer.tokenizer.decode(row.token_ids)
    first.attributes["emotion"] = "bored"
    with pytest.raises(ChatError, match="the history cannot be packed: .*emotion is 'bored'; allowed"):
        chat.say("Hello.")


def test_what_is_refused_leaves_everything_as_it_was(chat, waves, tmp_path):
    chat.say(waves[0])
    before = chat.history[:]
    long = tmp_path / "long.wav"
    size = 40 * 60 * 16000 * 2
    with open(long, "wb") as stream:  # 40 minutes; sparse, only the header is written.
        stream.write(
            b"RIFF"
            + struct.pack("<I", 36 + size)
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
        )
        stream.write(b"data" + struct.pack("<I", size))
        stream.truncate(44 + size)
    started = time.perf_counter()
    with pytest.raises(AudioError, match="long.wav: .*2400.* longer than"):
        chat.say(str(long))
    assert time.perf_counter() - started < 1.0, "the header says it: nothing has to be read"
    for turn, error, message in (
        ("", ChatError, "the turn is empty"),
        (" \n", ChatError, "the turn is empty"),
        ("nowhere.wav", AudioError, "nowhere.wav: no such file"),
        (tmp_path / "x", AudioError, "no such file"),
        (None, ChatError, "give one of turn, text and audio; 0 are given"),
    ):
        with pytest.raises(error, match=message):
            chat.say(turn)
    with pytest.raises(ChatError, match="2 are given"):
        chat.say("Hello.", text="Hello.")
    with pytest.raises(ChatError, match=r"the samples have shape \(0,\)"):
        chat.say(audio=torch.zeros(0))
    with pytest.raises(AudioError, match="21.0 s is longer than 20.0 s"):
        chat.say(audio=torch.zeros(21 * 16000))
    assert chat.history == before
    expected = chat.say(waves[1]).token_ids
    assert expected == fresh(chat, before, waves[1]).token_ids
    assert chat.say(text="nowhere.wav").text is not None, "said as text, it is a text"


def test_a_history_longer_than_the_context(chat, waves, caplog):
    chat.context = 160
    replies = [chat.say(waves[i % 2]) for i in range(6)]
    dropped = [r.num_dropped for r in replies]
    assert dropped[0] == 0 and dropped[-1] > 0 and dropped == sorted(dropped)
    assert all(n % 2 == 0 for n in dropped), "the prompt begins with the user's turn"
    assert all(r.num_positions + len(r.token_ids) <= 160 for r in replies)
    assert len(chat.history) == 12, "what is left out of the prompt stays in the history"
    assert "the history is longer than the context of 160 positions: its first" in caplog.text
    history = chat.history[:]
    last = chat.say("What now?")
    assert last.token_ids == fresh(chat, history[last.num_dropped :], "What now?").token_ids
    chat.reset()
    chat.history, chat.overflow = history, "error"
    with pytest.raises(
        ChatError, match="the conversation needs .* the model's context of 160 has room for .* chat.overflow"
    ):
        chat.say("What now?")
    assert chat.history == history
    chat.reset()
    with pytest.raises(ChatError, match="the turn alone needs .* cut the recording or the text"):
        chat.say("word " * 400)
    chat.context = 40
    with pytest.raises(ChatError, match="the recording needs .* positions under task"):
        chat.describe(waves[3])


def test_describe_and_transcribe(chat, system, waves):
    found = chat.describe(waves[1], written=True)
    assert set(found.values) == {"gender", "pitch", "emotion"} and set(found.written) == set(found.values)
    for name, row in found.probabilities.items():
        assert sum(row.values()) == pytest.approx(1.0, abs=1e-5) and found.values[name] == max(
            row, key=row.get
        )
        assert set(row) == set(system.answer_format.spec[name])
    # By one full forward pass for each candidate.
    task, llm = system.tasks["pitch"], system.model.llm
    packer = chat.packer
    wave = load_audio(waves[1], 16000)
    lengths, slots = chat._lengths(wave), chat._encode(wave)
    scores = {}
    for choice in task.draw_choices({"id": "recording"}):
        record = {"id": "recording", "descriptors": {"pitch": choice}}
        choices = task.draw_choices({"id": "recording"})
        packed = packer.collate([packer.encode(task.build(record, choices=choices), [lengths])])
        loss = llm.answer_loss(llm.embed(packed, slots), packed)
        scores[choice] = -float(loss.nll_sum / loss.num_tokens)
    expected = torch.tensor(list(scores.values())).softmax(0)
    assert list(found.probabilities["pitch"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
    assert isinstance(chat.transcribe(waves[1]), str) and chat.history == []
    chat.transcript_task, kept = None, chat.transcript_task
    with pytest.raises(ChatError, match="exported without a task that transcribes"):
        chat.transcribe(waves[1])
    chat.transcript_task = kept


def test_loading_and_export_say_what_a_model_is_for(system, tmp_path):
    with pytest.raises(UnsafeModelError, match="this model is for EmotionalChat, not for EmotionExplainer"):
        EmotionExplainer.from_hparams(source=system.folder)
    card = (system.folder / "model" / "README.md").read_text()
    assert "EmotionalChat.from_hparams" in card and "2508.08095" in card
    arguments = (system.model, system.factories, system.answer_format, system.tasks)
    with pytest.raises(ExportError, match="one of explain, chat and next_line"):
        export_model(tmp_path / "m", *arguments)
    with pytest.raises(ExportError, match="chat names the task 'age'"):
        export_model(tmp_path / "m", *arguments, chat={**CHAT, "choice_tasks": ["age"]})
    for wrong, message in (
        ({"dialogue": "x"}, "unknown keys"),
        ({}, "dialogue_task is null"),
        ({"dialogue_task": "dialogue", "max_new_tokens": 0}, "must be a number above 0"),
    ):
        with pytest.raises(ExportError, match=message):
            complete_chat_settings(wrong, ["dialogue"])
    # Tasks come back as they were.
    chat = EmotionalChat.from_hparams(source=system.folder, run_opts=CPU)
    for name, task in chat.hparams.tasks.items():
        own = system.tasks[name]
        assert type(task) is type(own) and task.prompts == own.prompts and task.captions == own.captions
    assert chat.dialogue_task.systems == ["You are kind."] and list(chat.choice_tasks) == [
        "gender",
        "pitch",
        "emotion",
    ]


def test_the_command(system, waves, monkeypatch, capsys, tmp_path):
    lines = [
        waves[0],
        "Hello there.",
        "/gone/missing.wav",
        "/history",
        f"/describe {waves[1]}",
        "/undo",
        "/nonsense",
        "/history",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    command = ["chat", "--model", str(system.folder), "--device", "cpu"]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert "/gone/missing.wav: no such file" in err and "/nonsense is no command; there are /describe" in err
    assert out.count(f"user: {waves[0]}") == 2 and out.count("user: Hello there.") == 1 and "gender: " in out
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{waves[0]}\n/quit\n"))
    assert cli.main([*command, "--json", "--max_new_tokens", "3"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["turn"] == waves[0] and len(line["token_ids"]) <= 3 and line["num_positions"] > 5
    assert cli.main(["chat", "--model", str(tmp_path)]) == 2
    assert cli.main([*command, "--manifest", "x.json"]) == 2
    assert "belong together" in capsys.readouterr().err


def test_answers_to_a_manifest_for_the_judges(chat, system, waves, tmp_path, capsys):
    """A dialogue file with a missing recording: it is named, the others are answered; a second run adds what lacks."""

    def dialogue(*files):
        turns, audios = [], []
        for i, file in enumerate(files):
            turns.append({"role": "user", "text": f"words {i}", "audio": len(audios), "emotion": "sad"})
            turns.append({"role": "assistant", "text": f"answer {i}", "audio": None})
            audios.append({"wav": file, "duration": 1.0})
        return {"turns": turns[:-1], "audios": audios, "emotion": "sad", "descriptors": {"pitch": "low"}}

    records = {
        "a": dialogue(waves[0], waves[1]),
        "b": dialogue(waves[0], "gone.wav"),
        "c": dialogue(waves[2]),
    }
    (tmp_path / "test.json").write_text(json.dumps(records))
    command = [
        "chat",
        "--model",
        str(system.folder),
        "--device",
        "cpu",
        "--manifest",
        str(tmp_path / "test.json"),
    ]
    command += ["--responses", str(tmp_path / "responses.jsonl")]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert "error: b: gone.wav: no such file" in err and "2 of 3 dialogues answered" in out
    rows = read_responses(tmp_path / "responses.jsonl")
    assert [r["id"] for r in rows] == ["a", "c"] and rows[0]["style"] == "emotion: sad, pitch: low"
    assert [t["text"] for t in rows[0]["turns"]] == ["words 0", "answer 0", "words 1"]
    history = [ChatTurn("user", "", waves[0]), ChatTurn("assistant", "answer 0")]
    assert rows[0]["response"] == fresh(chat, history, waves[1]).text
    records["b"] = dialogue(waves[0], waves[3])
    before = (tmp_path / "responses.jsonl").read_text()
    (tmp_path / "responses.jsonl").write_text(before + '{"id": "b", "tu')
    chat.reset()
    assert chat.respond(records, tmp_path / "responses.jsonl", progress=False) == {} and chat.history == []
    assert (tmp_path / "responses.jsonl").read_text().startswith(before)
    assert [r["id"] for r in read_responses(tmp_path / "responses.jsonl")] == ["a", "c", "b"]
