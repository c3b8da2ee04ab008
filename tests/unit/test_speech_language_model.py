"""The composite: what is frozen stays frozen, steps of one task move one branch, precision of the masters."""

import pytest
import tiny
import torch

from speechbrain_emo.brains.speech_language_model import AudioBatch, MicroBatch


@pytest.fixture
def system(tmp_path):
    return tiny.build_tiny_system(tmp_path)


def micro_batch(system, task="label", seeds=(1, 2)):
    wave = torch.stack([torch.from_numpy(tiny.voiced_tone(0.5, f0)) for f0 in (150.0, 220.0)])
    lengths = torch.tensor([wave.shape[1]] * 2)
    front = system.model.front_end
    frames = system.model.encoder.num_frames(wave.shape[1])
    slots = [{k: front.num_positions(k, frames) for k in front.slot_kinds}]
    emotion = system.answer_format.labels[0]
    rows = []
    for i in range(2):
        record = {"id": str(i), "emotion": emotion, "transcript": "good day"}
        example = system.tasks[task].build(record, prompt_number=0)
        rows.append(system.packer.encode(example, slots))
    kinds = tuple(sorted({k for r in rows for k, *_ in r.slots}))
    audio = AudioBatch(lengths, waveforms=wave, noise_seeds=seeds)
    return MicroBatch(system.packer.collate(rows), audio, kinds, 2 * frames, (task,) * 2)


def loss(system, micro):
    terms = system.model(micro)
    return terms.answer + 1e-3 * sum(terms.kl.values())


def test_only_the_named_groups_get_gradients_and_move(system):
    model = system.model
    model.set_trainable(["front_end.descriptor", "llm.lora"])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    loss(system, micro_batch(system)).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(".descriptor." in n or "lora_" in n for n in moved)
    assert any(".descriptor." in n for n in moved) and any("lora_" in n for n in moved)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in moved and not p.requires_grad)


def test_frozen_modules_stay_in_eval_mode(system):
    model = system.model
    model.set_trainable(["front_end.descriptor"])
    model.train()
    assert model.front_end.branches["descriptor"].training
    frozen = [model.front_end.branches["content"], model.encoder, model.llm]
    assert not any(m.training for module in frozen for m in module.modules())
    model.eval()
    assert not any(m.training for m in model.modules())


def test_z_is_sampled_where_the_branch_trains_and_mu_elsewhere(system):
    model = system.model
    model.set_trainable(["front_end.descriptor"])
    model.train()
    both = [model(micro_batch(system, seeds=s)).answer.item() for s in ((1, 2), (3, 4), (1, 2))]
    assert both[0] == both[2] != both[1]
    # The transcript task uses the content branch alone, which is frozen here.
    content = [model(micro_batch(system, "asr", s)).answer.item() for s in ((1, 2), (3, 4))]
    assert content[0] == content[1]
    model.eval()
    assert len({model(micro_batch(system, seeds=s)).answer.item() for s in ((1, 2), (3, 4))}) == 1


def test_every_trainable_weight_takes_part_in_every_backward(system):
    """What a micro-batch has no use for gets a zero gradient, so that any number of processes agrees."""
    system.model.set_trainable(["front_end.content", "front_end.descriptor"])
    system.model.train()
    system.model(micro_batch(system, "asr")).answer.backward()
    descriptor = [p.grad for n, p in system.model.named_parameters() if ".descriptor." in n]
    assert all(g is not None and not g.any() for g in descriptor)


def test_small_steps_change_the_masters_of_a_bfloat16_run(system):
    model = system.model
    model.set_trainable(["front_end.descriptor", "llm.lora"])
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=5e-6, weight_decay=0.0
    )
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(system, micro_batch(system))
    value.backward()
    optimizer.step()
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in after)
    with_gradient = [(a, b) for a, b in zip(before, after) if b.grad is not None and b.grad.abs().max() > 0]
    assert all(not torch.equal(a, b) for a, b in with_gradient) and len(with_gradient) > 5


def test_unknown_group_is_refused(system):
    with pytest.raises(ValueError, match="unknown groups"):
        system.model.set_trainable(["front_end.linguistic"])


def test_waveforms_without_an_encoder_are_refused(system):
    micro = micro_batch(system)
    system.model.encoder = None
    with pytest.raises(ValueError, match="no encoder"):
        system.model(micro)
