"""EmoDB's words under a trained annotator: aggregation by hand, and a few real recordings."""

import json

import words_toy

from recipes.EmoDB.word_arousal import main, mean_by_emotion


def test_means_and_shares_are_over_words():
    def words(*values):
        return [
            {"emotion": "hap" if v > 0.5 else "sad", "arousal": v, "valence": 0.5, "dominance": 0.1}
            for v in values
        ]

    records = {
        k: {"emotion": e, "speaker": s}
        for k, e, s in (("a", "anger", "1"), ("b", "anger", "2"), ("c", "fear", "2"))
    }
    lines = [
        {"id": "a", "words": words(0.9, 0.7)},
        {"id": "b", "words": words(0.2)},
        {"id": "c", "words": words(0.4)},
    ]
    found = mean_by_emotion(lines, records)
    assert set(found) == {"anger", "fear"}
    anger = found["anger"]
    assert anger["arousal"][0] == 0.6 and anger["words"] == 3 and anger["utterances"] == 2
    # Resamples of two speakers: both twice the one, twice the other, or one of each.
    assert anger["arousal"][1:] == (0.2, 0.8)
    assert anger["labels"] == {"hap": 2 / 3, "sad": 1 / 3}


def test_real_recordings_give_a_table_and_pictures(shared_data, tmp_path, capsys):
    model = words_toy.build_annotator(tmp_path).parent
    arguments = [
        "--model",
        str(model),
        "--data_folder",
        str(shared_data / "emodb"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--limit", "14"]) == 0
    lines = [
        json.loads(x) for x in (tmp_path / "out" / "words.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 14 and all(line["provenance"]["aligner"] == "manifest" for line in lines)
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert sum(entry["words"] for entry in found.values()) == sum(len(line["words"]) for line in lines)
    for name in ("arousal.png", "timeline.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    assert "sentence emotion" in capsys.readouterr().out
    assert main(["--model", str(tmp_path / "no"), *arguments[2:]]) == 2
