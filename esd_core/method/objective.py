"""Guidance and the regression loss, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import reduce
from torch import Tensor

from ..models.prediction import Prediction

Weigh = Callable[[float], float]
"""From a noise level to what a squared error of the direction counts there."""


def v_weight(prediction: Prediction, sigmas: Tensor) -> Weigh:
    """That of an error of v (sigma^2 + 1 of eps) or of a flow's velocity, with mean 1 over these
    levels.

    Plain squared error of eps spends itself on low noise, where texture is, and hardly touches the
    levels at which an object is decided (min-SNR weighting, Hang et al. 2023, is the same thought).
    """
    weights = torch.tensor([prediction.v_weight(s) for s in sigmas.tolist()], dtype=torch.float64)
    mean = float(weights.mean())
    return lambda sigma: prediction.v_weight(sigma) / mean


def guided(conditional: Tensor, empty: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): 1 is the conditional prediction itself."""
    return empty + guidance * (conditional - empty)


def regression_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared error over a batch.

    Args:
        prediction, target: [B, C, h, w].
        weight: [B]; every sample's own mean error is multiplied by it.
    """
    squares = (prediction.float() - target.float()).square()
    return (reduce(squares, "b ... -> b", "mean") * weight).mean()
