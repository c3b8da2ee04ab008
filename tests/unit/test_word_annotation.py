"""Annotations of words: results, inference, corpora, command line."""

import json

import numpy as np
import pytest
import soundfile
import torch
import words_toy

from speechbrain_emo.alignment import AlignedInterval, Alignment
from speechbrain_emo.alignment.textgrid import read_textgrid
from speechbrain_emo.cli import main
from speechbrain_emo.inference import EmotionExplainer, WordAnnotation, WordEmotionAnnotator
from speechbrain_emo.inference.annotate_corpus import MANIFEST, AnnotationRunError, annotate_corpus
from speechbrain_emo.inference.export import ExportError
from speechbrain_emo.inference.safe_loading import UnsafeModelError
from speechbrain_emo.lobes.word_emotion import WordSpans, word_frames


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return words_toy.build_annotator(tmp_path_factory.mktemp("annotator")).parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of 1000 records over a few files; one of them is cut off and one has no words."""
    folder = tmp_path_factory.mktemp("corpus")
    words_toy.build_words(folder, (("train", 6),), encoder=False)
    records = json.loads((folder / "mixed_train.json").read_text())
    originals = [
        {**record, "wav": record["wav"].replace("{data_root}", str(folder))} for record in records.values()
    ]
    whole = open(originals[0]["wav"], "rb").read()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    made = {f"u{i:04d}": dict(originals[i % len(originals)]) for i in range(1000)}
    made["u0400"]["wav"] = str(folder / "cut.wav")
    made["u0007"]["words"] = []
    return folder, made


def few(records, count=24):
    return dict(list(records.items())[:count])


def record_of(corpus):
    return corpus[1]["u0001"]


def alignment_of(record):
    words = tuple(AlignedInterval(w["word"], w["start"], w["end"], 0.75) for w in record["words"])
    return Alignment(words, None, record["transcript"], record["duration"], "made")


# ------------------------------------------------------------------------------------------------ one file
def test_a_word_is_what_the_model_says_of_its_frames(model, corpus):
    """Against the parts put together by hand."""
    annotator, record = WordEmotionAnnotator.from_hparams(model), record_of(corpus)
    said = annotator.annotate_file(record["wav"], alignment=alignment_of(record))
    samples, _ = soundfile.read(record["wav"], dtype="float32")
    encoder, annotate = annotator.mods["encoder"], annotator.mods["annotator"]
    with torch.no_grad():
        features = encoder(torch.tensor(samples)[None], torch.tensor([len(samples)]))
        count = int(features.num_frames[0])
        for word, row in zip(said.words, record["words"]):
            frames = word_frames(row["start"], row["end"], count, encoder.frame_rate, encoder.frame_centre)
            spans = WordSpans(*torch.tensor([[0], [frames[0]], [frames[1]]]))
            out = annotate(features.features, features.num_frames, spans)
            wanted = out.logits.softmax(-1)[0]
            assert torch.allclose(torch.tensor(list(word.probabilities.values())), wanted, atol=1e-5)
            assert word.emotion == annotator.labels[int(wanted.argmax())] and word.confidence == max(
                word.probabilities.values()
            )
            values = [word.valence, word.arousal, word.dominance]
            assert torch.allclose(torch.tensor(values), out.dimensions[0], atol=1e-5)
            level = 4 * word.arousal + 1
            assert word.intensity == ("high" if level > 3.5 else "medium" if level > 2.5 else "low")
            assert word.alignment_confidence == 0.75
    assert said.provenance["aligner"] == "made" and said.provenance["supervision"] == "sentence broadcast"
    assert WordAnnotation.from_dict(json.loads(said.to_json())).to_dict() == said.to_dict()


def test_samples_in_memory_and_segments_give_the_same(model, corpus, tmp_path):
    annotator, record = WordEmotionAnnotator.from_hparams(model), record_of(corpus)
    samples, rate = soundfile.read(record["wav"], dtype="int16")
    alignment = alignment_of(record)
    wanted = annotator.annotate_file(record["wav"], alignment=alignment).to_dict()["words"]
    assert annotator.annotate_array(samples, rate, alignment=alignment).to_dict()["words"] == wanted
    longer = np.concatenate([np.zeros(3000, np.int16), samples, np.zeros(500, np.int16)])
    soundfile.write(tmp_path / "long.wav", longer, rate)
    part = annotator.annotate_file(
        tmp_path / "long.wav", alignment=alignment, start=3000, stop=3000 + len(samples)
    )
    assert part.to_dict()["words"] == wanted


def test_markup_and_textgrid_say_the_same_as_the_words(model, corpus, tmp_path):
    annotator, record = WordEmotionAnnotator.from_hparams(model), record_of(corpus)
    said = annotator.annotate_file(record["wav"], alignment=alignment_of(record))
    marked = said.markup().parse(said.to_markup())
    assert marked.text == record["transcript"]
    position = 0
    for word in said.words:
        position = marked.text.index(word.word, position)
        assert said.markup().label_at(marked, position) == (word.emotion, word.intensity)
    said.write_textgrid(tmp_path / "a" / "x.TextGrid")
    grid = read_textgrid(tmp_path / "a" / "x.TextGrid")
    tiers = {tier.name: [e for e in tier.entries if e[2]] for tier in grid.tiers}
    assert [e[2] for e in tiers["words"]] == [w.word for w in said.words]
    assert [e[2] for e in tiers["emotion"]] == [w.emotion for w in said.words]
    assert [float(e[2]) for e in tiers["arousal"]] == pytest.approx([w.arousal for w in said.words], abs=6e-4)
    assert [e[0] for e in tiers["words"]] == pytest.approx([w.start for w in said.words], abs=1e-6)


def test_a_low_confidence_of_the_alignment_is_a_warning(model, corpus):
    annotator, record = WordEmotionAnnotator.from_hparams(model), record_of(corpus)
    words = tuple(AlignedInterval(w["word"], w["start"], w["end"], 0.1) for w in record["words"])
    alignment = Alignment(words, None, record["transcript"], record["duration"], "made")
    (warning,) = annotator.annotate_file(record["wav"], alignment=alignment).warnings
    assert "may not be what is said" in warning


def test_what_is_missing_is_said(model, corpus):
    annotator, record = WordEmotionAnnotator.from_hparams(model), record_of(corpus)
    with pytest.raises(ValueError, match="no text is given"):
        annotator.annotate_file(record["wav"])
    with pytest.raises(ValueError, match=r"needed is an alignment.Alignment"):
        annotator.annotate_file(record["wav"], alignment=record["words"])
    with pytest.raises(ValueError, match="this is no annotation"):
        WordAnnotation.from_dict({"name": "x"})


# ------------------------------------------------------------------------------------------------ export
def test_the_export_is_data_only_and_checked(model, tmp_path):
    import shutil

    files = {p.name for p in (model / "model").rglob("*") if p.is_file()}
    assert {"hyperparams.yaml", "annotator.safetensors", "manifest.json", "README.md"} <= files
    assert not [name for name in files if name.endswith((".pt", ".ckpt", ".bin", ".pkl", ".py"))]
    assert "sentence broadcast" in (model / "model" / "README.md").read_text(encoding="utf-8")
    # It can be moved, and a changed byte is found.
    moved = tmp_path / "moved"
    shutil.copytree(model / "model", moved)
    assert (
        WordEmotionAnnotator.from_hparams(moved).model_hash
        == WordEmotionAnnotator.from_hparams(model).model_hash
    )
    weights = moved / "annotator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UnsafeModelError, match="sha256"):
        WordEmotionAnnotator.from_hparams(moved)
    yaml = moved / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("annotate:", "annotate: !apply:os.getcwd\nother:"))
    with pytest.raises(UnsafeModelError):
        WordEmotionAnnotator.from_hparams(moved)


def test_another_kind_of_model_is_refused(model):
    with pytest.raises(UnsafeModelError, match="keys"):
        EmotionExplainer.from_hparams(model)


def test_other_weights_are_another_model_in_the_provenance(model, tmp_path):
    other = words_toy.build_annotator(tmp_path, seed=4).parent
    hashes = {WordEmotionAnnotator.from_hparams(folder).model_hash for folder in (model, other)}
    assert len(hashes) == 2


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ExportError, match="unknown keys"):
        words_toy.build_annotator(tmp_path, colour="red")
    with pytest.raises(ExportError, match="temperature is 0"):
        words_toy.build_annotator(tmp_path, temperature=0)
    with pytest.raises(ExportError, match=r"lacks \['supervision'\]"):
        words_toy.build_annotator(tmp_path, supervision=None)


# ------------------------------------------------------------------------------------------------ corpora
def test_a_corrupt_file_among_a_thousand_costs_that_one(model, corpus, tmp_path):
    _, records = corpus
    done = annotate_corpus(model, records, tmp_path / "out.jsonl", MANIFEST, progress=False)
    assert (done.num_annotated, done.num_rejected, done.num_kept) == (998, 2, 0)
    rejected = [json.loads(line) for line in done.rejected_file.read_text().splitlines()]
    assert [entry["id"] for entry in rejected] == ["u0007", "u0400"]
    assert "no words with times" in rejected[0]["reason"] and "truncated" in rejected[1]["reason"]
    ids = [json.loads(line)["id"] for line in done.output.read_text().splitlines()]
    assert ids == [key for key in records if key not in ("u0007", "u0400")]


def test_interrupted_anywhere_it_ends_with_the_same_files(model, corpus, tmp_path, monkeypatch):
    """Cut after any number of records, also in the middle of a line."""
    records = few(corpus[1])
    whole = annotate_corpus(model, records, tmp_path / "whole.jsonl", MANIFEST, progress=False)
    wanted = whole.output.read_bytes(), whole.rejected_file.read_bytes()
    from speechbrain_emo.inference import annotate_corpus as module

    original = module._annotate
    for stop in (0, 1, 8, 9, 23):
        output = tmp_path / f"cut{stop}.jsonl"
        calls = [0]

        def cut(*arguments, calls=calls, stop=stop):
            calls[0] += 1
            if calls[0] > stop:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(module, "_annotate", cut)
        with pytest.raises(KeyboardInterrupt):
            annotate_corpus(model, records, output, MANIFEST, progress=False)
        monkeypatch.setattr(module, "_annotate", original)
        with open(output, "ab") as stream:
            stream.write(wanted[0][: len(wanted[0]) // 100])
        done = annotate_corpus(model, records, output, MANIFEST, progress=False)
        assert done.num_kept == stop
        assert (done.output.read_bytes(), done.rejected_file.read_bytes()) == wanted
    again = annotate_corpus(model, records, tmp_path / "cut8.jsonl", MANIFEST, progress=False)
    assert again.num_kept == len(records) and again.output.read_bytes() == wanted[0]


def test_a_file_of_other_settings_is_not_gone_on_with(model, corpus, tmp_path):
    records = few(corpus[1], 4)
    annotate_corpus(model, records, tmp_path / "out.jsonl", MANIFEST, progress=False)
    other = words_toy.build_annotator(tmp_path / "other", seed=5).parent
    with pytest.raises(AnnotationRunError, match=r"other settings \(model\)"):
        annotate_corpus(other, records, tmp_path / "out.jsonl", MANIFEST, progress=False)
    with pytest.raises(AnnotationRunError, match=r"other settings \(records\)"):
        annotate_corpus(model, few(corpus[1], 5), tmp_path / "out.jsonl", MANIFEST, progress=False)
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(AnnotationRunError, match="is there without"):
        annotate_corpus(model, records, tmp_path / "out.jsonl", MANIFEST, progress=False)
    with pytest.raises(AnnotationRunError, match="num_workers is 0"):
        annotate_corpus(model, records, tmp_path / "o", MANIFEST, num_workers=0)


# ------------------------------------------------------------------------------------------------ shell
def test_the_command_prints_json_markup_and_writes_files(model, corpus, tmp_path, capsys):
    record = record_of(corpus)
    (tmp_path / "grids").mkdir()
    annotator = WordEmotionAnnotator.from_hparams(model)
    annotator.annotate_file(record["wav"], alignment=alignment_of(record)).write_textgrid(
        tmp_path / "grids" / "x.TextGrid"
    )
    soundfile.write(tmp_path / "x.wav", *soundfile.read(record["wav"]))
    wav = str(tmp_path / "x.wav")
    base = ["annotate", wav, "--text", record["transcript"], "--model", str(model)]
    base += ["--aligner", "textgrid", "--option", f"folder={tmp_path / 'grids'}"]
    png, grid = tmp_path / "x.png", tmp_path / "out.TextGrid"
    assert main([*base, "--json", "--png", str(png), "--textgrid", str(grid)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [w["word"] for w in said["words"]] == record["transcript"].split()
    assert said["provenance"]["aligner"] == "textgrid" and "probabilities" in said["words"][0]
    assert png.read_bytes()[:4] == b"\x89PNG" and len(read_textgrid(grid).tiers) == 7
    assert main([*base, "--markup"]) == 0
    marked = capsys.readouterr().out
    assert annotator.annotate_file(wav, alignment=alignment_of(record)).markup().parse(marked.strip()).text
    assert main(base) == 0
    table = capsys.readouterr().out
    assert "valence" in table and "sentence broadcast" in table


def test_the_command_over_a_manifest_lists_what_was_rejected(model, corpus, tmp_path, capsys):
    records = few(corpus[1], 10)
    (tmp_path / "m.json").write_text(json.dumps(records))
    arguments = ["annotate", "--manifest", str(tmp_path / "m.json"), "--model", str(model)]
    arguments += [
        "--aligner",
        "manifest",
        "--output",
        str(tmp_path / "o.jsonl"),
        "--textgrid",
        str(tmp_path / "g"),
    ]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "9 annotated" in captured.out and "o.jsonl.rejected.jsonl" in captured.err
    assert len(list((tmp_path / "g").glob("*.TextGrid"))) == 9


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--model", "m"], "either FILE or --manifest"),
        (["a.wav", "--model", "m"], "either --text or --text_file"),
        (["--manifest", "m.json", "--model", "m"], "--manifest needs --output"),
        (["--manifest", "m.json", "--model", "m", "--output", "o", "--png", "p.png"], "--png: for one file"),
        (["a.wav", "--text", "b", "--model", "m", "--output", "o"], "--output is for --manifest"),
        (["a.wav", "--text", "b", "--model", "no/such/folder"], "no such folder"),
        (["a.wav", "--text", "b", "--model", "m", "--device", "abacus"], "--device abacus"),
    ],
)
def test_wrong_arguments_are_explained(arguments, said, capsys):
    assert main(["annotate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_cannot_be_used_and_an_unknown_aligner(model, corpus, tmp_path, capsys):
    base = ["--text", "so", "--model", str(model)]
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    said = WordEmotionAnnotator.from_hparams(model).annotate_file(
        record_of(corpus)["wav"], alignment=alignment_of(record_of(corpus))
    )
    said.write_textgrid(tmp_path / "bad.TextGrid")
    option = ["--aligner", "textgrid", "--option", f"folder={tmp_path}"]
    assert main(["annotate", str(tmp_path / "bad.wav"), *base, *option]) == 1
    assert "bad.wav" in capsys.readouterr().err
    assert main(["annotate", record_of(corpus)["wav"], *base, "--aligner", "gentle"]) == 2
    assert "gentle" in capsys.readouterr().err
