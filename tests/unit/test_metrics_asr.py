"""Word errors against jiwer and by hand; normalisation; real transcripts."""

import random

import pytest

from speechbrain_emo.metrics.asr import normalize_text, shares_sentences, word_errors


def test_counts_equal_jiwer():
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(0)
    words = "cat dog sat ran blue green house tree".split()
    references, hypotheses = [], []
    for _ in range(60):
        reference = rng.choices(words, k=rng.randint(1, 9))
        hypothesis = [
            rng.choice(words) if rng.random() < 0.2 else w for w in reference if rng.random() > 0.15
        ]
        hypothesis += rng.choices(words, k=rng.randint(0, 2))
        references.append(" ".join(reference))
        hypotheses.append(" ".join(hypothesis) or "cat")
    ours, theirs = word_errors(references, hypotheses), jiwer.process_words(references, hypotheses)
    assert ours.wer == pytest.approx(theirs.wer, abs=1e-12)
    # Several optimal alignments may split the errors differently; their sum and this difference cannot.
    assert ours.insertions - ours.deletions == theirs.insertions - theirs.deletions
    assert ours.substitutions + ours.deletions + ours.insertions == (
        theirs.substitutions + theirs.deletions + theirs.insertions
    )


@pytest.mark.parametrize(
    "reference, hypothesis, counts",
    [
        ("the cat sat", "the cat sat", (0, 0, 0)),
        ("the cat sat", "the dog sat", (1, 0, 0)),
        ("the cat sat", "the sat", (0, 1, 0)),
        ("the cat sat", "the cat sat down now", (0, 0, 2)),
        ("the cat sat", None, (0, 3, 0)),
        ("the cat sat", "", (0, 3, 0)),
    ],
)
def test_kinds_of_errors(reference, hypothesis, counts):
    errors = word_errors([reference], [hypothesis])
    assert (errors.substitutions, errors.deletions, errors.insertions) == counts
    assert errors.wer == pytest.approx(sum(counts) / 3)
    assert errors.num_exact == (sum(counts) == 0)


def test_wer_is_pooled_over_words_not_averaged_over_utterances():
    errors = word_errors(["a b c d e f g h i j".replace("a", "one"), "cat"], ["one b c d e f g h i j", "dog"])
    assert errors.wer == pytest.approx(1 / 11)


def test_english_normalisation_forgives_form_not_words():
    assert word_errors(["It's twenty-one colours."], ["it is 21 colors"]).wer == 0
    assert word_errors(["It's twenty-one colours."], ["it is 22 colors"]).wer > 0


def test_german_keeps_umlauts():
    text = "Der Lappen liegt auf dem Eisschrank. Äh — übermütig!"
    assert normalize_text(text, "de") == "der lappen liegt auf dem eisschrank äh übermütig"
    assert word_errors(["schön"], ["schon"], "de").wer == 1


def test_emodb_sentences_are_closed_set(shared_data):
    """All speakers say the ten sentences of the corpus."""
    path = shared_data / "emodb" / "erklaerung.txt"
    if not path.is_file():
        pytest.skip(f"no {path}")
    text = path.read_bytes().decode("latin-1")
    lines = [line.strip() for line in text.splitlines() if len(line.split()) > 4]
    assert lines and shares_sentences(lines, [line.upper() for line in lines], "de")
    assert not shares_sentences([*lines, "Etwas Neues"], lines, "de")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 references but 0 hypotheses"):
        word_errors(["a"], [])
    with pytest.raises(ValueError, match="WER is not defined"):
        word_errors(["..."], ["word"])
    with pytest.raises(TypeError, match="text is 3"):
        word_errors([3], ["word"])
