"""A trained model on another corpus: labels, splits, batches, failures; on a tiny system of the real classes."""

import json
import subprocess
import sys

import pytest

from speechbrain_emo import cli
from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.inference import EmotionExplainer
from speechbrain_emo.inference.evaluate_corpus import map_corpus, predict_corpus
from speechbrain_emo.inference.export import export_model
from speechbrain_emo.report import worst_mistakes, write_report
from speechbrain_emo.results import compute_results, read_predictions, read_results
from tests.corpora import write_recording
from tests.tiny import build_tiny_system
from tests.toy import REPOSITORY, environment

THEIRS = {"anger": "angry", "joy": "happy", "sadness": "sad", "boredom": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    system = build_tiny_system(root)
    export_model(
        root / "model", system.model, system.factories, system.answer_format, system.tasks, system.explain
    )
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A table of 24 recordings of other rates and lengths, in two splits, and one that is broken."""
    root = tmp_path_factory.mktemp("corpus")
    rows = ["path,emotion,speaker,transcript,split"]
    for i in range(24):
        path = write_recording(root / f"{i}.wav", 0.25 + 0.02 * i, rate=(16000, 22050)[i % 2])
        rows.append(
            f"{path.name},{list(THEIRS)[i % 4]},s{i // 4 % 3},the sky is blue,{('train', 'test')[i >= 8]}"
        )
    (root / "list.csv").write_text("\n".join(rows))
    return root / "list.csv"


def run(capsys, *arguments):
    status = cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_scores_what_both_have(folder, corpus, tmp_path, capsys):
    status, out, err = run(capsys, folder, corpus, "--out", tmp_path / "out")
    assert status == 0
    assert "labels: anger -> angry, boredom -> left out, joy -> happy, sadness -> sad" in out
    assert r"label\|own_chain" in out and "chance: 0.333" in out
    assert "4 of label 'boredom' left out" in err
    lines, written = read_predictions(tmp_path / "out"), read_results(tmp_path / "out")
    # The test part alone: 16 recordings, of which four are bored.
    assert len(lines) == 12 and written["label_map"]["boredom"] is None
    assert {line["emotion"] for line in lines} == {"angry", "happy", "sad"}
    # The numbers are those of the saved predictions, over the shared labels.
    labels = written["evaluation"]["labels"]
    assert labels == ["happy", "sad", "angry"], "in the model's order"
    for line in lines:
        line["scores"] = {c: {k: v for k, v in s.items() if k in labels} for c, s in line["scores"].items()}
    again = compute_results(lines, labels, java=False)
    assert again["test.ser.own_chain.ua"] == written["metrics"]["test.ser.own_chain.ua"]
    metrics = written["metrics"]
    assert sum(metrics["test.ser.speech.answers"].values()) == 12
    # Whoever may also answer with a label that the corpus lacks is never better for it.
    assert metrics["test.ser.speech.wa_all_labels"] <= metrics["test.ser.speech.wa"]
    assert "test.asr.generated.wer" in metrics


def assert_same_evaluation(one, two):
    """Every metric and every prediction of two folders is the same."""
    metrics, others = read_results(one)["metrics"], read_results(two)["metrics"]
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        if isinstance(value, float):
            assert others[name] == pytest.approx(value, abs=1e-4), name
    lines, found = read_predictions(one), {x["id"]: x for x in read_predictions(two)}
    assert {line["id"] for line in lines} == set(found)
    for line in lines:
        assert found[line["id"]]["answer"] == line["answer"]
        for condition, scores in line["scores"].items():
            assert found[line["id"]]["scores"][condition] == pytest.approx(scores, abs=1e-4)


def test_scores_do_not_depend_on_batch_order_or_workers(folder, corpus, tmp_path, capsys):
    """The complete evaluation: other batches, another order of the rows, other processes that read."""
    table = corpus.read_text().splitlines()
    (corpus.parent / "turned").mkdir(exist_ok=True)
    turned = corpus.parent / "turned" / "list.csv"
    turned.write_text("\n".join([table[0], *reversed(table[1:])]))
    ways = (
        (corpus, ("--batch_size", 1)),
        (corpus, ("--batch_size", 7)),
        (turned, ("--data_root", corpus.parent, "--num_workers", 2)),
    )
    for number, (source, more) in enumerate(ways):
        status, printed, _ = run(capsys, folder, source, "--out", tmp_path / str(number), "--json", *more)
        assert status == 0 and json.loads(printed)["labels"] == ["happy", "sad", "angry"]
    for number in (1, 2):
        assert_same_evaluation(tmp_path / "0", tmp_path / str(number))


@pytest.mark.integration
def test_two_processes_evaluate_like_one(folder, corpus, tmp_path, capsys):
    """`torchrun ... evaluate` shares the recordings; what cannot be used is told once."""
    table = tmp_path / "list.csv"
    write_recording(tmp_path / "long.wav", 200.0, rate=8000)
    table.write_text(f"{corpus.read_text()}\n{tmp_path / 'long.wav'},joy,s1,,test")
    arguments = [folder, table, "--data_root", corpus.parent, "--level", "-30"]
    status, _, err = run(capsys, *arguments, "--out", tmp_path / "one")
    assert status == 1 and "long.wav" in err
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "speechbrain_emo"]
    more = ["--out", tmp_path / "two", "--num_workers", 1, "--batch_size", 5, "--device", "cpu", "--json"]
    done = subprocess.run(
        [sys.executable, *launch, "evaluate", *map(str, [*arguments, *more])],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.stdout.count('{"labels"') == 1, done.stderr[-3000:]
    assert done.stderr.count("error: ") == 1 and "long.wav" in done.stderr
    assert_same_evaluation(tmp_path / "one", tmp_path / "two")


def test_the_report_of_an_evaluation(folder, corpus, tmp_path, capsys):
    """Settings, confusion, what was left out, and the mistakes among the shared labels, with players."""
    status, printed, _ = run(capsys, folder, corpus, "--out", tmp_path / "out")
    assert status == 0 and "WER" in printed
    assert (tmp_path / "out" / "confusion_own_chain.png").stat().st_size > 5000
    records = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {r["emotion"] for r in records.values()} == {"angry", "happy", "sad"}
    mistakes = worst_mistakes(read_predictions(tmp_path / "out"), 99, labels=["happy", "sad", "angry"])
    assert mistakes and "neutral" not in {m["predicted"] for m in mistakes}
    (corpus.parent / "data_check.json").write_text(
        json.dumps({"findings": [{"kind": "clipped", "count": 7, "message": "7 files", "items": ["f0"]}]})
    )
    page = write_report(tmp_path / "out").read_text("utf-8")
    (corpus.parent / "data_check.json").unlink()
    assert page.count("<audio") == min(len(mistakes), 12)
    for text in (
        "4 of label &#39;boredom&#39; left out",
        "confusion own chain",
        "boredom",
        "clipped",
        str(corpus),
    ):
        assert text in page, text
    assert "No players" not in page


def test_direct_asks_for_the_label_alone(folder, corpus, tmp_path, capsys):
    run(capsys, folder, corpus, "--out", tmp_path / "all")
    status, out, _ = run(capsys, folder, corpus, "--out", tmp_path / "direct", "--direct")
    assert status == 0 and "own_chain" not in out
    for line, direct in zip(read_predictions(tmp_path / "all"), read_predictions(tmp_path / "direct")):
        assert direct["answer"] is None and set(direct["scores"]) == {"speech"}
        assert direct["scores"]["speech"] == pytest.approx(line["scores"]["speech"], abs=1e-4)


def test_a_recording_that_cannot_be_used_is_named_and_the_others_are_scored(folder, tmp_path, capsys):
    rows = ["path,emotion,speaker"]
    for i in range(6):
        write_recording(tmp_path / f"{i}.wav", 0.3)
        rows.append(f"{i}.wav,{('anger', 'joy')[i % 2]},s{i % 3}")
    write_recording(tmp_path / "long.wav", 200.0, rate=8000)
    rows.append("long.wav,joy,s1")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    status, out, err = run(capsys, folder, tmp_path / "list.csv", "--out", tmp_path / "out", "--direct")
    assert status == 1 and "long.wav" in err and len(read_predictions(tmp_path / "out")) == 6
    assert list(read_results(tmp_path / "out")["failures"]) == ["long"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--split", "valid"], "--split valid: the corpus has test, train"),
        (["--label_map", "none.yaml"], "no such file"),
        (["--odd"], "--odd: not known"),
    ],
)
def test_wrong_arguments(folder, corpus, capsys, arguments, says):
    status, _, err = run(capsys, folder, corpus, *arguments)
    assert status == 2 and says in err
    status, _, err = run(capsys, corpus.parent, corpus)
    assert status == 2 and "holds no exported model" in err


def test_labels_that_do_not_meet():
    records = {"a": {"emotion": "x"}, "b": {"emotion": "anger"}, "c": {"emotion": None}}
    with pytest.raises(ManifestError, match="only 1 of them meet; give a label map"):
        map_corpus(records, ["angry", "sad"])
    mapped = map_corpus(records, ["angry", "sad"], {"x": "sad"})
    assert mapped.labels == ["angry", "sad"] and "1 records have no label" in mapped.notes
    with pytest.raises(ValueError, match="leads to .'glad'."):
        map_corpus(records, ["angry", "sad"], {"x": "glad"})


def test_one_gain_for_the_corpus(folder, corpus):
    """The gain makes the median level what was asked for, and leaves the differences between recordings."""
    from speechbrain_emo.dataio.audio import load_audio

    model = EmotionExplainer.from_hparams(source=folder, run_opts={"device": "cpu"})
    records = {
        str(i): {"wav": str(corpus.parent / f"{i}.wav"), "duration": 0.3, "emotion": "sad", "speaker": "s"}
        for i in range(3)
    }
    heard = []
    original = model.explainer.encode
    model.explainer.encode = lambda audio: heard.append(audio.waveforms.clone()) or original(audio)
    predict_corpus(model, records, batch_size=1, direct=True, level=-40.0, progress=False)
    plain = [load_audio(r["wav"], model.sample_rate) for r in records.values()]
    ratios = [float(x.flatten().norm() / y.norm()) for x, y in zip(heard, plain)]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-4)
    levels = sorted(10 * float(x.square().mean().log10()) for x in heard)
    assert levels[1] == pytest.approx(-40.0, abs=0.1)
