"""Emotion markup: reading, writing, and the way to sub-word tokens."""

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from speechbrain_emo.prompts.markup import (
    EmotionMarkup,
    EmotionSpan,
    MarkedText,
    MarkupError,
    locate_words,
)

ALPHABET = list("abc  \n\t&<>'\"/=;é漢😀") + ["&amp;", "</emotion>", "<emotion", "&lt", "&foo;"]
NINE = ("angry", "happy", "sad", "fear", "disgust", "surprise", "contempt", "neutral", "other")


def random_marked(rng, labels, intensities):
    """Any text, with any spans that are allowed in it."""
    text = "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(25)))
    cuts = sorted(rng.sample(range(len(text) + 1), min(2 * rng.randrange(4), len(text) // 2 * 2)))
    spans = [
        EmotionSpan(a, b, rng.choice(labels), rng.choice(intensities))
        for a, b in zip(cuts[::2], cuts[1::2])
        if a < b
    ]
    return MarkedText(text, tuple(spans))


@pytest.mark.parametrize("markup", [EmotionMarkup(), EmotionMarkup(NINE, ("weak", "strong"))])
def test_what_is_written_is_read_back_as_it_was(markup):
    rng = random.Random(4)
    seen = 0
    for _ in range(3000):
        marked = random_marked(rng, markup.labels, markup.intensities)
        written = markup.write(marked)
        assert markup.parse(written) == marked
        # Writing is stable too: the text is the canonical form.
        assert markup.write(markup.parse(written)) == written
        seen += len(marked.spans)
    assert seen > 1000


def test_random_noise_is_read_or_refused_with_a_position():
    rng, markup = random.Random(5), EmotionMarkup()
    pieces = [
        *ALPHABET,
        "<emotion type='hap' intensity='low'>",
        "<emotion type='x' intensity='low'>",
        "</emotion>",
    ]
    refused = 0
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        try:
            markup.parse(text)
        except MarkupError as error:
            refused += 1
            assert 0 <= error.position < len(text)
    assert 500 < refused < 2900


TAG = "<emotion type='hap' intensity='high'>"


@pytest.mark.parametrize(
    "text,position,said",
    [
        (
            f"a {TAG}b <emotion type='sad' intensity='low'>c</emotion></emotion>",
            2 + len(TAG) + 2,
            "do not nest",
        ),
        ("so <emotion type='joy' intensity='high'>b</emotion>", 17, "allowed are ang, hap, neu, sad, sur"),
        ("so <emotion type='hap' intensity='huge'>b</emotion>", 33, "allowed are low, medium, high"),
        (f"ab {TAG}c", 3, "not closed"),
        ("ab</emotion>", 2, "closes nothing"),
        ("1 < 2", 2, "stray <"),
        ("1 <2", 2, "stray <"),
        ("a <b>c</b>", 2, "unknown tag <b>"),
        ("ends in <", 8, "stray <"),
        (f"{TAG}a</emotional>", len(TAG) + 1, "not a closing tag"),
        (f"{TAG}</emotion>", 0, "holds no text"),
        ("<emotion type='hap'>a</emotion>", 0, "no intensity"),
        ("<emotion intensity='low'>a</emotion>", 0, "no type"),
        ("<emotion type='hap' type='sad' intensity='low'>a</emotion>", 20, "twice"),
        ("<emotion type='hap' intensity='low' x='1'>a</emotion>", 36, "unknown attribute 'x'"),
        ("<emotion type=hap intensity='low'>a</emotion>", 0, "not a complete tag"),
        ("<emotion type='hap' intensity='low'", 0, "not a complete tag"),
        ("a &nbsp; b", 2, "unknown entity &nbsp;"),
    ],
)
def test_faults_are_named_with_their_position(text, position, said):
    with pytest.raises(MarkupError) as caught:
        EmotionMarkup().parse(text)
    assert caught.value.position == position
    assert said in str(caught.value)


def test_line_and_column_are_those_of_an_editor():
    with pytest.raises(MarkupError, match="line 3, column 4") as caught:
        EmotionMarkup().parse("one\ntwo\nx < y <\n".replace("x <", "xx <", 1))
    assert (caught.value.line, caught.value.column) == (3, 4)


def test_forms_of_a_tag_that_mean_the_same():
    markup = EmotionMarkup()
    wanted = MarkedText("Tom & Jerry > all", (EmotionSpan(0, 11, "sur", "low"),))
    for text in (
        "<emotion type='sur' intensity='low'>Tom &amp; Jerry</emotion> &gt; all",
        '<emotion  intensity = "low"\n type="sur" >Tom & Jerry</emotion > > all',
    ):
        assert markup.parse(text) == wanted


def test_untagged_text_is_neutral_and_low():
    markup = EmotionMarkup()
    marked = markup.parse(f"a {TAG}b</emotion>")
    assert markup.label_at(marked, 0) == ("neu", "low")
    assert markup.label_at(marked, 2) == ("hap", "high")
    assert EmotionMarkup(NINE, ("weak", "strong")).untagged == ("angry", "weak")
    assert EmotionMarkup(NINE, ("weak", "strong"), ("neutral", "weak")).untagged == ("neutral", "weak")


@pytest.mark.parametrize(
    "arguments", [((),), (("a", "a"),), (("a b",),), (("hap",), ("low",), ("sad", "low"))]
)
def test_impossible_sets_are_refused(arguments):
    with pytest.raises(ValueError):
        EmotionMarkup(*arguments)


def test_spans_that_cannot_be_are_refused():
    for spans in [((2, 2),), ((0, 9),), ((1, 3), (2, 4)), ((2, 3), (0, 1))]:
        with pytest.raises(ValueError, match="spans must be in order"):
            MarkedText("abcde", tuple(EmotionSpan(*s, "hap", "low") for s in spans))


def test_neighbouring_words_merge_when_emotion_and_intensity_agree():
    markup = EmotionMarkup()
    text = 'He said: "Well-known, isn\'t it?" Then left.'
    words = ["He", "said", "Well", "known", "isn't", "it", "Then", "left"]
    emotions = ["neu", "neu", "hap", "hap", "hap", "hap", "neu", "sad"]
    levels = ["low", "medium", "high", "high", "high", "medium", "low", "low"]
    marked = markup.from_words(text, words, emotions, levels)
    assert [(text[s.start : s.stop], s.emotion, s.intensity) for s in marked.spans] == [
        ("said:", "neu", "medium"),
        ("\"Well-known, isn't", "hap", "high"),
        ('it?"', "hap", "medium"),
        ("left.", "sad", "low"),
    ]
    assert markup.parse(markup.write(marked)) == marked
    # The same from positions.
    assert markup.from_words(text, locate_words(text, words), emotions, levels) == marked


def test_words_that_are_not_the_text_s_are_refused():
    with pytest.raises(ValueError, match="'c', does not follow"):
        locate_words("a b", ["a", "c"])
    with pytest.raises(ValueError, match="give one of each a word"):
        EmotionMarkup().from_words("a b", ["a", "b"], ["hap"], ["low"])
    with pytest.raises(ValueError, match="allowed are"):
        EmotionMarkup().from_words("a", ["a"], ["joy"], ["low"])


# ------------------------------------------------------------------------------------------------- tokens
TEXTS = ["It is great and new. It is not great at all, isn't it? naïve café 漢字 😀 happily"] * 20


def byte_level(prefix_space=False, trim=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece_like():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[UNK]", "[CLS]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]")


def whole_text():
    """A tokenizer whose tokens reach over blanks and spans."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {
    "byte level (Qwen, Llama 3)": byte_level,
    "byte level, offsets trimmed (RoBERTa)": lambda: byte_level(True, True),
    "metaspace (Vicuna, T5)": sentencepiece_like,
    "word piece (BERT)": word_piece,
    "no pre-tokenizer": whole_text,
}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_each_token_inherits_the_span_of_its_characters(make):
    """Against an independent rule: the owner of most non-blank characters, found one by one."""
    tokenizer, markup, rng = make(), EmotionMarkup(), random.Random(6)
    text = "It is great, isn't it? naïve café 漢字 😀 happily. It is not great"
    words = text.split()
    crossed = 0
    for _ in range(60):
        emotions = [rng.choice(markup.labels) for _ in words]
        levels = [rng.choice(markup.intensities) for _ in words]
        marked = markup.from_words(text, words, emotions, levels)
        tokens = markup.tokenize(marked, tokenizer)
        assert tokens.token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        for (start, stop), emotion, intensity, span in zip(
            tokens.offsets, tokens.emotions, tokens.intensities, tokens.spans
        ):
            inside = [markup.label_at(marked, i) for i in range(start, stop) if not text[i].isspace()]
            got = (markup.labels[emotion], markup.intensities[intensity])
            if inside:
                counts = [inside.count(label) for label in inside]
                crossed += len(set(inside)) > 1
                best = max(counts)
                assert got in {label for label, count in zip(inside, counts) if count == best}
            if span >= 0:
                assert got == (marked.spans[span].emotion, marked.spans[span].intensity)
            else:
                assert got == markup.untagged
    if make is whole_text:
        assert crossed > 0, "no token reaches over a border: the rule for it is untested"
    else:
        assert crossed == 0


def test_tags_are_no_tokens_and_borders_are_exact():
    tokenizer, markup = byte_level(), EmotionMarkup()
    marked = markup.parse(f"It is {TAG}great</emotion>, is {TAG}it</emotion>?")
    tokens = markup.tokenize(marked, tokenizer)
    assert tokenizer.decode(tokens.token_ids) == "It is great, is it?"
    happy = "".join(
        marked.text[a:b] for (a, b), e in zip(tokens.offsets, tokens.emotions) if markup.labels[e] == "hap"
    )
    # Byte-level tokens begin with the blank before their word.
    assert happy == " great it"
    assert {tokens.spans[i] for i, e in enumerate(tokens.emotions) if markup.labels[e] == "hap"} == {0, 1}


def test_an_empty_text_has_no_tokens():
    assert EmotionMarkup().tokenize(MarkedText(""), byte_level()).token_ids == []


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow gives no character offsets"):
        EmotionMarkup().tokenize(MarkedText("a"), Slow())


def test_the_public_rebuild_s_manifests_read_and_write_back(shared_data):
    folder, markup, count = shared_data / "annotations" / "fedd_rebuild", EmotionMarkup(), 0
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            marked = markup.parse(record["tagged_text"])
            assert marked.text == record["plain_text"]
            assert markup.parse(markup.write(marked)) == marked
            count += 1
    assert count > 500


def test_the_documentation_s_examples_run(repository):
    import doctest

    results = doctest.testfile(
        str(repository / "docs" / "word_emotion.md"), module_relative=False, optionflags=doctest.ELLIPSIS
    )
    assert results.attempted >= 6 and results.failed == 0
