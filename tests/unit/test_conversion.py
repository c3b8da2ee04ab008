"""Conversion of published files: both ways of naming, other files refused, resumed, no code run."""

import json
import pickle

import pytest
import torch

from speechbrain_emo.cli import main
from speechbrain_emo.inference.conversion import ConversionError, PublishedPart, convert_folder
from speechbrain_emo.lobes.flow import load_flow, tiny_flow
from speechbrain_emo.lobes.vocoder import HiFT, load_vocoder


def tiny_hift():
    return HiFT(num_mels=8, channels=16, f0_channels=8)


PARTS = {
    "flow": PublishedPart("flow.pt", tiny_flow, "flow"),
    "vocoder": PublishedPart("hift.pt", tiny_hift, "vocoder"),
}


@pytest.fixture
def published(tmp_path):
    """A folder in the published layout, small."""
    folder = tmp_path / "published"
    (folder / "CosyVoice-BlankEN").mkdir(parents=True)
    flow, vocoder = tiny_flow(), tiny_hift()
    torch.save(flow.state_dict(), folder / "flow.pt")
    torch.save(vocoder.state_dict(), folder / "hift.pt")
    (folder / "campplus.onnx").write_bytes(b"onnx")
    (folder / "CosyVoice-BlankEN" / "config.json").write_text("{}")
    (folder / "CosyVoice-BlankEN" / "model.safetensors").write_bytes(b"weights that llm.pt has")
    return folder, flow, vocoder


def same(module, other):
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_converted_parts_are_what_was_published(published, tmp_path):
    folder, flow, vocoder = published
    lines = []
    report = convert_folder(folder, tmp_path / "out", parts=PARTS, report=lines.append)
    assert same(load_flow(tmp_path / "out" / "flow"), flow)
    assert same(load_vocoder(tmp_path / "out" / "vocoder"), vocoder)
    assert report["copied"] == ["campplus.onnx", "CosyVoice-BlankEN/config.json"]
    assert report["flow"]["parameters"] == sum(p.numel() for p in flow.state_dict().values())
    assert any("speech_tokenizer_v2.onnx is not there" in line for line in lines)
    before = (tmp_path / "out" / "flow" / "model.safetensors").stat().st_mtime_ns
    convert_folder(folder, tmp_path / "out", parts=PARTS, report=lines.append)
    assert (tmp_path / "out" / "flow" / "model.safetensors").stat().st_mtime_ns == before
    torch.save(tiny_flow().state_dict(), folder / "flow.pt")
    convert_folder(folder, tmp_path / "out", parts=PARTS, report=lines.append)
    assert not same(load_flow(tmp_path / "out" / "flow"), flow)


def test_names_of_an_older_torch_and_of_a_training(published, tmp_path):
    folder, _, vocoder = published
    state = {}
    for name, value in vocoder.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state["generator." + name.replace("parametrizations.weight.original1", "weight_v")] = value
    state["discriminator.mpd.weight"] = torch.ones(1)
    torch.save({**state, "epoch": 3, "step": 10}, folder / "hift.pt")
    convert_folder(folder, tmp_path / "out", ["vocoder"], PARTS, print)
    assert same(load_vocoder(tmp_path / "out" / "vocoder"), vocoder)


def test_a_pickle_that_runs_code_is_refused(published, tmp_path):
    folder = published[0]
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    for write in (torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))):
        write({"input_embedding.weight": Evil()}, folder / "flow.pt")
        with pytest.raises(ConversionError, match="flow.pt: cannot be read as tensors alone"):
            convert_folder(folder, tmp_path / "out", ["flow"], PARTS, print)
        assert not mark.exists() and not (tmp_path / "out" / "flow").exists()


def test_other_files_are_told_by_their_names_and_shapes(published, tmp_path):
    folder, flow, _ = published
    state = flow.state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["encoder_proj.bias"]
    state["encoder_proj.weight"] = torch.ones(2, 2)
    torch.save(state, folder / "flow.pt")
    with pytest.raises(
        ConversionError, match=r"missing \['encoder_proj.bias'\].*\['extra.weight'\].*\(2, 2\)"
    ):
        convert_folder(folder, tmp_path / "out", ["flow"], PARTS, print)
    (folder / "flow.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConversionError, match="get the published file again"):
        convert_folder(folder, tmp_path / "out", ["flow"], PARTS, print)
    torch.save([1, 2], folder / "flow.pt")
    with pytest.raises(ConversionError, match="holds a list"):
        convert_folder(folder, tmp_path / "out", ["flow"], PARTS, print)
    with pytest.raises(ConversionError, match=r"\['flaw'\] are not known; allowed are \['flow', 'vocoder'\]"):
        convert_folder(folder, tmp_path / "out", ["flaw"], PARTS, print)


def test_the_command_tells_what_is_wrong(published, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    # The tiny flow is not of the published size.
    assert main(["convert", str(published[0]), "--out", str(tmp_path / "out"), "--parts", "flow"]) == 2
    assert "is not the published one" in capsys.readouterr().err
    assert not (tmp_path / "out" / "conversion.json").exists()


def test_an_interrupted_conversion_leaves_no_half_folder(published, tmp_path, monkeypatch):
    folder, flow, _ = published
    monkeypatch.setattr("speechbrain_emo.inference.conversion.save_file", _fails)
    with pytest.raises(OSError, match="disk full"):
        convert_folder(folder, tmp_path / "out", ["flow"], PARTS, print)
    assert not (tmp_path / "out" / "flow").exists()
    monkeypatch.undo()
    convert_folder(folder, tmp_path / "out", ["flow"], PARTS, print)
    assert same(load_flow(tmp_path / "out" / "flow"), flow)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["flow"]["file"] == "flow.pt"


def _fails(*_, **__):
    raise OSError("disk full")
