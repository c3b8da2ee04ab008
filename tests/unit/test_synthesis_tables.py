"""Runs of the synthesiser side by side: floor and ceiling, seeds, kinds of runs in one command."""

import pytest

from speechbrain_emo import cli
from speechbrain_emo.results import format_table, write_results
from speechbrain_emo.synthesis_tables import synthesis_tables


@pytest.fixture
def runs(tmp_path):
    def write(name, seed, metrics):
        write_results(tmp_path / name / str(seed), metrics, {"seed": seed})
        return str(tmp_path / name / str(seed))

    def speech(wer, spans, ceiling=0.9):
        return {
            "speech.wer": wer,
            "speech.span_accuracy": spans,
            "speech.protocol": "neutral",
            "neutral.span_accuracy": 0.25,
            "recordings.span_accuracy": ceiling,
        }

    return {
        "film": write("film_speak", 1986, speech(0.2, 0.7)),
        "film2": write("film_speak", 1987, speech(0.4, 0.5)),
        "none": write("none_speak", 1986, speech(0.1, 0.3)),
        "other": write("other_list", 1986, speech(0.1, 0.3, 0.8)),
        "tokens": write(
            "film", 1986, {"test.tokens.marked.eos": 1.0, "test.tokens.recordings.word_accuracy": 0.6}
        ),
        "change": write("changes", 1986, {"change.inside.log_f0": 0.3, "change.seeds.outside.log_f0": 0.1}),
        "sweep": write(
            "sweep",
            1986,
            {
                **{f"sweep.hap.{level}.wer": 0.1 * level for level in range(3)},
                "sweep.hap.trend.f0_range": 0.8,
                "sweep.plain.wer": 0.05,
                "sweep.sentences": 12,
            },
        ),
        "ser": write("ib", 1986, {"test.ser.own_chain.ua": 0.8}),
    }


def test_every_run_stands_beside_its_floor_and_one_ceiling(runs):
    ((title, rows),), rest = synthesis_tables([runs["film"], runs["none"]])
    assert title == "Speech" and not rest
    assert [(row["run"], row["marks"].split()[0], row["spans"]) for row in rows] == [
        ("film_speak/1986", "as", 0.7),
        ("film_speak/1986", "no", 0.25),
        ("none_speak/1986", "as", 0.3),
        ("none_speak/1986", "no", 0.25),
        ("film_speak/1986", "recordings", 0.9),
    ]
    # Another list has another ceiling, which must not be hidden.
    ((_, rows),), _ = synthesis_tables([runs["film"], runs["other"]])
    assert [row["spans"] for row in rows if row["marks"].startswith("recordings")] == [0.9, 0.8]


def test_seeds_are_pooled(runs):
    ((_, rows),), _ = synthesis_tables([f"{runs['film']},{runs['film2']}"])
    assert rows[0]["run"] == "film_speak, 2 seeds" and rows[0]["WER"]["mean"] == pytest.approx(0.3)
    assert "0.300 ± 0.141" in format_table(rows)


def test_one_command_prints_every_kind(runs, capsys):
    order = ["film", "tokens", "change", "sweep", "ser"]
    assert cli.main(["table", *(runs[name] for name in order)]) == 0
    text = capsys.readouterr().out
    titles = ["Recognition", "Speech\n", "Speech tokens", "Changed tag", "Intensity"]
    assert sorted(titles, key=text.index) == titles and text.count("|---") >= 5
    (line,) = [line for line in text.splitlines() if line.startswith("|") and "strongest" in line]
    assert "hap" in line and "0.200" in line
    # One kind alone has no heading: what is printed goes into RESULTS.md as it is.
    assert cli.main(["table", runs["film"]]) == 0 and capsys.readouterr().out.startswith("| run")
    assert cli.main(["table", runs["film"] + "x"]) == 2
