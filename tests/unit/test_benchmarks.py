"""The benchmarks' measuring functions at the smallest sizes: what they compare is the same, the tables are sane.

No time is tested. That the variants give the same result is: a comparison of different things says nothing.
"""

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import (
    answer_loss,
    common,
    dual_chat,
    epoch_cache,
    flow,
    label_scoring,
    run_all,
    speech_tokens,
)

SMALL_LOSS = answer_loss.Sizes(
    vocab_size=512, hidden_size=32, num_layers=1, batch_size=3, positions=24, answer=5
)
SMALL_MODEL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 32,
}


def check_table(table, num_rows):
    """Every row has a cell a column, one row is marked as the reference with a ratio of 1; returns the text."""
    assert len(table.rows) == num_rows
    assert all(len(row) == len(table.header) for row in table.rows)
    ratio = table.header.index("ratio of time")
    for row in table.rows:
        value = float(row[ratio].split()[0])
        assert math.isfinite(value) and value > 0
        if any("(reference)" in str(cell) for cell in row):
            assert row[ratio] == "1.00 (1.00-1.00)"
    text = str(table)
    assert text.count("\n|---") == 1 and "(reference)" in text
    return text


def test_ratios_are_of_the_same_round():
    times = {"reference": [1.0, 10.0, 2.0], "own": [2.0, 5.0, 4.0]}
    timing = common.compare(times, "reference")["own"]
    # The ratio of the medians would be 4 / 2 too; the spread shows the rounds.
    assert timing == common.Timing(seconds=4.0, ratio=2.0, lowest=0.5, highest=2.0)
    with pytest.raises(ValueError):
        common.compare({"reference": [1.0], "own": [1.0, 2.0]}, "reference")


def test_turns_are_interleaved_and_warm():
    calls = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = common.take_turns(variants, rounds=2, warmup=1)
    assert "".join(calls) == "baabba"
    assert [len(t) for t in times.values()] == [2, 2]
    with pytest.raises(ValueError, match="rounds is 0"):
        common.take_turns(variants, rounds=0)


def test_peak_memory_sees_an_allocation():
    # The kernel counts pages in batches: sizes are exact to a few hundred kB.
    slack, size = 4_000_000, 64_000_000
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    resident = common.resident_memory()
    del block
    assert common.peak_memory() >= resident - slack
    if os.path.exists("/proc/self/status"):
        assert resident - common.resident_memory() >= size - slack


def test_both_losses_and_their_gradients_agree():
    llm = answer_loss.build_model(SMALL_LOSS)
    # The second matrix of an adapter starts at zero, which would make the first one's gradient zero, too.
    for name, p in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    embeddings, packed = answer_loss.build_batch(llm, SMALL_LOSS)
    assert (packed.labels != answer_loss.IGNORED_LABEL).sum(1).tolist() == [5, 5, 5]
    assert packed.attention_mask.sum(1).tolist() == [24, 18, 12]
    found = {}
    for name in answer_loss.VARIANTS:
        loss = answer_loss.step(name, llm, embeddings, packed)
        grads = [p.grad.clone() for p in llm.parameters() if p.requires_grad]
        # Of the valid positions: what the padding gets does not train anything.
        found[name] = (loss, [embeddings.grad[packed.attention_mask.bool()].clone(), *grads])
    (own, own_grads), (reference, reference_grads) = found["answer_only"], found["full_logits"]
    assert own == pytest.approx(reference, abs=1e-5)
    assert own == pytest.approx(math.log(512), rel=0.2)
    assert len(own_grads) == 1 + 8
    for x, y in zip(own_grads, reference_grads, strict=True):
        assert float(y.abs().max()) > 0
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def test_answer_loss_table_measures_memory_in_own_processes():
    # The vocabulary is large enough that all logits (20 MB a copy) stand out of the noise of an allocator.
    sizes = answer_loss.Sizes(
        vocab_size=32000, hidden_size=16, num_layers=1, batch_size=2, positions=80, answer=4
    )
    (table,) = answer_loss.run(sizes, rounds=1)
    check_table(table, 2)
    reference, own = table.rows
    assert reference[0] == "full_logits (reference)" and own[0] == "answer_only"
    assert reference[-1] == own[-1]
    memory = table.header.index("peak memory of a step (MB)")
    assert float(reference[memory]) > 20 > float(own[memory])


def test_answer_loss_refuses_a_prompt_without_room():
    with pytest.raises(ValueError, match="at least 12"):
        answer_loss.Sizes(positions=11, answer=5)


def test_a_failed_memory_process_is_an_error(monkeypatch):
    monkeypatch.setattr(answer_loss.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="answer_only ended with 1"):
        answer_loss.measure_peak("answer_only", SMALL_LOSS)


@pytest.fixture(scope="module")
def scoring_model():
    return label_scoring.build_model(SMALL_MODEL, num_texts=50)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_brute_force_equals_scoring(scoring_model, batch_size):
    llm, packer, task = scoring_model
    labels = [list(packer.tokenize(" " + name)) for name in task.format.labels]
    assert len({len(x) for x in labels}) > 1
    batches = label_scoring.build_batches(llm, packer, task, labels, 5, batch_size, positions=(2, 6))
    assert [len(b.embeddings) for b in batches] == ([1] * 5 if batch_size == 1 else [4, 1])
    # A batch takes as many steps as its longest label and the end token.
    longest = [len(labels[i % 4]) + 1 for i in range(5)]
    expected = longest if batch_size == 1 else [max(longest[:4]), longest[4]]
    assert [b.num_steps for b in batches] == expected
    timings, difference = label_scoring.measure(llm, batches, labels, rounds=1)
    assert set(timings) == {"generation", "scoring", "brute_force"}
    assert difference < 1e-5
    for b in batches:
        scores = label_scoring.brute_force(llm, b, labels)
        assert scores.shape == (len(b.embeddings), 4) and bool((scores < 0).all())
        # Other labels, other scores: the comparison above would not see a constant.
        assert float((scores[:, 0] - scores[:, 1]).abs().min()) > 0


def test_label_scoring_table():
    (table,) = label_scoring.run(["anger", "joy"], (1, 2), 3, rounds=1, model=SMALL_MODEL, num_texts=50)
    text = check_table(table, 6)
    assert "2 likelihoods" in text and "anger (" in text
    assert all(float(row[table.header.index("utterances/s")]) > 0 for row in table.rows)


def test_epoch_cache_takes_the_same_steps(monkeypatch):
    seen = []
    measured = epoch_cache.measure_phase

    def keep(*arguments):
        seen.append(measured(*arguments))
        return seen[-1]

    monkeypatch.setattr(epoch_cache, "measure_phase", keep)
    (table,) = epoch_cache.run_toy(steps=2, rounds=1)
    text = check_table(table, 4)
    assert "2 of 3 steps" in text and "toy" in text
    assert [r.phase for r in seen] == ["1.asr", "1.joint"]
    for result in seen:
        assert set(result.times) == {"live", "cached"}
        assert (result.num_steps, result.all_steps) == (2, 3)
        # Same seed, data and noise: only the features come from elsewhere.
        assert result.losses["live"] == pytest.approx(result.losses["cached"], abs=1e-4)
        assert result.audio_seconds > 0


def test_epoch_cache_names_what_is_missing(repository, tmp_path):
    with pytest.raises(FileNotFoundError, match="make demo") as error:
        epoch_cache.run(
            str(repository / epoch_cache.EXPERIMENT),
            overrides={"data_folder": str(tmp_path), "backbones": str(tmp_path)},
        )
    assert str(tmp_path / "llm" / "config.json") in str(error.value)


def test_run_all_yields_the_chosen_tables(monkeypatch):
    monkeypatch.setattr(answer_loss, "measure_peak", lambda name, sizes, threads: 10**6)
    (table,) = run_all.run(only=["answer_loss"], rounds=1, quick=True)
    check_table(table, 2)
    assert "16032" in table.title


def test_streaming_and_guidance_compare_the_same_output(monkeypatch):
    monkeypatch.setattr(flow, "measure_peak", lambda name, sizes, threads: 10**6)
    sizes = flow.Sizes(seconds=8, prompt_seconds=1, num_steps=2, toy=1)
    memory, stream, guidance, vocoder = flow.run(sizes, rounds=1)
    assert len(memory.rows) == 4
    for table, rows in ((stream, 4), (guidance, 2), (vocoder, 2)):
        check_table(table, rows)
        column = table.header.index("difference")
        cells = [row[column] for row in table.rows if row[column] != "by design"]
        assert all(float(cell) < 1e-4 for cell in cells)
    # 1 s, 2 s and 4 s with a look-ahead of 3 tokens; the last second is not a hop.
    assert list(flow.hops(flow.make_case(sizes))) == [28, 78, 178]
    with pytest.raises(ValueError, match="seconds is 1"):
        flow.Sizes(seconds=1)


@pytest.mark.parametrize("module", [answer_loss, epoch_cache, flow, label_scoring, run_all, speech_tokens])
def test_help_has_an_example_and_names_the_reference(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "example:\n  python -m benchmarks" in text and "reference" in text


def test_a_benchmark_runs_as_a_file_from_anywhere(repository, tmp_path):
    done = subprocess.run(
        [sys.executable, repository / "benchmarks" / "answer_loss.py", "--help"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_turn_of_the_dual_chat():
    """Equal answers are asserted inside; only the new turn is read where keys and values are kept."""
    small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32}
    encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    table = dual_chat.turn_table(3, 0.5, 1, small, encoder)
    check_table(table, 3)
    read, whole = table.header.index("positions read"), table.header.index("of")
    assert [row[read] == row[whole] for row in table.rows] == [True, True, False]
    assert table.rows[2][read] < table.rows[2][whole] / 2


def test_speech_tokens_are_those_of_the_reference(monkeypatch):
    """The variants say the same thing: transformers' generate, the cache here, and a batch."""
    sizes = speech_tokens.Sizes(text=6, prompt=8, tokens=10, batch=3, toy=1)
    # Its process, but in this one: four starts of Python take longer than all the rest.
    monkeypatch.setattr(
        speech_tokens, "measure_peak", lambda name, sizes, threads: speech_tokens.peak_of(name, sizes)
    )
    memory, decode, chunk = speech_tokens.run(sizes, rounds=1)
    assert [row[0] for row in memory.rows][0] == "transformers generate, fp32 (reference)" and len(
        memory.rows
    ) == 5
    read = {
        name: speech_tokens.peak_of(name, sizes)["weights"]
        for name in ("ours, fp32", "ours, bf16", "ours, int8")
    }
    # Norms and biases stay in fp32 with int8.
    assert read["ours, bf16"] * 2 == read["ours, fp32"] and read["ours, int8"] < 0.5 * read["ours, fp32"]
    check_table(decode, 5)
    check_table(chunk, 3)
    assert chunk.rows[0][-1] == "1.000" and all(float(row[-2]) > float(row[1]) for row in chunk.rows)
    stay, error = decode.header.index("tokens that stay"), decode.header.index("error of scores")
    cells = {row[0]: row for row in decode.rows}
    for name in ("transformers generate, fp32 (reference)", "ours, fp32", "ours, fp32, batch of 3"):
        assert cells[name][stay] == "1.00", name
    assert 0 < float(cells["ours, int8"][error]) < 0.5 and float(cells["ours, fp32"][error]) == 0
