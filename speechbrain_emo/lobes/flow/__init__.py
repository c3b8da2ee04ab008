"""Flow matching from speech tokens to mel spectrograms, to the names and shapes of CosyVoice2's weights."""

from speechbrain_emo.lobes.flow.encoder import UpsamplingConformer
from speechbrain_emo.lobes.flow.estimator import CausalUNet
from speechbrain_emo.lobes.flow.matching import FlowDraws, FlowMatching
from speechbrain_emo.lobes.flow.model import FlowStream, MelBatch, TokenToMel, load_flow, tiny_flow

__all__ = [
    "CausalUNet",
    "FlowDraws",
    "FlowMatching",
    "FlowStream",
    "MelBatch",
    "TokenToMel",
    "UpsamplingConformer",
    "load_flow",
    "tiny_flow",
]
