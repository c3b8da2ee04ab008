"""Speaking from Python and the command line: results, streams, batches, bad input, tags, no partial file."""

import json

import numpy as np
import pytest
import soundfile
import tiny_tts
import torch

from speechbrain_emo import cli
from speechbrain_emo.dataio.audio import AudioError
from speechbrain_emo.inference import EmotionalTTS, SpeakError
from speechbrain_emo.inference.safe_loading import UnsafeModelError
from speechbrain_emo.inference.speech import read_tag, write_tagged
from speechbrain_emo.prompts.markup import EmotionMarkup, MarkupError
from speechbrain_emo.prompts.spoken_text import split_sentences, spoken_text

TEXT = "I thought we lost. <emotion type='hap' intensity='high'>Then she scored!</emotion>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_tts.build_tts(tmp_path_factory.mktemp("tts"))


@pytest.fixture(scope="module")
def tts(folder):
    return EmotionalTTS.from_hparams(folder.parent)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    path = tmp_path_factory.mktemp("voice") / "me.wav"
    soundfile.write(path, tiny_tts.recording(2.2, 44100), 44100)
    return path


def test_speech_has_all_that_is_promised(tts, speaker, tmp_path):
    speech = tts.speak(TEXT, speaker, "I said something", seed=3, aligner=None)
    assert speech.sample_rate == 24000 and speech.samples.dtype == np.float32
    # Two mel frames of 20 ms a token.
    assert len(speech.samples) == len(speech.tokens) * 960
    assert np.isfinite(speech.samples).all() and np.abs(speech.samples).max() <= 1
    assert speech.finish_reason in ("eos", "max_length")
    assert speech.text == "I thought we lost. Then she scored!" and speech.markup == TEXT
    again = tts.speak(TEXT, speaker, "I said something", seed=3, aligner=None)
    assert np.array_equal(again.samples, speech.samples)
    other = tts.speak(TEXT, speaker, "I said something", seed=4, aligner=None)
    assert other.tokens != speech.tokens
    plain = tts.speak(
        "I thought we lost. Then she scored!", speaker, "I said something", seed=3, aligner=None
    )
    assert plain.tokens != speech.tokens, "marks must reach the model"
    # The file says what it is, and from where.
    file = speech.save(tmp_path / "deep" / "y.wav")
    tag = read_tag(file)
    assert tag.startswith("synthetic speech") and tts.model_hash in tag and '"seed": 3' in tag
    samples, rate = soundfile.read(file)
    assert rate == 24000 and np.abs(samples - speech.samples).max() < 1e-3
    assert read_tag(speech.save(tmp_path / "y.flac")) == tag
    assert read_tag(speaker) is None
    assert [p.name for p in sorted(tmp_path.rglob("*")) if p.is_file()] == ["y.wav", "y.flac"]
    assert json.loads(json.dumps(speech.to_dict()))["words"] is None


def test_a_batch_gives_what_each_text_gets_alone(tts, speaker):
    texts = [TEXT, "Nobody knew it.", "<emotion type='sad' intensity='low'>so it is, you see</emotion>"]
    voice = tts.voice(speaker, "I said something")
    together = tts.speak_batch(texts, voice, seeds=[1, 2, 3], aligner=None)
    for text, seed, speech in zip(texts, (1, 2, 3), together):
        alone = tts.speak(text, voice, seed=seed, aligner=None)
        assert alone.tokens == speech.tokens and alone.finish_reason == speech.finish_reason
        assert np.abs(alone.samples - speech.samples).max() < 1e-3
    with pytest.raises(SpeakError, match="one seed a text"):
        tts.speak_batch(texts, voice, seeds=[1])


def test_a_stream_gives_the_same_tokens_and_sound_before_the_end(tts, speaker):
    voice = tts.voice(speaker)
    whole = tts.speak(TEXT, voice, seed=5, aligner=None)
    chunks, stream = [], tts.stream(TEXT, voice, seed=5)
    calls, original = [], tts.mods["lm"].run_body
    tts.mods["lm"].run_body = lambda *a, **k: calls.append(1) or original(*a, **k)
    before = []
    while True:
        try:
            chunks.append(next(stream))
            before.append(len(calls))
        except StopIteration as stop:
            speech = stop.value
            break
    del tts.mods["lm"].run_body
    assert speech.tokens == whole.tokens and speech.finish_reason == whole.finish_reason
    assert len(np.concatenate(chunks)) == len(whole.samples)
    assert np.array_equal(np.concatenate(chunks), speech.samples)
    assert len(chunks) > 1 and before[0] < len(whole.tokens), "the first chunk comes before the last token"


def test_long_texts_are_spoken_in_pieces_and_longer_ones_refused(folder, speaker):
    tts = EmotionalTTS.from_hparams(folder, overrides={"max_piece_characters": 20})
    speech = tts.speak(TEXT, speaker, aligner=None)
    pause = int(0.2 * 24000)
    assert len(speech.samples) == len(speech.tokens) * 960 + pause
    for bad in ("so it is " * 1111, "x" * 10000):
        with pytest.raises(SpeakError, match="up to 5000"):
            tts.speak(bad, speaker)
    # Up to the limit it is spoken, in bounded time: at most three tokens for each text token here.
    assert tts.speak("so it is. " * 30, speaker, aligner=None).duration > 1


@pytest.mark.parametrize(
    "text", ["", "  \n", "😀 🎉", "...", "<emotion type='hap' intensity='high'>!</emotion>"]
)
def test_nothing_to_say_is_refused(tts, speaker, text):
    with pytest.raises(SpeakError, match="empty|nothing in it"):
        tts.speak(text, speaker)


def test_malformed_marks_are_refused_with_their_place(tts, speaker):
    with pytest.raises(MarkupError, match="line 1, column 4.*not closed"):
        tts.speak("so <emotion type='hap' intensity='high'>it is", speaker)
    with pytest.raises(MarkupError, match="joy"):
        tts.speak("<emotion type='joy' intensity='high'>it is</emotion>", speaker)


def test_emoji_and_digits_are_told(tts, speaker):
    speech = tts.speak("so <emotion type='hap' intensity='high'>2 goals 😀</emotion>", speaker, aligner=None)
    assert speech.text == "so two goals"
    assert any("😀" in w for w in speech.warnings) and any("'two'" in w for w in speech.warnings)


def test_bad_voices_are_refused_each_with_its_reason(tts, tmp_path):
    def file(name, samples, rate):
        soundfile.write(tmp_path / name, samples, rate)
        return tmp_path / name

    with pytest.raises(SpeakError, match="0.20 s are too short"):
        tts.voice(file("short.wav", tiny_tts.recording(0.2), 16000))
    with pytest.raises(SpeakError, match="silence"):
        tts.voice(file("silent.wav", np.zeros(32000), 16000))
    with pytest.raises(AudioError, match="longer|at most|max_duration"):
        tts.voice(file("long.wav", tiny_tts.recording(31), 16000))
    with pytest.raises(AudioError, match="no such file"):
        tts.voice(tmp_path / "missing.wav")
    # Stereo at 8 kHz is fine.
    mono = tiny_tts.recording(1.0, 8000)
    voice = tts.voice(file("stereo.wav", np.stack([mono, mono], 1), 8000))
    assert len(voice.tokens) == 25 and voice.mel.shape == (50, 8) and "1.0 s only" in voice.warnings[0]
    same = tts.voice((mono, 8000))
    torch.testing.assert_close(same.vector, voice.vector, atol=1e-2, rtol=1e-2)


def test_word_times_come_from_an_aligner_or_are_said_to_be_missing(tts, speaker):
    class Words:
        def align(self, samples, rate, text):
            assert rate == 16000 and text == "so it is"
            return type("A", (), {"words": ("a", "b", "c")})()

    tts._aligners["mine"] = Words()
    assert tts.speak("so it is", speaker, aligner="mine").words == ("a", "b", "c")
    speech = tts.speak("so it is", speaker, aligner="unheard of")
    assert speech.words is None and any("times are not known" in w for w in speech.warnings)


def test_a_model_without_acoustic_parts_says_what_is_missing(tmp_path, speaker):
    tts = EmotionalTTS.from_hparams(
        tiny_tts.build_tts(tmp_path, parts=("speech_tokenizer", "speaker_encoder"))
    )
    with pytest.raises(SpeakError, match="has no flow"):
        tts.speak("so it is", speaker)


def test_without_a_vocoder_phases_are_guessed_and_it_is_said(tmp_path, speaker):
    parts = ("speech_tokenizer", "speaker_encoder", "flow")
    tts = EmotionalTTS.from_hparams(tiny_tts.build_tts(tmp_path, parts=parts))
    speech = tts.speak("so it is", speaker, aligner=None)
    assert any("Griffin-Lim" in w for w in speech.warnings) and len(speech.samples) == 960 * len(
        speech.tokens
    )


def test_a_changed_file_is_refused(tmp_path):
    model = tiny_tts.build_tts(tmp_path)
    path = model / "lm" / "config.json"
    path.write_text(path.read_text().replace('"film"', '"none"'))
    with pytest.raises(UnsafeModelError, match="differs"):
        EmotionalTTS.from_hparams(model)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_tagged(tmp_path / "y.wav", np.zeros(10), 24000, "t")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SpeakError, match="ends in .wav or .flac"):
        write_tagged(tmp_path / "y.mp3", np.zeros(10), 24000, "t")


def test_a_part_takes_the_place_of_the_model_s_own(folder, tts, speaker, tmp_path):
    from speechbrain_emo.lobes.vocoder import HiFT

    torch.manual_seed(9)
    HiFT(num_mels=8, channels=16, f0_channels=8).save(tmp_path / "vocoder")
    other = EmotionalTTS.from_hparams(folder, parts={"vocoder": tmp_path / "vocoder"})
    assert other.model_hash != tts.model_hash
    first, second = (one.speak(TEXT, speaker, seed=2, aligner=None) for one in (tts, other))
    assert first.tokens == second.tokens and not np.array_equal(first.samples, second.samples)
    same = EmotionalTTS.from_hparams(folder, parts={"vocoder": folder / "vocoder"})
    assert np.array_equal(same.speak(TEXT, speaker, seed=2, aligner=None).samples, first.samples)
    with pytest.raises(UnsafeModelError, match="'lm'.*allowed: speech_tokenizer"):
        EmotionalTTS.from_hparams(folder, parts={"lm": folder / "lm"})
    with pytest.raises(UnsafeModelError, match="no flow is there"):
        EmotionalTTS.from_hparams(folder, parts={"flow": tmp_path / "missing"})


def test_a_continuous_model_takes_any_number_of_intensities(tmp_path, folder, speaker):
    names = {"intensities": ["0", "25", "50", "75", "100"], "untagged": ["neu", "0"]}
    model = tiny_tts.build_tts(tmp_path, intensity="continuous")
    tts, fine = EmotionalTTS.from_hparams(model), EmotionalTTS.from_hparams(model, overrides=names)
    said = {}
    for one, name in (
        (tts, "low"),
        (tts, "medium"),
        (tts, "high"),
        *((fine, n) for n in names["intensities"]),
    ):
        text = f"so it <emotion type='hap' intensity='{name}'>is</emotion>"
        plan = one._plan(text, one.voice(speaker, "I said"), 0)
        said[name] = max(plan.requests[0].intensities)
        assert set(plan.requests[0].prompt_intensities) == {0.0}
    assert said == {"low": 0, "medium": 0.5, "high": 1, "0": 0, "25": 0.25, "50": 0.5, "75": 0.75, "100": 1}
    with pytest.raises(UnsafeModelError, match="knows 3 intensities"):
        EmotionalTTS.from_hparams(folder, overrides=names)


# -- command line --------------------------------------------------------------------------------------------


def test_speak_on_the_command_line(folder, speaker, tmp_path, capsys):
    base = [
        "speak",
        "--speaker",
        str(speaker),
        "--model",
        str(folder),
        "--aligner",
        "none",
        "--device",
        "cpu",
    ]
    code = cli.main([*base, TEXT, "--out", str(tmp_path / "y.wav"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert code == (0 if record["finish_reason"] == "eos" else 1)
    assert record["text"] == "I thought we lost. Then she scored!" and read_tag(tmp_path / "y.wav")
    (tmp_path / "lines.txt").write_text("so it is\n\nNobody knew it.\n")
    code = cli.main([*base, "--text_file", str(tmp_path / "lines.txt"), "--out", str(tmp_path / "many")])
    assert code in (0, 1) and len(capsys.readouterr().out.splitlines()) == 2
    assert [p.name for p in sorted((tmp_path / "many").iterdir())] == ["0001.wav", "0002.wav"]


def test_a_bad_line_is_told_before_any_file_is_written(folder, speaker, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text(
        "so it is\n\n" * 9 + "so <emotion type='joy' intensity='high'>it</emotion>\n"
    )
    base = [
        "speak",
        "--speaker",
        str(speaker),
        "--model",
        str(folder),
        "--device",
        "cpu",
        "--batch_size",
        "2",
    ]
    code = cli.main([*base, "--text_file", str(tmp_path / "lines.txt"), "--out", str(tmp_path / "many")])
    assert code == 2 and "text 10" in capsys.readouterr().err and not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    "name,message", [("silent", "silence"), ("short", "too short"), ("text", "not an audio")]
)
def test_bad_voices_on_the_command_line(folder, tmp_path, capsys, name, message):
    soundfile.write(tmp_path / "silent.wav", np.zeros(32000), 16000)
    soundfile.write(tmp_path / "short.wav", tiny_tts.recording(0.2), 16000)
    (tmp_path / "text.wav").write_text("no audio")
    arguments = ["speak", "so it is", "--speaker", str(tmp_path / f"{name}.wav"), "--device", "cpu"]
    assert cli.main([*arguments, "--model", str(folder), "--out", str(tmp_path / "out" / "y.wav")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_numbers_are_read_in_the_language_that_is_asked_for(folder, speaker, tmp_path, capsys):
    base = [
        "speak",
        "so 12 it",
        "--speaker",
        str(speaker),
        "--model",
        str(folder),
        "--aligner",
        "none",
        "--device",
        "cpu",
    ]
    for options, text in (([], "so twelve it"), (["--language", "de"], "so zwölf it")):
        cli.main([*base, *options, "--out", str(tmp_path / "y.wav"), "--json"])
        assert json.loads(capsys.readouterr().out)["text"] == text


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["so <emotion>it", "--out", "y.wav"], "has no type"),
        (["", "--out", "y.wav"], "empty"),
        (["so it is", "--out", "y.mp3"], "ends in .wav"),
        (["x " * 5000, "--out", "y.wav"], "up to 5000"),
        (["--out", "y.wav"], "give a text"),
    ],
)
def test_bad_input_on_the_command_line(folder, speaker, tmp_path, capsys, arguments, message):
    arguments = [str(tmp_path / a) if a.startswith("y.") else a for a in arguments]
    base = ["speak", "--speaker", str(speaker), "--model", str(folder), "--device", "cpu"]
    assert cli.main([*base, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- texts ---------------------------------------------------------------------------------------------------


def test_marks_stay_on_their_words():
    markup = EmotionMarkup()
    marked = markup.parse(
        "Oh <emotion type='sad' intensity='low'>no, 10 😀 of them</emotion>, <emotion type='ang' "
        "intensity='high'>stop</emotion>!"
    )
    from speechbrain_emo.alignment.normalize import normalize

    words = [(w.start, w.stop, w.tokens) for w in normalize(marked.text).words]
    plain = spoken_text(marked, words, plain_words=True).marked
    assert markup.write(plain) == (
        "oh <emotion type='sad' intensity='low'>no ten of them</emotion> <emotion type='ang' intensity='high'>stop"
        "</emotion>"
    )
    kept = spoken_text(marked, words).marked
    assert kept.text == "Oh no, ten of them, stop!"
    assert [kept.text[s.start : s.stop] for s in kept.spans] == ["no, ten of them", "stop"]


def test_pieces_hold_the_whole_text_and_its_marks():
    marked = EmotionMarkup().parse(
        "One two three. <emotion type='hap' intensity='low'>Four five, six seven. Eight</emotion> nine ten eleven!"
    )
    for limit in (5, 12, 20, 1000):
        pieces = split_sentences(marked, limit)
        assert " ".join(p.text for p in pieces) == marked.text
        inside = " ".join(p.text[s.start : s.stop] for p in pieces for s in p.spans)
        assert inside == "Four five, six seven. Eight"
        assert all(len(p.text) <= limit or " " not in p.text for p in pieces)
    assert split_sentences(EmotionMarkup().parse("x" * 50), 10)[0].text == "x" * 50
