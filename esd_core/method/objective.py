"""The objective of Erased Stable Diffusion as pure functions of tensors.

Gandikota et al., Erasing Concepts from Diffusion Models, arXiv 2303.07345, equation 7, with the
anchor in the place of the empty prompt where one is named.
"""

from __future__ import annotations

from torch import Tensor


def erasure_target(
    anchor: Tensor, concept: Tensor, empty: Tensor, negative_guidance: float
) -> Tensor:
    """What the student should predict for the concept.

        target = eps*(anchor) - eta * [eps*(concept) - eps*(empty)]

    The coefficients 1, -eta and +eta sum to 1, so the same formula holds for predictions in eps,
    v or flow form: at fixed (x, sigma) those are affine in each other.

    Args:
        anchor, concept, empty: the teacher's predictions at one (x, sigma), of one shape.
        negative_guidance: eta in the paper's convention: how far beyond the anchor. Where that
            holds the concept itself, as in `hat <- cowboy`, it is eta + 1: the official scripts of
            2025 start from eps*(erase_from), so that their eta is 1 where ours is 0.
    """
    return anchor - negative_guidance * (concept - empty)


def guided(conditional: Tensor, empty: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): 1 is the conditional prediction itself."""
    return empty + guidance * (conditional - empty)


def regression_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared error over a batch.

    Args:
        prediction, target: [B, C, h, w].
        weight: [B]; every sample's own mean error is multiplied by it.
    """
    per_sample = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return (per_sample * weight).mean()
