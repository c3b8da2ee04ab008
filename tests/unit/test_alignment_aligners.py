"""pocketsphinx and espeak-dtw: times against truth, wrong texts, long audio, bad input, the command."""

import doctest
import json
import time

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra align)")
pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (extra align)")
pytest.importorskip("num2words", reason="num2words is not installed (extra align)")

from speechbrain_emo import cli
from speechbrain_emo.alignment import Alignment, AlignmentError, AlignmentItem, make_aligner
from speechbrain_emo.alignment.imported import import_textgrid
from speechbrain_emo.alignment.pronunciation import arpabet, arpabet_of_mnemonics
from speechbrain_emo.alignment.textgrid import read_ctm
from speechbrain_emo.dataio.audio import load_audio
from speechbrain_emo.dataio.espeak import EspeakSynthesizer

ACOUSTIC = ("pocketsphinx", "espeak-dtw")
TEXT = "seven green boats will cross the river before the morning"
OTHER = "please bring another yellow candle upstairs without any noise"


@pytest.fixture(scope="module")
def aligners():
    return {name: make_aligner(name) for name in ACOUSTIC}


@pytest.fixture(scope="module")
def speech():
    """A voice and a rate that the warping does not start from."""
    return EspeakSynthesizer()(TEXT, voice="en-us+m3", rate=130)


def errors(words, truth):
    pairs = [(w.start - t.start, w.end - t.end) for w, t in zip(words, truth, strict=True)]
    return np.abs(pairs).ravel()


@pytest.mark.parametrize("name", ACOUSTIC)
def test_words_are_found_where_they_are(aligners, speech, name):
    found = aligners[name].align(speech.samples, speech.sample_rate, TEXT)
    assert np.median(errors(found.words, speech.words)) < 0.03
    assert found.aligner == name and found.text == TEXT
    assert found.duration == pytest.approx(len(speech.samples) / speech.sample_rate, abs=1e-3)
    if name == "pocketsphinx":
        assert [p.label for p in found.phones][:5] == ["S", "EH", "V", "AH", "N"]
        assert found.phones[0].start == found.words[0].start and found.phones[-1].end == found.words[-1].end


@pytest.mark.parametrize("name", ACOUSTIC)
def test_pauses_belong_to_no_word_and_a_shift_shifts(aligners, speech, name):
    rate, cut = speech.sample_rate, round(speech.words[4].start * speech.sample_rate)
    noise = np.random.default_rng(0).normal(0, 1e-4, rate).astype(np.float32)
    # 0.7 s of silence in front, 1 s between "will" and "cross".
    samples = np.concatenate([noise[: int(0.7 * rate)], speech.samples[:cut], noise, speech.samples[cut:]])
    words = aligners[name].align(samples, rate, TEXT).words
    moved = [0.7 if i < 4 else 1.7 for i in range(len(words))]
    starts = [w.start - t.start - m for w, t, m in zip(words, speech.words, moved)]
    ends = [w.end - t.end - m for w, t, m in zip(words, speech.words, moved)]
    assert np.median(np.abs(starts)) < 0.03
    assert abs(starts[0]) < 0.06 and abs(ends[3]) < 0.1 and abs(starts[4]) < 0.1


@pytest.mark.parametrize("name", ACOUSTIC)
def test_a_wrong_text_has_low_confidence_or_is_refused(aligners, speech, name):
    right = aligners[name].align(speech.samples, speech.sample_rate, TEXT)
    assert right.mean_confidence > 0.6
    try:
        wrong = aligners[name].align(speech.samples, speech.sample_rate, OTHER)
    except AlignmentError:
        return
    assert wrong.mean_confidence < 0.5 < right.mean_confidence - 0.1


@pytest.mark.parametrize("name", ACOUSTIC)
def test_a_real_recording_with_its_text_and_with_another(aligners, shared_data, name):
    folder = shared_data / "ljspeech_aligned"
    truth = import_textgrid(folder / "LJ001-0012.TextGrid")
    samples = load_audio(folder / "LJ001-0012.wav").numpy()
    found = aligners[name].align(samples, 16000, truth.text)
    assert np.median(errors(found.words, truth.words)) < 0.04
    assert found.mean_confidence > 0.5
    other = import_textgrid(folder / "LJ027-0127.TextGrid").text
    try:
        assert aligners[name].align(samples, 16000, other).mean_confidence < 0.5
    except AlignmentError as error:
        assert "text" in str(error)


def test_german_with_hand_labels(shared_data):
    from recipes.EmoDB.emodb_prepare import read_corpus

    records, _ = read_corpus(shared_data / "emodb")
    aligner, wrong = make_aligner("espeak-dtw", language="de"), []
    distances = []
    for key in ("03a01Fa", "09b03Nb", "11a05Wb" if "11a05Wb" in records else "11a05Fb", "16a07Fb"):
        record = records[key]
        samples = load_audio(record["wav"].replace("{data_root}", str(shared_data / "emodb"))).numpy()
        found = aligner.align(samples, 16000, record["transcript"])
        assert [w.label for w in found.words] == [w["word"] for w in record["words"]]
        for word, hand in zip(found.words, record["words"]):
            distances += [abs(word.start - hand["start"]), abs(word.end - hand["end"])]
        other = records["03a02Nc" if "a02" not in key else "03a01Fa"]["transcript"]
        wrong.append(found.mean_confidence - aligner.align(samples, 16000, other).mean_confidence)
    assert np.median(distances) < 0.04 and min(wrong) > 0


def test_words_that_no_dictionary_has(aligners, speech):
    text = TEXT.replace("green", "grene").replace("seven", "7") + "."
    found = aligners["pocketsphinx"].align(speech.samples, speech.sample_rate, text)
    assert [w.label for w in found.words][:2] == ["7", "grene"]
    assert aligners["pocketsphinx"].guessed["grene"] == arpabet("grene") == "G R IY N"
    assert abs(found.words[1].start - speech.words[1].start) < 0.1
    with pytest.raises(AlignmentError, match="'grene' is not in the dictionary"):
        make_aligner("pocketsphinx", guess=False).align(speech.samples, speech.sample_rate, text)


def test_guessed_pronunciations_against_the_dictionary():
    """The mapping to ARPABET is right where espeak-ng and the CMU dictionary agree on the sounds."""
    import pocketsphinx

    decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL")
    words = (
        "heel church judge thing this measure yellow wind hair bird fire hour boy ring boat book cool father"
    )
    words = words.split() + ["north", "pear", "city", "button"]
    agree = [arpabet(word) == decoder.lookup_word(word) for word in words]
    assert np.mean(agree) > 0.7, [
        (w, arpabet(w), decoder.lookup_word(w)) for w, a in zip(words, agree) if not a
    ]
    with pytest.raises(AlignmentError, match="'kl!' has no counterpart"):
        arpabet_of_mnemonics(["kl!"])


@pytest.mark.parametrize("name", ACOUSTIC)
@pytest.mark.parametrize(
    ("samples", "text", "message"),
    [
        (np.zeros(16000), "hello", "silent"),
        (np.full(16000, 1e-6), "hello", "silent"),
        (None, "", "no word that can be spoken"),
        (None, "... — !", "no word that can be spoken"),
        (0.1, "hello there my old friend how are you today", "text"),
        (None, " ".join([TEXT] * 8), "text"),
    ],
)
def test_what_cannot_be_aligned_is_said(aligners, speech, name, samples, text, message):
    samples = speech.samples if samples is None else samples
    if isinstance(samples, float):
        samples = speech.samples[: int(samples * speech.sample_rate)]
    with pytest.raises(AlignmentError, match=message):
        aligners[name].align(np.asarray(samples, np.float32), speech.sample_rate, text)


def test_a_tenth_of_a_second(aligners, speech):
    """Either a result inside the audio or an AlignmentError, nothing else."""
    samples = speech.samples[2000 : 2000 + speech.sample_rate // 10]
    for aligner in aligners.values():
        try:
            found = aligner.align(samples, speech.sample_rate, "a")
        except AlignmentError:
            continue
        assert found.words[0].end <= found.duration + 1e-6


def test_noise_and_broken_samples(aligners):
    noise = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    for name, aligner in aligners.items():
        results = dict(
            aligner.align_corpus(
                [
                    AlignmentItem("noise", "hello my friend", samples=noise, sample_rate=16000),
                    AlignmentItem("nan", "hello", samples=np.full(16000, np.nan), sample_rate=16000),
                    AlignmentItem("short", "hello", samples=noise[:100], sample_rate=16000),
                ]
            )
        )
        assert "NaN" in str(results["nan"]) and isinstance(results["short"], ValueError)
        if isinstance(results["noise"], Alignment):
            assert results["noise"].mean_confidence < 0.5, name


@pytest.mark.parametrize("name", ACOUSTIC)
def test_a_minute_of_speech(aligners, speech, name):
    repeats = 16
    pause = np.random.default_rng(1).normal(0, 1e-4, speech.sample_rate // 4).astype(np.float32)
    samples = np.concatenate([part for _ in range(repeats) for part in (speech.samples, pause)])
    period = (len(speech.samples) + len(pause)) / speech.sample_rate
    assert len(samples) / speech.sample_rate > 60
    found = aligners[name].align(samples, speech.sample_rate, ". ".join([TEXT] * repeats))
    starts = np.array([w.start for w in found.words]).reshape(repeats, -1)
    truth = np.array([t.start for t in speech.words]) + period * np.arange(repeats)[:, None]
    assert np.median(np.abs(starts - truth)) < 0.03 and np.percentile(np.abs(starts - truth), 95) < 0.2


def test_ten_seconds_take_less_than_that(aligners, speech):
    samples = np.tile(speech.samples, 3)[: 10 * speech.sample_rate]
    aligners["espeak-dtw"].align(samples, speech.sample_rate, " ".join([TEXT] * 3))
    start = time.process_time()
    aligners["espeak-dtw"].align(samples, speech.sample_rate, " ".join([TEXT] * 3))
    # Processor time: other work on the machine does not count.
    assert time.process_time() - start < 10


def test_the_result_does_not_depend_on_what_came_before(speech):
    for name in ACOUSTIC:
        one, other = make_aligner(name), make_aligner(name)
        first = one.align(speech.samples, speech.sample_rate, TEXT)
        try:
            other.align(speech.samples[: speech.sample_rate], speech.sample_rate, "grene hello")
        except AlignmentError:
            pass
        assert other.align(speech.samples, speech.sample_rate, TEXT) == first


def test_other_languages_and_rates(speech):
    with pytest.raises(AlignmentError, match="language is 'de'; pocketsphinx's own model is English"):
        make_aligner("pocketsphinx", language="de")
    with pytest.raises(AlignmentError, match="voice 'xx' is unknown"):
        make_aligner("espeak-dtw", language="xx").align(speech.samples, speech.sample_rate, TEXT)
    french = EspeakSynthesizer()("le petit chat dort sur la grande table rouge", voice="fr+f3", rate=140)
    found = make_aligner("espeak-dtw", language="fr").align(
        french.samples, french.sample_rate, "Le petit chat dort sur la grande table rouge."
    )
    assert np.median(errors(found.words, french.words)) < 0.03


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def wav(tmp_path, speech):
    soundfile.write(tmp_path / "x.wav", speech.samples, speech.sample_rate)
    return tmp_path / "x.wav"


def test_the_command_writes_json_textgrid_and_ctm(capsys, wav, tmp_path, speech):
    status, out, err = run(
        capsys, "align", wav, "--text", TEXT + "!", "--json", "--textgrid", tmp_path / "x.TextGrid", "--ctm",
        tmp_path / "x.ctm",
    )  # fmt: skip
    words = json.loads(out)
    assert status == 0 and err == ""
    assert [w["word"] for w in words] == TEXT.split() and set(words[0]) == {
        "word",
        "start",
        "end",
        "confidence",
    }
    grid = import_textgrid(tmp_path / "x.TextGrid", TEXT)
    ctm = read_ctm(tmp_path / "x.ctm")["x", "1"]
    for word, a, b in zip(words, grid.words, ctm.words, strict=True):
        assert abs(word["start"] - a.start) < 1e-6 and abs(word["end"] - b.end) < 2e-6
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8")
    status, out, _ = run(capsys, "align", wav, "--text_file", tmp_path / "x.txt", "--aligner", "espeak-dtw")
    assert status == 0 and len(out.splitlines()) == len(TEXT.split()) + 1 and out.split()[:4] == [
        "start", "end", "conf.", "word",
    ]  # fmt: skip


def test_the_command_warns_of_a_wrong_text(capsys, wav):
    status, out, err = run(capsys, "align", wav, "--text", OTHER, "--json")
    assert (status == 0 and "warning: x: mean confidence" in err) or (status == 1 and "error: x: " in err)


def test_the_command_over_a_manifest(capsys, wav, tmp_path, speech):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    record = {"duration": 1.0, "speaker": "a", "transcript": TEXT}
    half = round(speech.words[4].start * speech.sample_rate)
    manifest = {
        "one": {**record, "wav": "{data_root}/x.wav"},
        "bad": {**record, "wav": "{data_root}/bad.wav"},
        "part": {**record, "wav": "{data_root}/x.wav", "start": half, "stop": len(speech.samples),
                 "transcript": " ".join(TEXT.split()[4:])},
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(manifest), encoding="utf-8")
    status, out, err = run(
        capsys, "align", "--manifest", tmp_path / "m.json", "--data_root", tmp_path, "--json", "--textgrid",
        tmp_path / "grids",
    )  # fmt: skip
    records = {record["id"]: record for record in map(json.loads, out.splitlines())}
    assert (
        status == 1
        and set(records) == {"one", "part"}
        and "1 of 3 recordings" in err
        and "error: bad: " in err
    )
    assert sorted(p.name for p in (tmp_path / "grids").iterdir()) == ["one.TextGrid", "part.TextGrid"]
    shift = records["one"]["words"][4]["start"] - half / speech.sample_rate
    assert records["part"]["words"][0]["start"] == pytest.approx(max(shift, 0), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{wav}"], 2, "either --text or --text_file"),
        (["{wav}", "--text", "a", "--text_file", "b"], 2, "either --text or --text_file"),
        (["--text", "a"], 2, "either FILE or --manifest"),
        (["{wav}", "--text", "a", "--aligner", "kaldi"], 2, "aligner 'kaldi' is unknown"),
        (["{wav}", "--text", "a", "--option", "speed=3"], 2, "no option 'speed'"),
        (["{wav}", "--text", "a", "--option", "speed"], 2, "not KEY=VALUE"),
        (["{wav}", "--text", "a", "--language", "de"], 2, "pocketsphinx's own model is English"),
        (["{wav}", "--text_file", "none.txt"], 2, "none.txt"),
        (["none.wav", "--text", "a"], 1, "none.wav: no such file"),
        (["{wav}", "--text", "..."], 1, "no word that can be spoken"),
        (["--manifest", "none.json"], 2, "none.json"),
        (["{wav}", "--text", "a", "--aligner", "mfa", "--option", "command=no_mfa"], 2, "conda"),
        (["{wav}", "--text", "a", "--aligner", "ctc"], 2, "source"),
    ],
)
def test_mistakes_are_told_in_a_line(capsys, wav, arguments, status, message):
    arguments = [a.replace("{wav}", str(wav)) for a in arguments]
    found, out, err = run(capsys, "align", *arguments)
    assert (found, out) == (status, "") and message in err and err.startswith("error: ")
    assert "Traceback" not in err


def test_the_help_has_examples(capsys):
    status, out, _ = run(capsys, "align", "--help")
    assert status == 0 and "example" in out and "--aligner espeak-dtw" in out and "exit status" in out


def test_the_examples_of_the_document_run(repository):
    done = doctest.testfile(str(repository / "docs" / "alignment.md"), module_relative=False)
    assert done.attempted >= 5 and done.failed == 0
