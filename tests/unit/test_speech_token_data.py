"""Rows and steps of the speech-token language model: words on tokens, noise on labels, prompts, intensities."""

import json

import numpy as np
import pytest
import torch

from speechbrain_emo.brains.speech_token_data import LabelNoise, TokenRows, TokenSteps, speech_tokens
from speechbrain_emo.brains.word_emotion_data import WordTargets
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.lobes.speech_tokenizer import SpeechTokenizer
from speechbrain_emo.lobes.tiny_llm import train_tiny_tokenizer
from speechbrain_emo.prompts.markup import EmotionMarkup

LABELS = ("ang", "hap", "neu", "sad")
MAP = {"angry": "ang", "happy": "hap", "neutral": "neu"}
TEXT = "the visitor moved my wooden chair"
TOKENIZER = train_tiny_tokenizer([TEXT, "she cleaned the narrow helmet tonight"], 300)


def record(emotions=("happy", "happy", "angry", "neutral", "neutral", "sad"), **more):
    words = [
        {
            "word": w,
            "start": 0.2 * i,
            "end": 0.2 * (i + 1),
            "emotion": e,
            "intensity": "high",
            "intensity_value": 0.1 * i,
        }
        for i, (w, e) in enumerate(zip(TEXT.split(), emotions))
    ]
    return {"transcript": TEXT, "emotion": None, "speaker": "a", "words": words, **more}


def rows(records=None, **options):
    records = records or {"x": record()}
    tokens = {key: list(range(32)) for key in records}
    return TokenRows(
        records, tokens, TOKENIZER, EmotionMarkup(LABELS), WordTargets(LABELS, MAP, "word"), **options
    )


def test_every_token_knows_its_word_and_emotion():
    row = rows().rows[0]
    pieces = [TOKENIZER.decode([t]) for t in row["text"]]
    assert "".join(pieces) == TEXT
    # Characters of each word, by its own tokens.
    for number, word in enumerate(TEXT.split()):
        own = "".join(p for p, w in zip(pieces, row["text_words"]) if w == number)
        assert own.strip() == word
    expected = ["hap", "hap", "ang", "neu", "neu", "sad"]
    assert [LABELS[i] for i in row["word_labels"]] == expected
    for emotion, word in zip(row["emotions"], row["text_words"]):
        assert LABELS[emotion] == expected[word]
    # 25 Hz, 0.2 s a word: tokens 0-4 the first, and so on; 1.2 s are 30 tokens, the last two lie behind all words.
    assert row["speech_words"] == [i // 5 for i in range(30)] + [-1, -1]


def test_intensity_levels_and_numbers():
    levels = {w: i for w, i in zip(rows().rows[0]["text_words"], rows().rows[0]["intensities"])}
    assert levels == {0: 2, 1: 2, 2: 2, 3: 2, 4: 2, 5: 2}
    row = rows(continuous=True).rows[0]
    for word, value in zip(row["text_words"], row["intensities"]):
        assert value == pytest.approx(0.1 * word)
    assert rows(continuous=True).batch([0]).intensities.dtype == torch.float32
    bare = record()
    for word in bare["words"]:
        del word["intensity"], word["intensity_value"]
    row = rows({"x": bare}).rows[0]
    # Without one: the middle level, and the lowest for neutral words.
    assert {w: i for w, i in zip(row["text_words"], row["intensities"])} == {
        0: 1,
        1: 1,
        2: 1,
        3: 0,
        4: 0,
        5: 1,
    }


def test_a_joined_row_is_a_prompt_and_a_text():
    two = rows({"x": record(), "y": record(("sad",) * 6)})
    single, other = two.batch([0]), two.batch([1])
    joined = two.batch([0], before={0: 1})
    assert joined.text[0].tolist() == [*other.text[0].tolist(), *single.text[0].tolist()]
    assert joined.speech[0].tolist() == [*other.speech[0].tolist(), *single.speech[0].tolist()]
    assert joined.word_labels[0].tolist() == [*other.word_labels[0].tolist(), *single.word_labels[0].tolist()]
    assert joined.speech_words[0, 32:37].tolist() == [6] * 5 and joined.speech_words[0, -1] == -1


def test_partners_are_of_the_same_speaker_and_drawn_by_epoch():
    records = {f"{s}{i}": record(speaker=s) for s in "ab" for i in range(6)}
    steps = TokenSteps(rows({**records, "lone": record(speaker="c")}), 4, training=True, join=0.5, seed=1)
    keys = steps.rows.keys
    assert 2 <= len(steps.before) <= 11 and keys.index("lone") not in steps.before
    assert all(keys[a][0] == keys[b][0] and a != b for a, b in steps.before.items())
    first = (steps.steps, steps.before)
    steps.set_epoch(2)
    assert (steps.steps, steps.before) != first
    steps.set_epoch(1)
    assert (steps.steps, steps.before) == first
    assert sorted(i for step in steps.steps for i in step) == list(range(13))


def test_micro_batches_and_ranks_share_a_step():
    data = rows({str(i): record() for i in range(16)})
    whole = [k for batch in next(iter(TokenSteps(data, 8, seed=3, training=True))) for k in batch.keys]
    small = [batch.keys for batch in next(iter(TokenSteps(data, 8, 3, seed=3, training=True)))]
    assert [len(keys) for keys in small] == [3, 3, 2] and [k for keys in small for k in keys] == whole
    parts = [
        [
            k
            for b in next(iter(TokenSteps(data, 8, 2, seed=3, training=True, rank=r, world_size=2)))
            for k in b.keys
        ]
        for r in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    with pytest.raises(ValueError, match="each process needs a row"):
        TokenSteps(data, 1, world_size=2)


def test_noise_is_what_it_says_and_grows_on_the_same_words():
    many = {f"r{i}": record() for i in range(300)}
    targets = WordTargets(LABELS, MAP, "word")

    def labels(**noise):
        made = rows(many, noise=LabelNoise(**noise))
        return np.array([row["word_labels"] for row in made.rows])

    clean, little, much = labels(), labels(wrong=0.1), labels(wrong=0.3)
    assert np.mean(clean != little) == pytest.approx(0.1, abs=0.03)
    assert np.mean(clean != much) == pytest.approx(0.3, abs=0.04)
    assert (much[clean != little] == little[clean != little]).all(), "more noise corrupts the same words too"
    assert (little == labels(wrong=0.1)).all() and targets is not None
    shifted = rows(many, noise=LabelNoise(shift=0.08))
    words = np.array([row["speech_words"] for row in shifted.rows])
    still = np.array([row["speech_words"] for row in rows(many).rows])
    # 80 ms are two tokens at each of five borders, of thirty tokens.
    assert np.mean(words != still) == pytest.approx(10 / 32, abs=0.01)
    assert (np.array([row["word_labels"] for row in shifted.rows]) == clean).all()
    with pytest.raises(ValueError, match="a share in"):
        LabelNoise(wrong=2)


def test_records_without_words_are_named():
    with pytest.raises(ManifestError, match="^x: the record has no transcript or no words"):
        rows({"x": {**record(), "words": []}})
    with pytest.raises(ManifestError, match="sorry"):
        rows({"x": record(("sorry",) * 6)})


def test_tokens_are_made_once_and_resumed(tmp_path):
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(3, 16, 2, 24, 1, 0, [3, 3]).eval()
    waves = {f"u{i}": torch.randn(4000 + 700 * i) for i in range(5)}
    records = {k: {"wav": k, "duration": len(w) / 16000} for k, w in waves.items()}
    loads = []

    def load(record):
        loads.append(record["wav"])
        return waves[record["wav"]]

    file = tmp_path / "t.jsonl"
    made = speech_tokens(records, tokenizer, load, file, batch_seconds=0.6, progress=False)
    assert {k: len(v) for k, v in made.items()} == {k: -(-len(w) // 640) for k, w in waves.items()}
    for key, wave in waves.items():
        assert made[key] == tokenizer.encode(wave[None], torch.tensor([len(wave)]))[0][0].tolist()
    assert speech_tokens(records, tokenizer, load, file, progress=False) == made and len(loads) == 5
    # A line that a kill cut off is made again; another tokenizer makes all again.
    file.write_text("\n".join(file.read_text().splitlines()[:3]) + '\n{"id": "u')
    assert speech_tokens(records, tokenizer, load, file, progress=False) == made and len(loads) == 7
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 5
    other = SpeechTokenizer(3, 16, 2, 24, 1, 0, [3, 3]).eval()
    assert speech_tokens(records, other, load, file, progress=False) != made and len(loads) == 12


def test_tokens_of_other_experiments_stay_in_the_shared_file(tmp_path):
    tokenizer = SpeechTokenizer(5, 16, 2, 24, 1, 1, [3, 3])
    records = {f"u{i}": {"wav": f"u{i}.wav", "duration": 0.5} for i in range(4)}
    load = lambda record: np.random.default_rng(len(record["wav"])).normal(0, 0.1, 8000).astype(np.float32)  # noqa: E731
    file = tmp_path / "t.jsonl"
    half = {key: records[key] for key in ("u0", "u1")}
    first = speech_tokens(half, tokenizer, load, file, progress=False)
    speech_tokens({key: records[key] for key in ("u2", "u3")}, tokenizer, load, file, progress=False)

    def fails(record):
        raise AssertionError("what is known is not made again")

    assert speech_tokens(half, tokenizer, fails, file, progress=False) == first
    assert set(speech_tokens(records, tokenizer, fails, file, progress=False)) == set(records)


def test_labels_of_an_annotator_stand_in_for_the_words_own():
    given = record()
    for number, word in enumerate(given["words"]):
        word["annotated"] = {
            "emotion": ("sad", "neu")[number % 2],
            "intensity": ("medium", "low")[number % 2],
            "intensity_value": 0.25,
        }
    own, heard = rows({"x": given}), rows({"x": given}, annotated=True)
    assert [LABELS[i] for i in own.rows[0]["word_labels"]] == ["hap", "hap", "ang", "neu", "neu", "sad"]
    assert [LABELS[i] for i in heard.rows[0]["word_labels"]] == ["sad", "neu"] * 3
    for emotion, level, word in zip(
        *(heard.rows[0][name] for name in ("emotions", "intensities", "text_words"))
    ):
        assert (LABELS[emotion], level) == (("sad", 1), ("neu", 0))[word % 2]
    numbers = rows({"x": given}, annotated=True, continuous=True).rows[0]["intensities"]
    assert set(numbers) == {0.25}
    # Words and times are the same: what is heard where does not change.
    names = ("text", "speech", "speech_words")
    assert own.digest(names) == heard.digest(names) and own.digest(["word_labels"]) != heard.digest(
        ["word_labels"]
    )
    with pytest.raises(ManifestError, match="x: not all of its words have labels of an annotator"):
        rows({"x": record()}, annotated=True)
