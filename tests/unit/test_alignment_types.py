"""The alignment result, the registry, and text normalisation with its way back."""

import json
import random

import numpy as np
import pytest

from speechbrain_emo.alignment import (
    ALIGNERS,
    AlignedInterval,
    Aligner,
    Alignment,
    AlignmentError,
    AlignmentItem,
    align_each,
    make_aligner,
)
from speechbrain_emo.alignment.normalize import normalize
from speechbrain_emo.cli import ALIGNER_NAMES

A, B = AlignedInterval("so", 0.1, 0.4, 0.9), AlignedInterval("what", 0.5, 0.6, 0.3)


def test_confidences_are_weighted_by_duration():
    alignment = Alignment((A, B), None, "so what", 1.0, "x")
    assert alignment.mean_confidence == pytest.approx((0.9 * 0.3 + 0.3 * 0.1) / 0.4)
    assert alignment.min_confidence == 0.3
    assert Alignment((AlignedInterval("so", 0, 1),), None, "so", 1.0, "x").mean_confidence is None


def test_a_record_survives_json():
    alignment = Alignment((A, B), (AlignedInterval("S", 0.1, 0.2),), "So, so what?", 1.0, "x")
    assert Alignment.from_dict(json.loads(json.dumps(alignment.to_dict()))) == alignment
    assert alignment.char_spans() == ((4, 6), (7, 11))


@pytest.mark.parametrize(
    ("words", "text", "duration", "message"),
    [
        ((B, A), "what so", 1.0, "'so' starts at 0.1 s, before 'what' ends"),
        ((A, B), "so what", 0.55, "'what' ends at 0.6 s, behind the end"),
        ((A, B), "so that", 1.0, "'what' is not in the text"),
        ((A,), "so", 0.0, "duration is 0.0"),
        ((A,), "so", float("nan"), "duration is nan"),
    ],
)
def test_an_impossible_alignment_is_refused(words, text, duration, message):
    with pytest.raises(AlignmentError, match=message):
        Alignment(words, None, text, duration, "x")


@pytest.mark.parametrize(
    "times", [(-0.1, 0.2), (0.2, 0.2), (0.3, 0.2), (0.0, float("inf")), (float("nan"), 1.0)]
)
def test_an_impossible_interval_is_refused(times):
    with pytest.raises(AlignmentError, match="0 <= start < end"):
        AlignedInterval("so", *times)
    with pytest.raises(AlignmentError, match="confidence 1.5"):
        AlignedInterval("so", 0, 1, 1.5)


def test_the_registry():
    assert tuple(ALIGNERS) == tuple(ALIGNER_NAMES.split(", "))
    with pytest.raises(AlignmentError, match="'kaldi' is unknown; allowed: pocketsphinx"):
        make_aligner("kaldi")
    with pytest.raises(AlignmentError, match="has no option 'speed'; allowed: language"):
        make_aligner("espeak-dtw", speed=3)
    for name in ("pocketsphinx", "espeak-dtw"):
        aligner = make_aligner(name)
        assert isinstance(aligner, Aligner) and aligner.name == name


def test_one_bad_item_costs_one_item(tmp_path):
    class Echo:
        name = "echo"

        def align(self, samples, sample_rate, text, name=None):
            if not text:
                raise AlignmentError("no text")
            return Alignment((AlignedInterval(text, 0, 0.1),), None, text, len(samples) / sample_rate, "echo")

    (tmp_path / "b.wav").write_bytes(b"nothing")
    samples = np.zeros(1600, dtype=np.float32)
    items = [AlignmentItem("a", "hi", samples=samples, sample_rate=16000)]
    items += [
        AlignmentItem("b", "hi", str(tmp_path / "b.wav")),
        AlignmentItem("c", "hi", str(tmp_path / "c.wav")),
    ]
    items += [AlignmentItem("d", "", samples=samples, sample_rate=16000), AlignmentItem("e", "hi"), items[0]]
    results = list(align_each(Echo(), items))
    assert [name for name, _ in results] == ["a", "b", "c", "d", "e", "a"]
    assert [isinstance(result, Alignment) for _, result in results] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    assert "not an audio file" in str(results[1][1]) and "no such file" in str(results[2][1])


@pytest.mark.parametrize(
    ("text", "language", "spoken"),
    [
        ("Dr. Smith lives on Elm St. with St. John.", "en", "doctor smith lives on elm street with saint john"),
        ("It was 1995, not 2,003!", "en", "it was nineteen ninety five not two thousand and three"),
        ("the 22nd of May at 10:05am", "en", "the twenty second of may at ten oh five a m"),
        ("$5.50 & 50% off", "en", "five dollars fifty and fifty percent off"),
        ("call 0049, No. 7; no. Never", "en", "call zero zero four nine number seven no never"),
        ("the U.S. and the BBC's R&D", "en", "the u s and the b b c's r and d"),
        ("“It’s”—he said…well-known", "en", "it's he said well known"),
        ("HELLO MR SMITH", "en", "hello mister smith"),
        ("3.14 is -3 plus 6.14", "en", "three point one four is minus three plus six point one four"),
        ("Am 3. Mai um 10:30 z.B. 1.234,5 €", "de", "am drei mai um zehn uhr dreißig zum beispiel "
         "eintausendzweihundertvierunddreißig komma fünf euro"),
        ("Il a 71 ans", "fr", "il a soixante et onze ans"),
        ("дом 42", "ru", "дом сорок два"),
    ],
)  # fmt: skip
def test_texts_in_spoken_form(text, language, spoken):
    pytest.importorskip("num2words", reason="num2words is not installed (extra align)")
    normalized = normalize(text, language)
    assert " ".join(normalized.tokens) == spoken
    for word in normalized.words:
        assert text[word.start : word.stop] == word.label and word.tokens


def test_the_way_back_covers_every_word_of_random_texts():
    pytest.importorskip("num2words", reason="num2words is not installed (extra align)")
    generator = random.Random(3)
    pieces = [
        "I",
        "don't",
        "1995",
        "Dr.",
        "-",
        "—",
        "well-known",
        "$5",
        "&",
        "'tis",
        "U.S.",
        "3.5",
        "…",
        "(so)",
        "50%",
    ]
    pieces += ['"', "naïve", "mp3", "X", "?!", "10:30", "state-of-the-art", "\t", "\n", "NASA", "0", "°"]
    for _ in range(300):
        text = " ".join(generator.choices(pieces, k=8)) + " end"
        normalized = normalize(text)
        words = normalized.words
        assert all(text[w.start : w.stop] == w.label for w in words)
        assert all(a.stop <= b.start for a, b in zip(words, words[1:]))
        # Nothing that could be spoken is lost, and tokens are plain words.
        covered = {i for w in words for i in range(w.start, w.stop)}
        assert all(i in covered for i, character in enumerate(text) if character.isalnum())
        assert all(t == t.lower() and t.strip() == t and " " not in t for t in normalized.tokens)
        intervals = [AlignedInterval(t, i, i + 0.5, 0.5) for i, t in enumerate(normalized.tokens)]
        joined = normalized.join(intervals)
        assert [w.label for w in joined] == [w.label for w in words]
        assert joined[0].start == 0 and joined[-1].end == len(intervals) - 0.5
        Alignment(joined, None, text, len(intervals), "x").char_spans()


def test_capitals_are_spelt_where_they_are_no_known_word():
    known = {"nasa", "hello", "it"}.__contains__
    assert normalize("NASA and IT of KLMX", known=known).tokens == (
        "nasa",
        "and",
        "it",
        "of",
        "k",
        "l",
        "m",
        "x",
    )
    assert normalize("I AM SO VERY XTC", known=known).tokens[-1] == "xtc"


@pytest.mark.parametrize("text", ["", "  ", "...", "—", "?!", None, 3])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(AlignmentError, match="text is"):
        normalize(text)


def test_a_number_in_an_unknown_language_is_refused():
    pytest.importorskip("num2words", reason="num2words is not installed (extra align)")
    with pytest.raises(AlignmentError, match="number 5, which num2words cannot spell in language 'xx'"):
        normalize("5 a", "xx")
    assert normalize("a b", "xx").tokens == ("a", "b")
