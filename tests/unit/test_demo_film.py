"""The embedded corpus for synthesis: halves of the voices, labels of an annotator, evaluation lists."""

import json

import pytest
import words_toy

from recipes.Demo import demo_film
from speechbrain_emo.dataio.manifest import ManifestError

MEANS = dict(zip(("pitch", "range", "rate", "volume_db"), demo_film.demo.EMOTION_MEANS["sad"]))
SETTINGS = {"num_single": 12}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Manifests as demo_prepare and demo_words write them, over beeps."""
    folder = tmp_path_factory.mktemp("film")
    words_toy.build_words(folder, (("train", 16), ("valid", 4), ("test", 8)))
    for name in ("demo", "words"):
        (folder / name).mkdir()
    for split in ("train", "valid", "test"):
        for kind in ("single", "mixed"):
            records = json.loads((folder / f"{kind}_{split}.json").read_text())
            for record in records.values():
                first, last = (
                    [w.get("emotion", record["emotion"]) for w in record["words"]][i] for i in (0, -1)
                )
                stretches = [(0, 1, first), (1, len(record["words"]), last)]
                if kind == "mixed":
                    for word in record["words"][1:]:
                        word["emotion"] = last
                record["params"] = {**MEANS, "voice": record["speaker"]}
                if kind == "mixed":
                    record["params"]["segments"] = [
                        {**MEANS, "start": a, "stop": b, "emotion": e} for a, b, e in stretches
                    ]
            target = (
                folder / "demo" / f"{split}.json"
                if kind == "single"
                else folder / "words" / f"mixed_{split}.json"
            )
            target.write_text(json.dumps(records))
    return folder


@pytest.fixture
def prepare(corpus, monkeypatch):
    monkeypatch.setattr(demo_film.demo, "prepare_demo", lambda *a, **k: None)
    monkeypatch.setattr(demo_film, "prepare_demo_words", lambda *a, **k: {"settings": "toy"})

    def run(name, **options):
        demo_film.prepare_demo_film(
            str(corpus), corpus / "demo", corpus / "words", corpus / name, **{**SETTINGS, **options}
        )
        return corpus / name

    return run


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def speakers(records):
    return {record["speaker"] for record in records.values()}


def test_half_of_the_voices_train_and_the_rest_is_kept_apart(prepare):
    whole, half = prepare("all"), prepare("half", voices="half")
    before = {path.name: path.read_bytes() for path in whole.glob("*.json")}
    for kind in ("single", "mixed"):
        all_of, kept, rest = (
            read(whole, f"{kind}_train"),
            read(half, f"{kind}_train"),
            read(half, f"{kind}_rest"),
        )
        assert {**kept, **rest} == all_of and not speakers(kept) & speakers(rest)
        assert speakers(kept) | speakers(rest) == speakers(all_of)
        assert read(half, f"{kind}_test") == read(whole, f"{kind}_test")
    assert not (whole / "single_rest.json").exists()
    prepare("half", voices="half")
    assert before == {path.name: path.read_bytes() for path in whole.glob("*.json")}
    with pytest.raises(ValueError, match="allowed: all, half"):
        prepare("bad", voices="some")


def test_sentences_in_the_voices_of_the_prompts(prepare, corpus):
    half = prepare("half", voices="half")
    tests = [half / "mixed_test.json", half / "single_test.json"]
    options = {"prompts": half / "single_rest.json", "label_map": words_toy.LABEL_MAP}
    count = demo_film.prepare_speak_list(tests, save_file=corpus / "rest.json", voices="prompts", **options)
    made = json.loads((corpus / "rest.json").read_text())
    assert count == len(made) == 16
    rest = {r["wav"] for r in read(half, "single_rest").values() if r["emotion"] == "neutral"}
    assert {record["prompt"] for record in made.values()} <= rest
    assert {record["speaker"] for record in made.values()} <= speakers(read(half, "single_rest"))
    # The recording is that of the sentence: what shifts are compared with.
    assert all(record["reference"].endswith(f"{key}.wav") for key, record in made.items())
    own = {"prompts": half / "single_test.json", "label_map": words_toy.LABEL_MAP}
    demo_film.prepare_speak_list(tests, save_file=corpus / "own.json", **own)
    for key, record in json.loads((corpus / "own.json").read_text()).items():
        assert (
            record["speaker"] in speakers(read(half, "single_test"))
            and record["prompt"] != record["reference"]
        ), key
    with pytest.raises(ValueError, match="allowed: own, prompts"):
        demo_film.prepare_speak_list(tests, save_file=corpus / "x.json", voices="mine", **options)


def test_an_annotator_labels_the_training_words_once(prepare, corpus, monkeypatch):
    with pytest.raises(ManifestError, match="train it first"):
        prepare("all", annotator=str(corpus / "nothing"))
    model = words_toy.build_annotator(corpus).parent
    folder = prepare("all", annotator=str(model))
    files = list(folder.glob("annotations_*/*.jsonl"))
    lines = [path for path in files if not path.name.endswith(".rejected.jsonl")]
    assert sorted(path.name for path in lines) == ["mixed_train.jsonl", "single_train.jsonl"]
    right = total = 0
    for kind in ("single", "mixed"):
        plain, made = read(folder, f"{kind}_train"), read(folder, f"{kind}_train_annotated")
        assert list(made) == list(plain)
        said = {}
        for line in next(path for path in lines if path.name.startswith(kind)).read_text().splitlines():
            said[json.loads(line)["id"]] = json.loads(line)["words"]
        for key, record in made.items():
            stripped = [{k: v for k, v in word.items() if k != "annotated"} for word in record["words"]]
            assert {**record, "words": stripped} == plain[key]
            for word, heard in zip(record["words"], said[key]):
                assert word["annotated"]["emotion"] == heard["emotion"]
                assert word["annotated"]["intensity_value"] == heard["arousal"]
                right += words_toy.LABEL_MAP[word["emotion"]] == heard["emotion"]
                total += 1
    # Cut off inside: the same files in the end, and only what is missing is heard again.
    whole = lines[0].read_bytes()
    lines[0].write_bytes(whole[: len(whole) // 2])
    from speechbrain_emo.inference import WordEmotionAnnotator

    heard, original = [], WordEmotionAnnotator.annotate_file
    monkeypatch.setattr(
        WordEmotionAnnotator,
        "annotate_file",
        lambda self, *a, **k: heard.append(1) or original(self, *a, **k),
    )
    share = demo_film.annotate_words(str(model), str(corpus), folder)
    assert lines[0].read_bytes() == whole and 0 < len(heard) < len(read(folder, "mixed_train"))
    assert share == pytest.approx(right / total)
