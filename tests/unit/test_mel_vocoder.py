"""Vocoders of log-mel spectrograms: SpeechBrain's HiFi-GAN from a saved folder, random weights of the real class."""

import pytest
import torch
from speechbrain.lobes.models.HifiGAN import HifiganGenerator

from speechbrain_emo.lobes.mel_vocoder import HiFiGAN, MelSettings, make_vocoder

SETTINGS = MelSettings(16000, 256, 1024, 1024, 80, 0.0, 8000.0)
# Factors and kernels of the published models (hop 256); only the channels are fewer.
ARGUMENTS = {
    "in_channels": 80,
    "out_channels": 1,
    "resblock_type": "1",
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "resblock_kernel_sizes": [3, 7, 11],
    "upsample_kernel_sizes": [16, 16, 4, 4],
    "upsample_initial_channel": 16,
    "upsample_factors": [8, 8, 2, 2],
    "inference_padding": 5,
    "cond_channels": 0,
    "conv_post_bias": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as SpeechBrain's recipe leaves it on the hub."""
    folder = tmp_path_factory.mktemp("hifigan")
    torch.manual_seed(0)
    torch.save(HifiganGenerator(**ARGUMENTS).state_dict(), folder / "generator.ckpt")
    lines = ["generator: !new:speechbrain.lobes.models.HifiGAN.HifiganGenerator"]
    lines += [f"    {k}: {v!r}" for k, v in ARGUMENTS.items()]
    lines += ["modules:", "    generator: !ref <generator>"]
    lines += ["pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer", "    loadables:"]
    lines += ["        generator: !ref <generator>"]
    (folder / "hyperparams.yaml").write_text("\n".join(lines) + "\n")
    return folder


def test_a_saved_hifigan_loads_and_vocodes(folder):
    vocoder = make_vocoder("hifigan", SETTINGS, str(folder))
    mel, _ = SETTINGS.analyse(torch.sin(torch.arange(8000) * 0.1))
    samples = vocoder(mel)
    assert samples.shape == (len(mel) * 256,) and samples.dtype == torch.float32
    assert vocoder.sample_rate == 16000 and float(samples.abs().max()) <= 1.0
    # What the generator itself makes of the frames, its repeated edges cut off.
    generator = HifiganGenerator(**ARGUMENTS)
    generator.load_state_dict(torch.load(folder / "generator.ckpt", weights_only=True))
    generator.remove_weight_norm()
    padded = torch.nn.functional.pad(mel.T[None], (5, 5), "replicate")
    with torch.no_grad():
        wanted = generator(padded)[0, 0, 5 * 256 : -5 * 256]
    assert torch.allclose(samples, wanted, atol=1e-6)


def test_spectrograms_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="256 samples a frame.*hop of 200"):
        HiFiGAN(MelSettings(16000, 200, 800, 1024, 80, 0.0, 8000.0), str(folder))
    with pytest.raises(ValueError, match="does not take 40 mel bands"):
        HiFiGAN(MelSettings(16000, 256, 1024, 1024, 40, 0.0, 8000.0), str(folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent is no folder of a HiFi-GAN"):
        make_vocoder("hifigan", SETTINGS, str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="allowed: griffin_lim, source_filter, hifigan"):
        make_vocoder("wavenet", SETTINGS)
