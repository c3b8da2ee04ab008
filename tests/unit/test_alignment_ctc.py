"""CTC alignment with a tiny model of the real class whose answers are known: every letter is a tone."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2PhonemeCTCTokenizer,
)

from speechbrain_emo.alignment import AlignmentError, make_aligner

LETTERS = "ABDEGO"
TONES = dict(zip(LETTERS, (300, 520, 850, 1300, 2000, 3000)))
RATE = 16000
LETTER, GAP = 0.12, 0.16  # s


def sing(text, gap=GAP):
    """Samples and (word, start, end): a tone a letter, silence between words, noise everywhere."""
    generator = np.random.default_rng(len(text))
    parts, words, position = [np.zeros(int(0.2 * RATE))], [], 0.2
    for word in text.upper().split():
        start = position
        for letter in word:
            time = np.arange(int(LETTER * RATE)) / RATE
            parts.append(0.3 * np.sin(2 * np.pi * TONES[letter] * time))
            position += LETTER
        words.append((word, start, position))
        parts.append(np.zeros(int(gap * RATE)))
        position += gap
    samples = np.concatenate(parts)
    return (samples + generator.normal(0, 1e-3, len(samples))).astype(np.float32), words


def frame_targets(num_frames, samples, text, vocabulary):
    """Token of each frame by the truth: a letter at the middle of its tone, the delimiter in gaps, else blank."""
    targets = np.full(num_frames, vocabulary["<pad>"])
    _, words = sing(text)
    for word, start, end in words:
        for index, letter in enumerate(word):
            begin = start + index * LETTER
            for frame in range(num_frames):
                middle = (frame * 320 + 200) / RATE
                if begin + 0.01 < middle < begin + LETTER - 0.01:
                    targets[frame] = vocabulary[letter]
                elif end + 0.04 < middle < end + GAP - 0.04:
                    targets[frame] = vocabulary["|"]
    return targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The convolutions and the transformer have random weights; the head is solved for in closed form."""
    root = tmp_path_factory.mktemp("ctc")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *LETTERS])}
    (root / "vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer(
        str(root / "vocab.json"), pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|"
    ).save_pretrained(root)
    Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=RATE, do_normalize=False).save_pretrained(root)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary), hidden_size=96, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=[64] * 7, feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, pad_token_id=0, conv_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(config).eval()
    features, targets = [], []
    for text in ("ABDEGO OGEDBA", "BAD DOG", "AGE EGO BED", "GO DO BE AB", "OBEAD GADBE", "DEAD GEO ABO"):
        samples, _ = sing(text)
        with torch.no_grad():
            hidden = model.wav2vec2(torch.from_numpy(samples)[None]).last_hidden_state[0].numpy()
        features.append(hidden)
        targets.append(frame_targets(len(hidden), samples, text, vocabulary))
    x = np.hstack([np.concatenate(features), np.ones((sum(map(len, features)), 1))])
    y = np.eye(len(vocabulary))[np.concatenate(targets)]
    solved = np.linalg.solve(x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ y)
    # Regression gives values near 0 and 1; log-probabilities want more distance.
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.from_numpy(20 * solved[:-1].T).float())
        model.lm_head.bias.copy_(torch.from_numpy(20 * solved[-1]).float())
    model.save_pretrained(root)
    return root


def check(found, words, tolerance=0.05):
    assert [w.label.upper() for w in found.words] == [word for word, *_ in words]
    for word, (_, start, end) in zip(found.words, words):
        assert abs(word.start - start) < tolerance and abs(word.end - end) < tolerance, (word, start, end)


def test_words_are_found_where_they_were_put(folder):
    samples, words = sing("BED AGO DOG BAD AGE")
    found = make_aligner("ctc", source=str(folder)).align(samples, RATE, "Bed ago, dog: bad age!")
    check(found, words)
    assert found.phones is None and found.aligner == "ctc" and found.mean_confidence > 0.7


def test_a_wrong_text_has_low_confidence(folder):
    samples, _ = sing("BED AGO DOG BAD AGE")
    aligner = make_aligner("ctc", source=str(folder))
    right = aligner.align(samples, RATE, "bed ago dog bad age").mean_confidence
    wrong = aligner.align(samples, RATE, "ode gab bob ego aged").mean_confidence
    assert wrong < 0.3 and right > 0.7
    # One wrong word among right ones is the least certain of them.
    words = aligner.align(samples, RATE, "bed ago bob bad age").words
    assert min(words, key=lambda word: word.confidence).label == "bob"


def test_long_audio_in_windows_is_stitched(folder):
    text = "BED AGO DOG BAD AGE " * 6
    samples, words = sing(text)
    assert len(samples) / RATE > 12
    whole = make_aligner("ctc", source=str(folder), window=60)
    parts = make_aligner("ctc", source=str(folder), window=4, overlap=2)
    one, other = whole.emissions(samples), parts.emissions(samples)
    assert one.shape == other.shape
    # Attention sees another context in a window; the answer of a frame is the same.
    assert (one.argmax(-1) == other.argmax(-1)).float().mean() > 0.97
    check(parts.align(samples, RATE, text), words)
    # The number of frames is right for any length, also just beside the window's.
    for length in (4 * RATE - 1, 4 * RATE, 4 * RATE + 1, 4 * RATE + 400, 6 * RATE + 321):
        assert parts.emissions(samples[:length]).shape == whole.emissions(samples[:length]).shape


def test_another_rate_gives_the_same_times(folder):
    from speechbrain_emo.dataio.compiled_librosa import librosa

    samples, words = sing("BAD DOG")
    other = librosa.resample(samples, orig_sr=RATE, target_sr=44100)
    check(make_aligner("ctc", source=str(folder)).align(other, 44100, "bad dog"), words)


def test_what_cannot_be_aligned_is_said(folder):
    aligner = make_aligner("ctc", source=str(folder))
    samples, _ = sing("BAD")
    with pytest.raises(AlignmentError, match="its text needs"):
        aligner.align(samples, RATE, "bad dog " * 20)
    with pytest.raises(
        AlignmentError, match=r"none of \['x', 'y'\] of the word 'xy' is in the checkpoint's vocabulary"
    ):
        aligner.align(samples, RATE, "bad xy")
    with pytest.raises(AlignmentError, match="no word that can be spoken"):
        aligner.align(samples, RATE, "")
    with pytest.raises(AlignmentError, match="overlap is 5"):
        make_aligner("ctc", source=str(folder), overlap=5, window=4)
    with pytest.raises(AlignmentError, match="units is 'words'; allowed: characters, phonemes"):
        make_aligner("ctc", source=str(folder), units="words")
    with pytest.raises(AlignmentError, match="cannot be loaded as a CTC checkpoint"):
        make_aligner("ctc", source=str(folder / "none"))


def test_phonemes(folder, tmp_path):
    """The class of tokenizer that phoneme checkpoints have; it phonemises with the package phonemizer."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *LETTERS])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2ForCTC.from_pretrained(folder).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path)
    try:
        tokenizer = Wav2Vec2PhonemeCTCTokenizer(
            str(tmp_path / "vocab.json"), pad_token="<pad>", unk_token="<unk>", do_phonemize=False
        )
    except ImportError as error:
        pytest.skip(f"the tokenizer needs phonemizer: {error}")
    tokenizer.save_pretrained(tmp_path)
    aligner = make_aligner("ctc", source=str(tmp_path))
    assert aligner.units == "phonemes"
    # The table stands for phonemizer, which needs a system's espeak.
    table = {"bad": "B A D", "dog": "D O G"}
    aligner.tokenizer.phonemize = lambda text, phonemizer_lang=None: table[text]
    samples, words = sing("BAD DOG", gap=0.05)
    found = aligner.align(samples, RATE, "Bad dog.")
    check(found, words)
    assert [p.label for p in found.phones] == list("BADDOG")
    assert all(a.end <= b.start + 1e-9 for a, b in zip(found.phones, found.phones[1:]))
