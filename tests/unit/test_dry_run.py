"""The estimate against sizes that are known otherwise, and against the real modules."""

import json
import math
from functools import partial

import pytest
import torch
import yaml

from speechbrain_emo.dataio.batching import Item, StepPlanner
from speechbrain_emo.dry_run import (
    DryRunReport,
    cache_rates,
    encoder_flops,
    estimate,
    steps_per_epoch,
    training_flops,
)
from speechbrain_emo.lobes.speech_encoder import SpeechEncoder
from speechbrain_emo.lobes.speech_llm import SpeechLLM, build_meta
from speechbrain_emo.lobes.vib_front_end import VIBFrontEnd

PHASES = [
    {"name": "asr", "train": ["front_end.content", "llm.lora"], "tasks": ["asr"], "epochs": 2, "lr": 1e-4},
    {
        "name": "joint",
        "train": ["front_end.descriptor", "llm.lora"],
        "tasks": ["ser"],
        "epochs": 3,
        "lr": 1e-4,
    },
]


@pytest.fixture
def published(repository):
    """The paper's setting from the fragments: HuBERT-large and Llama-3.1-8B, IEMOCAP's size."""

    def fragment(name):
        text = (repository / "hparams" / "backbones" / f"{name}.yaml").read_text(encoding="utf-8")
        return {
            k: v
            for k, v in yaml.safe_load(text).items()
            if k in ("source", "revision", "dtype", "architecture")
        }

    return {
        "encoder": partial(SpeechEncoder, **fragment("hubert_large")),
        "front_end": partial(VIBFrontEnd, hidden_size=512, latent_size=256, stack=5, adapter_size=1024),
        "llm": partial(SpeechLLM, lora={"r": 16}, **fragment("llama3_8b")),
        "phases": PHASES,
        "corpus_hours": 7.0,
        "num_train_records": 4290,
    }


def test_published_parameter_counts_and_the_trainable_share(published):
    report = estimate(published, sustained_flops=1e14)
    counts = {module.name: (module.parameters, module.trainable) for module in report.modules}
    # LoRA of rank 16 on q, k, v, o: r * (in + out) each, with 8 of 32 key heads.
    lora = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    # Per branch: 25 layer weights, 1024 -> 512 -> 2 * 256, then 5 * 256 -> 1024 -> 4096; all with biases.
    bottleneck = 1024 * 512 + 512 + 512 * 512 + 512
    adapter = 1280 * 1024 + 1024 + 1024 * 4096 + 4096
    branch = 25 + bottleneck + adapter
    assert counts["encoder"] == (315_438_720, 0)
    assert counts["llm"] == (8_030_261_248, 0)
    assert counts["llm.lora"] == (lora, lora)
    assert counts["front_end"][0] == counts["front_end"][1]
    assert counts["front_end"][0] == pytest.approx(2 * branch, rel=1e-3)  # the lobe adds norms and gains
    assert report.trainable_share == pytest.approx((lora + counts["front_end"][0]) / 8.372e9, rel=1e-3)
    # A phase trains one branch, not both.
    assert report.phases[0].trainable == lora + counts["front_end"][0] // 2


def test_cache_size_is_the_published_figure(published):
    """2.6 MB a second, 64 GB for IEMOCAP's 7 h and 6.8 TB for SpeechCraft's 739.91 h."""
    report = estimate({**published, "cache": "layers"}, sustained_flops=1e14)
    assert report.cache_rate["layers"] == 50 * 25 * 1024 * 2
    assert report.cache_bytes() == pytest.approx(64e9, rel=0.02)
    report = estimate({**published, "cache": "layers"}, audio_hours=739.91, sustained_flops=1e14)
    assert report.cache_bytes() == pytest.approx(6.8e12, rel=0.01)
    assert report.cache_rate["weighted"] == 2 * 50 * 1024 * 2
    assert report.cache_bytes("off") == 0
    shared = estimate(
        {**published, "front_end": partial(VIBFrontEnd, layer_weights="shared")}, sustained_flops=1e14
    )
    assert shared.cache_rate["weighted"] == 50 * 1024 * 2


def test_weights_in_memory_follow_the_type(published):
    weights = {m.name: m.weight_bytes for m in estimate(published, sustained_flops=1e14).modules}
    assert weights["llm"] == 2 * 8_030_261_248
    assert weights["encoder"] == 2 * 315_438_720
    four_bit = {**published, "llm": partial(published["llm"], quantization="4bit")}
    quantized = {m.name: m.weight_bytes for m in estimate(four_bit, sustained_flops=1e14).modules}
    # The two vocabulary matrices stay in bfloat16; the rest takes a little over half a byte.
    kept = 2 * 2 * 128256 * 4096
    assert quantized["llm"] == pytest.approx(kept + 0.516 * (8_030_261_248 - 2 * 128256 * 4096), rel=1e-3)
    assert quantized["llm.lora"] == weights["llm.lora"]


def test_gradient_checkpointing_trades_memory_for_operations(published):
    plain = estimate(published, sustained_flops=1e14)
    saving = estimate(
        {**published, "llm": partial(published["llm"], gradient_checkpointing=True)}, sustained_flops=1e14
    )
    name = "activations of the language model"
    assert saving.memory[name] < plain.memory[name] / 4
    assert saving.phases[0].flops > 1.4 * plain.phases[0].flops


@pytest.mark.parametrize("num_records", [1, 7, 8, 16, 100, 129, 131, 133])
@pytest.mark.parametrize("batch_size", [2, 8, 13])
def test_steps_are_those_of_the_planner(num_records, batch_size):
    planner = StepPlanner(lambda i, t: 10, lambda i, t: 5, max_positions=10**6, max_frames=10**6)
    plans = planner.plan([Item(i, "t") for i in range(num_records)], batch_size, epoch=1, phase="1.p", seed=0)
    assert steps_per_epoch(num_records, batch_size) == len(plans)


def test_steps_count_epochs_cycles_and_records_per_epoch(published):
    report = estimate({**published, "cycles": 2}, num_records=160, sustained_flops=1e14)
    assert [(p.key, p.steps) for p in report.phases] == [
        ("1.asr", 20),
        ("1.joint", 30),
        ("2.asr", 20),
        ("2.joint", 30),
    ]
    fewer = [{**PHASES[0], "records_per_epoch": 32}, PHASES[1]]
    report = estimate({**published, "phases": fewer}, num_records=160, sustained_flops=1e14)
    assert [p.steps for p in report.phases] == [4, 30]


def test_operations_of_a_frozen_matrix_are_counted_by_torch_too():
    """The closed form against torch's own counter on a small real model."""
    from torch.utils.flop_counter import FlopCounterMode

    architecture = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    llm = build_meta(architecture=architecture)
    with torch.device("meta"):
        embeddings = torch.randn(1, 50, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        llm.causal_lm(inputs_embeds=embeddings).logits.sum().backward()
    ours = training_flops(llm, None, positions=50, answer=50, frames=0)
    # The counter takes masked pairs for computed: 4 D a pair and layer forward, twice that backward.
    masked_pairs = 3 * 2 * 4 * 32 * 50**2 / 2
    assert ours == counter.get_total_flops() - masked_pairs


def test_operations_of_the_encoder_are_counted_by_torch_too():
    from torch.utils.flop_counter import FlopCounterMode

    architecture = {
        "model_type": "hubert",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "conv_dim": [32] * 7,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }
    encoder = SpeechEncoder(None, architecture=architecture)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, 16000), torch.tensor([16000]))
    # Attention and the positional convolution are left out of the estimate, edges make the true count
    # smaller.
    assert encoder_flops(encoder) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_hours_are_operations_over_rate_and_the_cache_saves_encoder_passes(published):
    live = estimate(published, sustained_flops=1e14)
    cached = estimate({**published, "cache": "layers"}, sustained_flops=1e14)
    difference = (live.hours("as given") - cached.hours("as given")) * 3600 * 1e14
    assert difference == pytest.approx(4 * live.encode_flops, rel=1e-6)  # five epochs against one pass
    assert live.hours("as given") == pytest.approx(
        2 * estimate(published, sustained_flops=2e14).hours("as given")
    )


def test_the_table_and_the_json_tell_the_same(published):
    report = estimate(published)
    text = str(report)
    for expected in ("8,030,261,248", "315,438,720", "1.joint", "nothing was downloaded", "assumed:"):
        assert expected in text
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["parameters"] == report.parameters
    assert set(loaded["hours"]) == set(report.rates)
    assert all(math.isfinite(h) and h > 0 for h in loaded["hours"].values())


def test_short_disk_is_said():
    report = DryRunReport(
        [], [], {}, {"off": 0.0, "layers": 1e6}, "layers", 10.0, 8.0, 5, 0.0, 0.0, 1e9, 0.0, {"x": 1e9}
    )
    assert "NOT ENOUGH DISK" in str(report)
    report.cache_mode = "off"
    assert "NOT ENOUGH DISK" not in str(report)


def test_nothing_is_downloaded(published, monkeypatch):
    """Every way of fetching raises; the estimate does not care."""
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError(f"a dry run tried to load {args}")

    for cls in (transformers.AutoConfig, transformers.AutoModel, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(cls, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    assert estimate(published, sustained_flops=1e14).download_bytes == 4 * 315_438_720 + 2 * 8_030_261_248


def test_a_text_only_experiment_has_no_encoder(published):
    phases = [{"name": "text", "train": ["llm.lora"], "tasks": ["t"], "epochs": 1, "lr": 1e-4}]
    hparams = {**published, "encoder": None, "front_end": None, "phases": phases, "cache": "layers"}
    report = estimate(hparams, sustained_flops=1e14)
    assert [m.name for m in report.modules] == ["llm", "llm.lora"]
    assert report.cache_rate == {"off": 0.0} and cache_rates(None, None) == {"off": 0.0}


@pytest.mark.parametrize("key", ["llm", "phases", "corpus_hours", "num_train_records"])
def test_a_missing_key_is_named(published, key):
    with pytest.raises(ValueError, match=key):
        estimate({k: v for k, v in published.items() if k != key}, sustained_flops=1e14)


def test_errors_name_the_module_and_the_way_out(published):
    bare = {**published, "encoder": partial(SpeechEncoder, source="facebook/hubert-large-ll60k")}
    with pytest.raises(ValueError, match="encoder names the model.*hparams/backbones"):
        estimate(bare, sustained_flops=1e14)
    with pytest.raises(ValueError, match="!name:"):
        estimate({**published, "llm": build_meta("lmsys/vicuna-7b-v1.5")}, sustained_flops=1e14)
    with pytest.raises(ValueError, match="cache is 'some'; allowed: off, layers, weighted"):
        estimate({**published, "cache": "some"}, sustained_flops=1e14)
    with pytest.raises(ValueError, match="front_end.contents"):
        estimate(
            {**published, "phases": [{**PHASES[0], "train": ["front_end.contents"]}]}, sustained_flops=1e14
        )


def test_a_written_manifest_tells_the_size_of_the_corpus(published, tmp_path):
    records = {
        "a": {"wav": "a.wav", "duration": 1800.0},
        "b": {
            "wav": "b.wav",
            "duration": 1.0,
            "audios": [{"wav": "x", "duration": 600.0}, {"duration": 1200.0}],
        },
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(records))
    report = estimate({**published, "manifests": {"train": str(path)}}, sustained_flops=1e14)
    assert (report.num_records, report.audio_hours) == (2, 1.0)
    # The validation part counts for the cache, not for the steps.
    (tmp_path / "valid.json").write_text(json.dumps({"c": {"wav": "c.wav", "duration": 1800.0}}))
    both = {"train": str(path), "valid": str(tmp_path / "valid.json")}
    report = estimate({**published, "manifests": both}, sustained_flops=1e14)
    assert (report.num_records, report.audio_hours) == (2, 1.5)
    assert report.train_hours == pytest.approx(1.0)
    missing = {**published, "manifests": {"train": str(tmp_path / "not_yet.json")}}
    assert estimate(missing, sustained_flops=1e14).num_records == 4290


def test_limits_of_a_micro_batch_bound_the_memory(published):
    free = estimate(published, sustained_flops=1e14)
    bound = estimate({**published, "limits": {"max_positions": 512, "max_frames": 600}}, sustained_flops=1e14)
    assert bound.memory["encoder features"] == 600 * 25 * 1024 * 2 < free.memory["encoder features"]
    # Llama-3.1-8B keeps 32 * (6 * 4096 + 2 * 1024 + 3 * 14336) values of two bytes a position.
    kept = 2 * 32 * (6 * 4096 + 2 * 1024 + 3 * 14336)
    assert bound.memory["activations of the language model"] == 512 * kept


def test_hours_of_the_corpus_and_records_of_its_training_part(published):
    """IEMOCAP: 7 h are the 5531 utterances of all sessions, a fold trains on some 4290 of them."""
    report = estimate({**published, "num_corpus_records": 5531}, sustained_flops=1e14)
    assert report.train_hours == pytest.approx(7.0 * 4290 / 5531)
    assert report.cache_bytes("layers") == pytest.approx(64e9, rel=0.02)
    folds = estimate({**published, "folds": list("12345")}, sustained_flops=1e14)
    assert "one of 5 folds" in str(folds) and "folds" not in str(report)
