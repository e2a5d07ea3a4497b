"""Guidance and the regression loss, as pure functions of tensors."""

from __future__ import annotations

from einops import reduce
from torch import Tensor


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
