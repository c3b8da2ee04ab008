"""JELLY end to end at toy size: stages, what trains in them, resume, evaluation, synthesis, inference."""

import json
import subprocess
import sys

import pytest
import soundfile
import speechbrain as sb
import tiny_tts
import torch
import toy
import toy_jelly
import yaml
from safetensors.torch import load_file

from speechbrain_emo.brains.conversational_tts import AcousticBrain, load_tts, run_conversational_tts
from speechbrain_emo.brains.speech_llm_experiment import (
    MissingCheckpoint,
    SpeechLLMExperiment,
    run_speech_llm,
)
from speechbrain_emo.cli import main
from speechbrain_emo.dataio.audio import AudioError
from speechbrain_emo.dataio.manifest import ManifestError, read_manifest
from speechbrain_emo.inference import ConversationalTTS, ConversationError
from speechbrain_emo.inference.conversational_tts import Prediction, marked_line
from speechbrain_emo.inference.reply_corpus import (
    KNOWN,
    REPLIES,
    ReplyEvaluation,
    conversation_of,
    run_reply_corpus,
)
from speechbrain_emo.prompts.markup import EmotionMarkup

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jelly")
    return folder, toy_jelly.build(folder)


@pytest.fixture(scope="module")
def finished(files):
    folder, overlay = files
    run_speech_llm(toy_jelly.hparams(overlay), {"device": "cpu"})
    return folder / "run"


@pytest.fixture(scope="module")
def synthesiser(files):
    folder, _ = files
    run_conversational_tts(
        toy_jelly.hparams(folder / "tts_overlay.yaml", "demo_jelly_tts.yaml"), {"device": "cpu"}
    )
    return folder / "tts"


def state(modules):
    return [p.detach().clone() for m in modules for p in m.parameters()]


@pytest.mark.parametrize("stage", ["stage1_1", "stage2_1", "stage2_2"])
def test_a_stage_moves_what_it_should_and_nothing_else(files, stage):
    folder, overlay = files
    run = SpeechLLMExperiment(
        toy_jelly.hparams(overlay, output_folder=str(folder / stage)), {"device": "cpu"}
    )
    run.fill_cache()
    run.brain.nonfinite_count = 0
    epoch = run.schedule.first_epoch(f"1.{stage}")
    run.brain.position = run.schedule.at(epoch)
    run.brain._enter(run.brain.position)
    run.brain.progress["steps_of_phase"] = None
    run.brain.on_stage_start(sb.Stage.TRAIN, epoch)
    run.brain.modules.train()
    before = {name: state(modules) for name, modules in run.model.groups().items()}
    tasks = set()
    for plan in run.brain.sampler.plans:
        batch = run.data["train"][plan]
        tasks |= {t for micro in batch for t in micro.tasks}
        run.brain.fit_batch(batch)
    moved = {
        name
        for name, modules in run.model.groups().items()
        if any(not torch.equal(a, b) for a, b in zip(before[name], state(modules), strict=True))
    }
    wanted = {
        "stage1_1": (
            {"front_end.tltr", "front_end.q_former", "llm.lora.emotion", "llm.lora.text"},
            {"emotion"},
        ),
        "stage2_1": ({"llm.lora.text"}, {"next_text"}),
        "stage2_2": (
            {"front_end.q_former", "llm.lora.emotion", "llm.lora.text"},
            {"next", "emotion_intensity"},
        ),
    }[stage]
    assert (moved, tasks) == wanted
    if stage == "stage2_1":
        # Labels are words: no position is of the emotion's kind, and no audio is read.
        micro = run.data["train"][run.brain.sampler.plans[0]][0]
        assert micro.audio is None and int(micro.packed.kinds.max()) == 2


def test_a_run_interrupted_in_every_stage_goes_on_exactly(files, monkeypatch):
    """Killed inside 1-1, 1-2, 2-1 and 2-2 in turn; every stage ends with the weights of the run that was left alone."""
    folder, overlay = files
    from speechbrain_emo.brains.speech_llm_brain import SpeechLLMBrain

    def run(name):
        hparams = toy_jelly.hparams(overlay, output_folder=str(folder / name), evaluation=None)
        for phase in hparams["phases"]:
            phase["batch_size"] = 8  # Several steps a stage.
        run_speech_llm(hparams, {"device": "cpu"})

    run("whole")
    plain, stopped = SpeechLLMBrain.fit_batch, set()

    def stopping(self, batch):
        name = self.position.phase.name
        if name not in stopped and self.progress["phase_step"] == 1:
            stopped.add(name)
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(SpeechLLMBrain, "fit_batch", stopping)
    stages = ["stage1_1", "stage1_2", "stage2_1", "stage2_2"]
    for _ in stages:
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    run("stopped")
    assert stopped == set(stages)
    weights = []
    for path in (folder / "whole", folder / "stopped"):
        weights.append({})
        for checkpoint in (path / "save").glob("CKPT+*"):
            phase = yaml.safe_load((checkpoint / "CKPT.yaml").read_text())["phase"]
            for part in (
                checkpoint / "front_end.ckpt",
                *checkpoint.glob("llm.ckpt/*/adapter_model.safetensors"),
            ):
                own = {f"{phase}/{part.parent.name[:5]}/{k}": v for k, v in load_file(part).items()}
                weights[-1].update(own)
    assert weights[0].keys() == weights[1].keys() and {k.split("/")[0] for k in weights[0]} >= {
        f"1.{stage}" for stage in stages
    }
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_evaluation_has_every_row(finished):
    metrics = json.loads((finished / "results.json").read_text())["metrics"]
    for key in ("emotion.speech@stage1_1", "emotion_intensity.speech@stage1_2"):
        assert 0 <= metrics[f"test.{key}.emotion_wa"] <= 1
    for condition in ("speech", "gold", "nothing", "speech_only"):
        for name in (
            "accuracy",
            "scored_accuracy",
            "scored_emotion_f1",
            "scored_intensity_wa",
            "wa_history_2",
        ):
            assert 0 <= metrics[f"test.next.{condition}@stage2_2.{name}"] <= 1
        key = f"test.next.{condition}@stage2_2"
        assert metrics[f"{key}.seconds"] > 0 and metrics[f"{key}.latency"] > 0
        assert metrics[f"{key}.weights_bytes"] == 4 * metrics[f"{key}.parameters"] > 0
        assert (
            sum(v for k, v in metrics.items() if k.startswith(f"{key}.count_history_"))
            == metrics[f"{key}.count"]
        )
    # Where nothing is heard, encoder and EQ-former are not needed.
    assert metrics["test.next.speech@stage2_2.parameters"] > metrics["test.next.gold@stage2_2.parameters"]
    for condition in ("majority", "copy_last", "copy_own"):
        assert 0 <= metrics[f"test.next.{condition}.emotion_wa"] <= 1
    assert 0 < metrics["test.next.gru@stage1_2.own_parameters"] < metrics["test.next.gru@stage1_2.parameters"]
    for row in ("emotion.speech@stage1_1", "emotion_intensity.speech@stage2_2", "next.speech@stage2_2"):
        for fault in ("clean", "noise_0", "telephone"):
            assert 0 <= metrics[f"robust_{fault}.{row}.emotion_wa"] <= 1
            assert metrics[f"robust_{fault}.{row}.count"] >= 3
    assert (finished / "next_line_next.png").is_file()
    lines = [json.loads(line) for line in (finished / "answers.jsonl").read_text().splitlines()]
    assert {x["condition"] for x in lines if x["task"] == "next"} >= {
        "speech",
        "gold",
        "gru",
        "majority",
        "copy_own",
    }
    assert metrics["test.next.replies@stage2_2.agreement_1"] == 1.0
    assert 0 <= metrics["test.next.replies@stage2_2.agreement_2"] <= 1


def test_audio_as_recorded_gives_the_slots_of_the_cache(finished, files):
    """The faults' path, read anew and encoded live, is the path of training where nothing is changed."""
    folder, overlay = files
    run = SpeechLLMExperiment(toy_jelly.hparams(overlay), {"device": "cpu"})
    run.brain.load_best("1.stage1_2")
    run.model.eval()
    from speechbrain_emo.brains.next_line_evaluation import NextLineEvaluation

    evaluation = NextLineEvaluation(run)
    cached = evaluation.tools.slots("test", 0, 0)["emotion"]
    found = {}
    for change in ("clean", "noise_0", "telephone"):
        with evaluation._audio(change):
            found[change] = evaluation.tools.slots("test", 0, 0)["emotion"]
            evaluation.tools.forget_slots()
            # What is random is drawn from the recording's name: the same in every run.
            assert torch.equal(evaluation.tools.slots("test", 0, 0)["emotion"], found[change])
    assert torch.allclose(found["clean"], cached, atol=1e-5)
    assert not torch.allclose(found["noise_0"], cached, atol=1e-5)
    assert not torch.allclose(found["telephone"], cached, atol=1e-5)
    # Afterwards it is the cache again.
    assert evaluation.tools.slots("test", 0, 0)["emotion"] is cached
    with pytest.raises(ValueError, match="unknown changes .'rain'."):
        evaluation.settings = {**evaluation.settings, "robustness": {"changes": ["rain"]}}
        evaluation.robustness(run.tasks["emotion"], "stage1_2", lambda record: None)


@pytest.mark.parametrize(
    "overlay", ["no_q_former", "no_tltr", "plain_lora", "no_text_pretraining", "text_only_history"]
)
def test_ablations_build_and_step(files, overlay):
    folder, base = files
    hparams = toy_jelly.hparams(base, overlays=[f"{overlay}.yaml"], output_folder=str(folder / overlay))
    run = SpeechLLMExperiment(hparams, {"device": "cpu"})
    run.fill_cache()
    run.brain.nonfinite_count = 0
    epoch = run.schedule.first_epoch("1.stage2_2")
    run.brain.position = run.schedule.at(epoch)
    run.brain._enter(run.brain.position)
    run.brain.progress["steps_of_phase"] = None
    run.brain.on_stage_start(sb.Stage.TRAIN, epoch)
    run.brain.modules.train()
    assert float(run.brain.fit_batch(run.data["train"][run.brain.sampler.plans[0]])) > 0
    if overlay == "plain_lora":
        assert run.llm.trainable_groups()["llm.lora.emotion"] == []
    if overlay == "no_text_pretraining":
        assert "1.stage2_1" not in run.schedule.keys


def test_a_missing_input_names_the_command(files, finished):
    folder, overlay = files
    command = "python train.py hparams/demo_jelly.yaml"
    changes = {"output_folder": str(folder / "later"), "start_from": None}
    hparams = toy_jelly.hparams(overlay, **{k: v for k, v in changes.items() if k != "start_from"})
    hparams["start_from"] = {"save_folder": str(folder / "absent"), "phase": "stage2_1", "command": command}
    with pytest.raises(MissingCheckpoint, match="python train.py hparams/demo_jelly.yaml"):
        SpeechLLMExperiment(hparams, {"device": "cpu"}).train()
    hparams["start_from"]["save_folder"] = str(finished / "save")
    run = SpeechLLMExperiment(hparams, {"device": "cpu"})
    run.start_from()
    trained = load_file(
        next(
            p / "llm.ckpt/text/adapter_model.safetensors"
            for p in (finished / "save").glob("CKPT+*")
            if "stage2_1" in (p / "CKPT.yaml").read_text()
        )
    )
    own = run.llm.partial.state_dict("text")
    assert all(torch.equal(own[k], v) for k, v in trained.items())


# --------------------------------------------------------------------------------------------------- synthesis
def test_the_synthesiser_measures_and_writes(synthesiser):
    metrics = json.loads((synthesiser / "results.json").read_text())["metrics"]
    for name in (
        "duration_error",
        "mcd",
        "mcd_true_durations",
        "emotion_accuracy",
        "emotion_accuracy_recorded",
        "emotion_accuracy_vocoded_judge",
        "emotion_accuracy_resynthesised_vocoded_judge",
    ):
        assert metrics[f"test.tts.{name}"] >= 0
    model, inventory, settings, content = load_tts(synthesiser)
    assert inventory.speakers == ["a", "b"] and "red" in inventory.phones and content["g2p"] == "espeak"
    (synthesiser / "model" / "acoustic.safetensors").read_bytes()
    with pytest.raises(FileNotFoundError, match="demo_jelly_tts.yaml"):
        load_tts(synthesiser / "save")


def test_an_interrupted_synthesiser_goes_on_exactly(synthesiser, files, monkeypatch):
    folder, _ = files
    plain = AcousticBrain.on_stage_start

    def stopping(self, stage, epoch=None):
        if stage == sb.Stage.VALID and epoch == 2:
            raise KeyboardInterrupt
        plain(self, stage, epoch)

    def hparams():
        return toy_jelly.hparams(
            folder / "tts_overlay.yaml", "demo_jelly_tts.yaml", output_folder=str(folder / "tts2")
        )

    monkeypatch.setattr(AcousticBrain, "on_stage_start", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_conversational_tts(hparams(), {"device": "cpu"})
    monkeypatch.setattr(AcousticBrain, "on_stage_start", plain)
    run_conversational_tts(hparams(), {"device": "cpu"})
    one, two = (load_file(folder / n / "model" / "acoustic.safetensors") for n in ("tts", "tts2"))
    assert all(torch.equal(one[k], two[k]) for k in one)


# --------------------------------------------------------------------------------------------------- inference
@pytest.fixture(scope="module")
def tts(finished, synthesiser):
    return ConversationalTTS.from_hparams(source=str(finished), tts=str(synthesiser))


def recordings(finished):
    return [str(finished.parent / "corpus" / "wav" / f"test0_{i}.wav") for i in range(2)]


def test_a_reply_has_sound_and_says_what_was_heard(tts, finished, tmp_path):
    reply = tts.reply(dialogue=recordings(finished), speakers=[0, 1], text="red dog", speaker=0)
    assert reply.duration > 0.05 and reply.sample_rate == 16000
    p = reply.prediction
    assert len(p.heard) == 2 and all(
        not t.given and abs(sum(t.probabilities.values()) - 1) < 1e-6 for t in p.heard
    )
    assert abs(sum(p.probabilities.values()) - 1) < 1e-6
    assert p.label in p.probabilities and set(p.seconds) == {"listen", "reason", "synthesise", "vocode"}
    assert any("words of 2 turns" in w for w in p.warnings)
    reply.save(tmp_path / "y.wav")
    assert (tmp_path / "y.wav").stat().st_size > 1000


def test_inference_sees_the_prompt_of_training(tts, finished, files):
    """The probabilities are those that the evaluation's scores give for the same record."""
    folder, overlay = files
    run = SpeechLLMExperiment(toy_jelly.hparams(overlay), {"device": "cpu"})
    run.brain.load_best("1.stage2_2")
    run.model.eval()
    from speechbrain_emo.brains.next_line_evaluation import NextLineEvaluation

    evaluation = NextLineEvaluation(run)
    records = run.data["test"].records
    index = next(i for i in range(len(records)) if records[i]["id"] == "test_0000_2")
    record, task = records[index], run.tasks["next"]
    example = task.build({**record, "id": "conversation"}, slot_sources={"emotion": "speech"})
    candidates = [run.packer.answer_ids(task.answer_fields(v)) for v in task.values]
    (scores,) = evaluation.tools.score_examples("test", [index], [example], candidates)
    wanted = torch.tensor(scores).softmax(0).tolist()
    found = tts.predict(
        [t["wav"] for t in record["audios"]],
        [t["speaker"] for t in record["turns"]],
        record["response"]["text"],
        record["response"]["speaker"],
        transcripts=[t["text"] for t in record["turns"]],
    )
    assert list(found.probabilities.values()) == pytest.approx(wanted, abs=1e-4)


def test_given_emotions_and_words_are_taken(tts, finished):
    prediction = tts.predict(
        [None, recordings(finished)[1]],
        ["a", "b"],
        "cat",
        "a",
        transcripts=["red", "dog"],
        emotions=["weak sad", None],
    )
    assert prediction.heard[0].given and prediction.heard[0].label == "weak sad"
    assert not prediction.heard[1].given and prediction.warnings == ()


def test_wrong_conversations_are_refused(tts, finished):
    one = recordings(finished)[:1]
    with pytest.raises(ConversationError, match="as many"):
        tts.predict(one, [0, 1], "red", 0)
    with pytest.raises(ConversationError, match="not known"):
        tts.predict(one, [0], "red", 0, emotions=["bored"])
    with pytest.raises(ConversationError, match="neither a recording"):
        tts.predict([None], [0], "red", 0)
    with pytest.raises(ConversationError, match="no words"):
        tts.predict(one, [0], " ", 0)
    with pytest.raises(ConversationError, match="has no voice"):
        tts.reply(one, [0], "red", "carol")
    with pytest.raises(ConversationError, match="speaker 2 has no voice: give a number from 0 to 1"):
        tts.reply(one, [0], "red", 2)
    with pytest.raises(ConversationError, match="no word that can be spoken"):
        tts.reply(one, [0], "...", 0)
    with pytest.raises(ConversationError, match="0 recordings"):
        tts.reply([], [], "red", 0)
    with pytest.raises(ConversationError, match="dialogue is '.*': give a list"):
        tts.reply(one[0], [0], "red", 0)
    with pytest.raises(AudioError, match="absent.wav"):
        tts.reply([str(finished / "absent.wav")], [0], "red", 0)
    silent = ConversationalTTS.from_hparams(source=str(finished))
    with pytest.raises(ConversationError, match="there is no synthesiser.*demo_jelly_tts.yaml"):
        silent.reply(one, [0], "red", 0)


def test_of_twelve_turns_the_last_ten_are_heard(tts, finished):
    turns = (recordings(finished) * 6)[:12]
    transcripts = [f"red {'dog ' * i}" for i in range(12)]
    long = tts.predict(turns, [0, 1] * 6, "cat", 0, transcripts=transcripts)
    short = tts.predict(turns[2:], [0, 1] * 5, "cat", 0, transcripts=transcripts[2:])
    assert len(long.heard) == 10 and long.probabilities == short.probabilities
    assert any("first 2 turns are left out" in w for w in long.warnings) and not short.warnings


def test_replies_are_spoken_and_scored(tts, finished, synthesiser, files):
    folder, _ = files

    def hparams(**changes):
        return toy_jelly.hparams(folder / "replies_overlay.yaml", "demo_jelly_replies.yaml", **changes)

    metrics = run_reply_corpus(hparams(), {"device": "cpu"})
    for row in (*KNOWN, *REPLIES):
        assert metrics[f"replies.{row}.count"] == 3
    assert metrics["replies.true_label.predicted_accuracy"] == 1.0
    # What is spoken is compared with a recording; a recording is not compared with itself.
    assert metrics["replies.spoken.mcd"] > 0 and metrics["replies.spoken.duration_error"] >= 0
    assert "replies.recorded.mcd" not in metrics and "replies.spoken.wer" not in metrics
    lines = [json.loads(line) for line in (folder / "replies" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * len((*KNOWN, *REPLIES))
    # The table is what the file says, for the judge of recordings and for the one that knows the vocoder.
    for row in (*KNOWN, *REPLIES):
        for taught in ("", "_vocoded_judge"):
            own = [line for line in lines if line["row"] == row]
            for name, column in (("emotion_accuracy", "emotion"), ("follows", "asked")):
                share = sum(line[f"judged{taught}"] == line[column] for line in own) / len(own)
                assert metrics[f"replies.{row}.{name}{taught}"] == pytest.approx(share)
    # The label comes from where the row says: the same voice and words, and what the interface predicts.
    one = next(line for line in lines if line["row"] == "speech_only")
    record = read_manifest(folder / "corpus" / "manifests" / "test.json", {"data_root": folder / "corpus"})[
        one["id"]
    ]
    given = conversation_of(record, transcripts=False, emotions=False)
    assert tts.predict(**given).emotion == one["asked"] and record["response"]["emotion"] == one["emotion"]
    # Outputs of the same models are kept; a recogniser is asked about all of them.
    wavs = sorted((folder / "replies").glob("*/*.wav"))
    before = [p.stat().st_mtime_ns for p in wavs]
    evaluation = ReplyEvaluation(
        ConversationalTTS.from_hparams(source=str(finished), tts=str(synthesiser)),
        {
            name: read_manifest(path, {"data_root": folder / "corpus"})
            for name, path in hparams()["manifests"].items()
        },
        folder / "replies",
        asr=lambda paths: ["red" for _ in paths],
        num_lines=3,
    )
    heard = evaluation.run(["neutral"])
    assert [p.stat().st_mtime_ns for p in wavs] == before and heard["replies.neutral.wer"] > 0
    for name in ("model", "tts", "asr"):
        with pytest.raises(
            ManifestError, match=f"{name} is .*absent.* make it with:  python train.py hparams/demo_"
        ):
            run_reply_corpus(hparams(**{name: str(folder / "absent")}), {"device": "cpu"})


def test_the_command_line_replies(tts, finished, synthesiser, tmp_path, capsys):
    file = tmp_path / "dialogue.json"
    turns = [{"audio": r, "speaker": i} for i, r in enumerate(recordings(finished))]
    file.write_text(json.dumps({"turns": turns}))
    arguments = ["reply", str(file), "--text", "red dog", "--speaker", "0", "--model", str(finished)]
    out = tmp_path / "y.wav"
    assert main([*arguments, "--tts", str(synthesiser), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert out.is_file() and len(said["heard"]) == 2 and said["emotion"]
    assert main([*arguments, "--out", str(out)]) == 2
    assert "needs --tts" in capsys.readouterr().err
    assert main(["converse", turns[0]["audio"], "--text", "red", "--model", str(finished)]) == 0
    assert "answer: red" in capsys.readouterr().out


def test_the_word_level_synthesiser_speaks_the_answer(finished, tmp_path, capsys):
    """`converse` with --word_tts: the predicted emotion becomes the mark of the whole line."""
    folder = tiny_tts.build_tts(tmp_path / "film").parent
    prompt, out = tmp_path / "me.wav", tmp_path / "y.wav"
    soundfile.write(prompt, tiny_tts.recording(2.0), 16000)
    (turn, _) = recordings(finished)
    arguments = ["converse", turn, "--text", "red & dog", "--model", str(finished), "--word_tts", str(folder)]
    assert main([*arguments, "--prompt", str(prompt), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    label = {"angry": "ang", "happy": "hap", "sad": "sad"}.get(said["emotion"])
    degree = {"weak": "low", "medium": "medium", "strong": "high"}.get(said["intensity"])
    mark = (
        f"<emotion type='{label}' intensity='{degree}'>red &amp; dog</emotion>" if label else "red &amp; dog"
    )
    assert said["markup"] == mark and said["seconds"]["speak"] > 0 and out.stat().st_size > 1000
    assert main([*arguments, "--out", str(out)]) == 2 and "needs --prompt" in capsys.readouterr().err


def test_predicted_labels_become_marks():
    def line(emotion, intensity):
        return Prediction("I see.", "0", emotion, intensity, {}, {}, (), (), {})

    degrees = ("weak", "medium", "strong")
    markup = EmotionMarkup(("neutral", "anger", "joy"), ("1", "2", "3", "4", "5"))
    assert marked_line(line("happy", "strong"), markup, degrees) == (
        "<emotion type='joy' intensity='5'>I see.</emotion>"
    )
    assert "type='anger' intensity='1'" in marked_line(line("angry", "weak"), markup, degrees)
    assert "intensity='3'" in marked_line(line("angry", None), markup, degrees)
    assert marked_line(line("neutral", None), markup, degrees) == "I see."
    with pytest.raises(ConversationError, match="no emotion like 'fear'; it has neutral, anger, joy"):
        marked_line(line("fear", "weak"), markup, degrees)


def test_the_text_stage_is_tested_in_another_domain(tmp_path):
    """dailytalk_emotion_text.yaml with overlays/meld_dialogues.yaml: no encoder, no front end, no export."""
    annotations, meld = tmp_path / "annotations", tmp_path / "meld"
    annotations.mkdir()
    meld.mkdir()

    def row(dialogue, last):
        columns = {"transcript": "hello there|oh no|well then", "emotion": f"neutral|weak sad|{last}"}
        path = f"/x/dailytalk_16khz/data/{dialogue}/2_0_d{dialogue}.wav"
        return {"path": path, **columns, "speaker": "0|1|0", "text": last}

    rows = [row(i, "happy" if i % 2 else "neutral") for i in range(1, 13)]
    for name, some in (("valid", rows), ("test", [row(20, "angry"), row(21, "happy")])):
        (annotations / f"stage02_1_{name}.json").write_text(json.dumps({"annotation": some}))
    table = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    table += "".join(f"we go {u},{'AB'[u % 2]},joy,x,0,{u}\n" for u in range(5))
    for part in ("train", "dev", "test"):
        (meld / f"{part}_sent_emo.csv").write_text(table)
    overlay = tmp_path / "overlay.yaml"
    settings = {"data_folder": str(annotations), "output_folder": str(tmp_path / "run"), "precision": "fp32"}
    overlay.write_text(yaml.safe_dump({**settings, "evaluation": {"latency_records": 2}}))
    hparams = toy_jelly.hparams(
        overlay, "dailytalk_emotion_text.yaml", ["meld_dialogues.yaml"], meld_folder=str(meld)
    )
    hparams["prepare"].keywords.update(
        vocab_size=300, model={"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    )
    hparams["prepare"]()
    run_speech_llm(hparams, {"device": "cpu"})
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert metrics["meld.next_text.gold@stage2_1.count"] == 4
    assert metrics["meld.next_text.copy_last.emotion_wa"] == 1.0
    assert 0 <= metrics["meld.next_text.nothing@stage2_1.scored_emotion_f1"] <= 1
    assert metrics["meld.next_text.majority.emotion_wa"] in (0.0, 1.0)
    assert metrics["test.next_text.gold@stage2_1.count"] == 2
    assert (tmp_path / "run" / "done.json").is_file() and not (tmp_path / "run" / "model").exists()


def test_two_processes_train_like_one(files, tmp_path):
    """Two gloo processes end every stage with the weights of one: adapters, TLTR and Q-Former, without dropout."""
    _, overlay = files
    settings = yaml.safe_load(overlay.read_text())
    settings.update(evaluation=None, ckpt_interval_steps=0, ckpt_interval_minutes=10, stage2_2_epochs=1)
    settings["front_end"]["dropout"] = 0.0
    settings["llm"]["lora"] = {name: {"lora_dropout": 0.0} for name in ("emotion", "text")}
    own = tmp_path / "overlay.yaml"
    own.write_text(yaml.safe_dump(settings))
    found = []
    for name, launch in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]),
    ):
        command = toy.command(own, f"--output_folder={tmp_path / name}", experiment="hparams/demo_jelly.yaml")
        command += ["--distributed_backend=gloo"] if launch else []
        done = subprocess.run(
            [sys.executable, *launch, *command],
            cwd=toy.REPOSITORY,
            env=toy.environment(),
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        weights = {}
        for path in (tmp_path / name / "save").glob("CKPT+*"):
            meta = yaml.safe_load((path / "CKPT.yaml").read_text())
            parts = [path / "front_end.ckpt", *path.glob("llm.ckpt/*/adapter_model.safetensors")]
            weights[meta["phase"]] = {
                f"{p.parent.name[:5]}/{k}": v for p in parts for k, v in load_file(p).items()
            }
        found.append(weights)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4
    for key, expected in found[0].items():
        for name, value in expected.items():
            assert float((value - found[1][key][name]).abs().max()) < 1e-5, (key, name)
