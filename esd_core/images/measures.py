"""Measures of how far a picture is from another: RMSE and SSIM.

Pictures are floats in 0..1, [N, C, H, W]; a measure gives one value a picture.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

WINDOW, WINDOW_SIGMA = 11, 1.5
"""SSIM's Gaussian window: its edge and its deviation, in pixels."""

_C1, _C2 = 0.01**2, 0.03**2  # for pictures whose values span 1


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference over channels and pixels, [N]."""
    _check(a, b)
    return (a.float() - b.float()).square().flatten(1).mean(1).sqrt()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, [N]: 1 for equal pictures, near 0 for unrelated ones.

    Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment: From Error Visibility to
    Structural Similarity, IEEE Transactions on Image Processing 13(4), 2004, equation 13: the mean
    over all windows that lie inside the picture, here over the channels too.
    """
    _check(a, b)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of {WINDOW} pixels or more, not {tuple(a.shape)}")
    x, y = a.float(), b.float()
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variance_x = _local_mean(x * x) - mean_x * mean_x
    variance_y = _local_mean(y * y) - mean_y * mean_y
    covariance = _local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).flatten(1).mean(1)


def measures(original: Tensor, other: Tensor) -> dict[str, float]:
    """How far a picture [C, H, W] has moved from the original, by the name of the measure."""
    a, b = original[None], other[None]
    return {"rmse": round(float(rmse(a, b)), 5), "ssim": round(float(ssim(a, b)), 5)}


def _local_mean(x: Tensor) -> Tensor:
    """The mean under the window around every pixel that has a whole one."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = (-offsets.square() / (2 * WINDOW_SIGMA**2)).exp()
    weights = weights / weights.sum()
    down, right = weights.view(1, 1, -1, 1), weights.view(1, 1, 1, -1)  # a Gaussian is separable
    blurred = F.conv2d(F.conv2d(rearrange(x, "n c h w -> (n c) 1 h w"), down), right)
    return rearrange(blurred, "(n c) 1 h w -> n c h w", n=len(x))


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"pictures of {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
