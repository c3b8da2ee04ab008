"""Weights and inputs that the README of the published layout defines (shared data, cosyvoice2_reference)."""

import zlib

import numpy as np
import torch

FOLDER = "cosyvoice2_reference"


def draw(name, shape):
    """Standard normal values that follow from a name, float32."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def weight(name, shape):
    """The reference weight of a tensor."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("original0"):
        values = (1.0 if name.startswith("f0_predictor") else 0.6) * (1 + 0.02 * values)
    elif len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("bias"):
        values = 0.02 * values
    else:
        values = 1 + 0.02 * values
    return torch.from_numpy(values.astype(np.float32))


def read_table(path):
    """Name -> shape of a published network."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return {row[0]: tuple(int(n) for n in row[1].split("x")) for row in rows}


def with_reference_weights(module, table):
    """The module with the reference weights, in eval mode."""
    module.load_state_dict({name: weight(name, shape) for name, shape in table.items()}, strict=True)
    return module.eval()


def relative_error(value, reference):
    """Largest difference by the largest value of the reference."""
    assert value.shape == reference.shape, (value.shape, reference.shape)
    return float((value - reference).abs().max() / reference.abs().max())
