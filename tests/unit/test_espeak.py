"""espeak-ng through ctypes: times, control and repeatability."""

import time

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra demo)")

from speechbrain_emo.dataio.espeak import (
    PAUSE,
    EspeakError,
    EspeakSynthesizer,
    phone_label,
)

SENTENCE = "seven green boats will cross the river"


@pytest.fixture(scope="module")
def synthesizer():
    return EspeakSynthesizer()


def median_f0(samples, sample_rate, low=60.0, high=400.0):
    """Peak of the autocorrelation, frame by frame, computed apart from the package."""
    size = int(0.05 * sample_rate)
    values = []
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start : start + size] * np.hanning(size)
        spectrum = np.abs(np.fft.rfft(frame, 4 * size)) ** 2
        correlation = np.fft.irfft(spectrum)[: 2 * size]
        own = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 4 * size)) ** 2)[: 2 * size]
        lags = np.arange(int(sample_rate / high), int(sample_rate / low))
        score = correlation[lags] / correlation[0] / (own[lags] / own[0])
        if np.sqrt((frame**2).mean()) > 0.01 and score.max() > 0.6:
            values.append(sample_rate / lags[score.argmax()])
    return float(np.median(values))


def test_words_and_phones_have_true_times(synthesizer):
    speech = synthesizer(SENTENCE, voice="en-us+f2")
    assert [word.label for word in speech.words] == SENTENCE.split()
    duration = len(speech.samples) / speech.sample_rate
    for intervals in (speech.words, speech.phones):
        assert all(interval.start < interval.end <= duration + 1e-9 for interval in intervals)
        assert all(a.end <= b.start + 1e-9 for a, b in zip(intervals, intervals[1:], strict=False))
    # The vowel of "green" lies inside the word, and an s opens "seven".
    green = speech.words[1]
    # espeak-ng's word event comes some milliseconds before the word's first phoneme: middles are safe.
    middles = [(p.label, (p.start + p.end) / 2) for p in speech.phones]
    assert [label for label, time in middles if green.start < time < green.end] == ["g", "r", "i:", "n"]
    assert speech.phones[0].label == "s"
    # An s is noise: its samples change sign far more often than the vowel's.
    rate = speech.sample_rate

    def crossings(interval):
        samples = speech.samples[int(interval.start * rate) : int(interval.end * rate)]
        return float((np.diff(np.sign(samples)) != 0).mean())

    vowel = next(p for p in speech.phones if p.label == "i:")
    assert crossings(speech.phones[0]) > 3 * crossings(vowel)


def test_an_utterance_depends_on_its_arguments_only(synthesizer):
    # f1 flutters and changes from call to call inside one process; the breath of f2 is noise that espeak-ng
    # seeds with the time of day in seconds.
    first = {voice: synthesizer(SENTENCE, voice=f"en-us+{voice}") for voice in ("f1", "f2")}
    time.sleep(1.1)
    synthesizer("who found the lamp", voice="en-us+m3", rate=240, prosody={2: {"rate": "70%"}})
    for voice, speech in first.items():
        again = synthesizer(SENTENCE, voice=f"en-us+{voice}")
        assert np.array_equal(again.samples, speech.samples)
        assert again.words == speech.words and again.phones == speech.phones


def test_rate_pitch_and_range_move_the_sound(synthesizer):
    def make(**options):
        return synthesizer(SENTENCE, voice="en-us+m3", **options)

    lengths = [len(make(rate=rate).samples) for rate in (120, 170, 240)]
    assert lengths[0] / lengths[1] == pytest.approx(170 / 120, rel=0.08)
    assert lengths[1] / lengths[2] == pytest.approx(240 / 170, rel=0.10)
    f0 = [median_f0(make(pitch=pitch).samples, 22050) for pitch in (30, 50, 70)]
    assert f0[0] * 1.1 < f0[1] and f0[1] * 1.1 < f0[2]
    assert f0[1] == pytest.approx(105, rel=0.1)


def test_prosody_slows_one_word(synthesizer):
    plain = synthesizer(SENTENCE, voice="en-us+f2")
    slowed = synthesizer(SENTENCE, voice="en-us+f2", prosody={1: {"rate": "60%"}})
    length = [speech.words[1].end - speech.words[1].start for speech in (plain, slowed)]
    assert length[1] > 1.3 * length[0]
    other = [speech.words[4].end - speech.words[4].start for speech in (plain, slowed)]
    assert other[1] == pytest.approx(other[0], rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": " "}, "at least one word"),
        ({"text": "hello", "rate": 20}, "rate is 20"),
        ({"text": "hello", "pitch": 120}, "pitch is 120"),
        ({"text": "hello", "voice": "xx-none"}, "xx-none"),
        ({"text": "hello", "prosody": {3: {"rate": "80%"}}}, "word 3"),
        ({"text": "it came from the river"}, "joins"),
    ],
)
def test_bad_input_is_named(synthesizer, arguments, message):
    with pytest.raises(EspeakError, match=message):
        synthesizer(**arguments)


@pytest.mark.parametrize(
    ("mnemonic", "label"), [("'eI", "eI"), ("_:", PAUSE), ("_", PAUSE), (",oU", "oU"), ("i:", "i:")]
)
def test_phone_labels_have_no_marks(mnemonic, label):
    assert phone_label(mnemonic) == label


def test_words_that_are_said_in_one_can_be_split(synthesizer):
    speech = synthesizer("it came from the river", split_joined=True)
    assert [word.label for word in speech.words] == ["it", "came", "from", "the", "river"]
    assert all(a.end <= b.start + 1e-9 and a.start < a.end for a, b in zip(speech.words, speech.words[1:]))
    # "from the" is f r V m D @2: the boundary is where the D begins.
    boundary = next(phone.start for phone in speech.phones if phone.label == "D")
    assert speech.words[3].start == pytest.approx(boundary, abs=1e-3)
    # Where nothing is joined, splitting changes nothing.
    assert synthesizer(SENTENCE, split_joined=True).words == synthesizer(SENTENCE).words
    german = synthesizer("grüße über die brücke", voice="de", split_joined=True)
    assert [word.label for word in german.words] == ["grüße", "über", "die", "brücke"]
    with pytest.raises(EspeakError, match="without prosody"):
        synthesizer(SENTENCE, prosody={1: {"rate": "60%"}}, split_joined=True)


def test_mnemonics_hold_the_sounds_that_have_no_event_of_their_own(synthesizer):
    assert synthesizer.mnemonics("heel") == ("h", "i:", "l")
    assert [phone.label for phone in synthesizer("heel").phones][:3] != ["h", "i:", "l"]
    with pytest.raises(EspeakError, match="xx-none"):
        synthesizer.mnemonics("heel", voice="xx-none")
