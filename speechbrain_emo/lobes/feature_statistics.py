"""Standardise frozen encoder features, by frame and by utterance, with statistics of the training set.

Dimensions of self-supervised features differ in spread by orders of magnitude, and the spread between utterances,
which carries voice and emotion, is a fraction of the spread between frames. Without this, a few hundred optimiser
steps are spent on scale alone (recipes/EmoDB/RESULTS.md has the comparison).

Axes: N audios, T encoder frames, L encoder layers, D feature size.
"""

import torch
from torch import nn

FLOOR = 1e-5


def utterance_statistics(values, mask):
    """Mean and deviation of each feature over the valid frames of an utterance.

    Arguments
    ---------
    values : torch.Tensor
        Float, shape (N, T, ..., D). Padding may hold any finite value.
    mask : torch.Tensor
        Bool, shape (N, T), at least one True in a row.

    Returns
    -------
    torch.Tensor
        Float, shape (N, ..., 2 D): means, then square roots of the biased variance plus 1e-5.

    Example
    -------
    >>> utterance_statistics(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.0000, 1.0000]])
    """
    weight = mask.reshape(*mask.shape, *[1] * (values.dim() - 2)).to(values.dtype)
    count = weight.sum(1)
    # Zero times what stands at padding would be NaN for an infinity there.
    values = values.masked_fill(weight == 0, 0.0)
    mean = values.sum(1) / count
    variance = ((values - mean[:, None]).square() * weight).sum(1) / count
    return torch.cat((mean, (variance + FLOOR).sqrt()), -1)


class FeatureStatistics(nn.Module):
    """Means and deviations of features over frames, and of utterance statistics over utterances.

    The buffers travel with the checkpoint and the exported model. They start at mean 0 and deviation 1.

    Arguments
    ---------
    num_layers : int
        L.
    size : int
        D.

    Example
    -------
    >>> statistics = FeatureStatistics(num_layers=1, size=2)
    >>> statistics.fit([torch.tensor([[[0.0, 1.0]], [[2.0, 5.0]]]), torch.tensor([[[1.0, 3.0]]])])
    >>> statistics.frames(torch.tensor([[[[1.0, 3.0]]]])).tolist()
    [[[[0.0, 0.0]]]]
    """

    def __init__(self, num_layers, size):
        super().__init__()
        self.register_buffer("frame_mean", torch.zeros(num_layers, size))
        self.register_buffer("frame_deviation", torch.ones(num_layers, size))
        self.register_buffer("utterance_mean", torch.zeros(num_layers, 2 * size))
        self.register_buffer("utterance_deviation", torch.ones(num_layers, 2 * size))

    @torch.no_grad()
    def fit(self, utterances):
        """Measure; float64 sums in the order given, so that the result does not depend on batches.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            Features of one utterance each, float, shape (T, L, D).

        Raises
        ------
        ValueError
            If there is no utterance.
        """
        frames = utterance = None
        for features in utterances:
            values = features.detach().double().cpu()
            rows = torch.stack((torch.full_like(values[0], len(values)), values.sum(0), values.square().sum(0)))
            frames = rows if frames is None else frames + rows
            own = utterance_statistics(values[None], torch.ones(1, len(values), dtype=torch.bool))[0]
            rows = torch.stack((torch.ones_like(own), own, own.square()))
            utterance = rows if utterance is None else utterance + rows
        if frames is None:
            raise ValueError("no utterance was given to measure the features' statistics on")
        for name, (count, total, squares) in (("frame", frames), ("utterance", utterance)):
            mean = total / count
            deviation = (squares / count - mean.square()).clamp_min(0.0).sqrt()
            getattr(self, f"{name}_mean").copy_(mean)
            # A feature that never changes stays zero.
            getattr(self, f"{name}_deviation").copy_(torch.where(deviation > FLOOR, deviation, 1.0))

    def frames(self, features):
        """Standardised features, (N, T, L, D) -> the same shape."""
        return (features - self.frame_mean) / self.frame_deviation

    def utterance(self, features, mask):
        """Standardised statistics of each utterance: raw features (N, T, L, D), mask (N, T) -> (N, L, 2 D)."""
        return (utterance_statistics(features, mask) - self.utterance_mean) / self.utterance_deviation
