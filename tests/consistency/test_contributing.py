"""The examples of CONTRIBUTING.md run as they stand there."""

import json
import re
import textwrap

import numpy as np
import pytest
import soundfile
import torch


@pytest.fixture(scope="module")
def examples(repository):
    """Names that the Python blocks of the document define, one dict a block."""
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [m[2] for m in re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)]
    assert len(blocks) == 2, "a corpus and a front end; test a new example here"
    spaces = [{}, {}]
    for block, space in zip(blocks, spaces):
        exec(textwrap.dedent(block), space)
    return spaces


def test_the_corpus(examples, tmp_path):
    rows = ["path,emotion,speaker,transcript", "gone.wav,sad,ann,lost"]
    time = np.arange(8000) / 16000
    for number, speaker in enumerate(["ann", "ben", "cia"]):
        for emotion in ("happy", "sad"):
            tone = sum(np.sin(2 * np.pi * (110 + 40 * number) * k * time) / k for k in range(1, 6)) / 10
            soundfile.write(tmp_path / f"{speaker}_{emotion}.wav", tone, 16000)
            rows.append(f"{speaker}_{emotion}.wav,{emotion},{speaker},yes it is")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = examples[0]["prepare_mycorpus"](tmp_path, tmp_path / "out", "ben")
    parts = {k: json.loads(open(v, encoding="utf-8").read()) for k, v in done.manifests.items()}
    assert {k: len(v) for k, v in parts.items()} == {"train": 2, "valid": 2, "test": 2}
    assert set(parts["test"]) == {"ben_happy", "ben_sad"}
    assert all({"pitch", "volume", "speed"} <= set(r["descriptors"]) for r in parts["train"].values())
    assert [finding.id for finding in done.findings] == ["gone"]


def test_the_front_end(examples):
    torch.manual_seed(0)
    front_end = examples[1]["MeanPooling"](num_layers=3, input_size=8, llm_size=6)
    features, num_frames = torch.randn(2, 7, 3, 8), torch.tensor([4, 7])
    output = front_end(features, num_frames, noise_seeds=[1, 2], kinds=["content"])
    for i, frames in enumerate(num_frames.tolist()):
        alone = front_end(features[i : i + 1, :frames], num_frames[i : i + 1])
        torch.testing.assert_close(alone.slots["content"][0], output.slots["content"][i])
        assert output.slot_lengths["content"][i] == front_end.num_positions("content", frames)
    held = [p for group in front_end.trainable_groups().values() for m in group for p in m.parameters()]
    assert len(held) == len(list(front_end.parameters()))
