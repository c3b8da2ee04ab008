"""Mel spectrograms to waveforms: HiFT with the names of CosyVoice2's weights, its training and Griffin-Lim."""

from speechbrain_emo.lobes.vocoder.generator import HiFT, load_vocoder
from speechbrain_emo.lobes.vocoder.griffin_lim import griffin_lim
from speechbrain_emo.lobes.vocoder.source import F0Predictor, HarmonicSource
from speechbrain_emo.lobes.vocoder.stream import VocoderStream

__all__ = ["F0Predictor", "HarmonicSource", "HiFT", "VocoderStream", "griffin_lim", "load_vocoder"]
