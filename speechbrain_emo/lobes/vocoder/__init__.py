"""Mel spectrograms to waveforms: HiFT with the names of CosyVoice2's weights, its training and Griffin-Lim."""

from speechbrain_emo.lobes.vocoder.generator import HiFT
from speechbrain_emo.lobes.vocoder.source import F0Predictor, HarmonicSource
from speechbrain_emo.lobes.vocoder.stream import VocoderStream

__all__ = ["F0Predictor", "HarmonicSource", "HiFT", "VocoderStream"]
