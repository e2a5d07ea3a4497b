"""Transformers of diffusers, each as a function from noisy latents to their velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ESDError
from .architectures import FLUX, SD3, Architecture
from .denoiser import Conditioning

Velocity = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
"""Called with the network, latents [B, C, h, w] of its dtype, noise levels [B] and B rows."""
_PACKED = 2
"""Latents of FLUX that lie together in a token, along either edge."""


@dataclass(frozen=True)
class Transformer:
    """A kind of network.

    Attributes:
        velocity: what it predicts, [B, C, h, w].
        channels, patch: of the latents that it takes, and how many a token has along either edge;
            from its config.
        spaces_steps: whether a schedule is even steps from 1 on, as the pipeline gives them, or
            the scheduler's own.
    """

    architecture: Architecture
    velocity: Velocity
    channels: Callable[[Mapping[str, Any]], int]
    patch: Callable[[Mapping[str, Any]], int]
    spaces_steps: bool = False


def kind_of(network: Any) -> Transformer:
    """ESDError for a network that is none of these."""
    name = type(network).__name__
    if name not in TRANSFORMERS:
        raise ESDError(f"the model's network is a {name}, and cannot be erased from")
    return TRANSFORMERS[name]


def _sd3(network: Any, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    velocity: Tensor = network(
        x, conditioning.context, conditioning.pooled, _STEPS * sigma, return_dict=False
    )[0]
    return velocity


_STEPS = 1000
"""Of the training's noise levels: what SD3 calls level 1. FLUX multiplies by itself."""


def _flux(network: Any, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    height, width = (edge // _PACKED for edge in x.shape[-2:])
    packed = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=_PACKED, q=_PACKED)
    axes = (torch.arange(count, device=x.device) for count in (1, height, width))
    places = torch.cartesian_prod(*axes).to(torch.float32)
    velocity = network(
        packed,
        conditioning.context,
        conditioning.pooled,
        sigma,
        img_ids=places,
        txt_ids=torch.zeros(conditioning.context.shape[1], 3, device=x.device),
        guidance=conditioning.guidance,
        return_dict=False,
    )[0]
    unpacked = "b (h w) (c p q) -> b c (h p) (w q)"
    return rearrange(velocity, unpacked, h=height, w=width, p=_PACKED, q=_PACKED)


TRANSFORMERS = {
    "SD3Transformer2DModel": Transformer(
        SD3, _sd3, lambda config: config["in_channels"], lambda config: config["patch_size"]
    ),
    "FluxTransformer2DModel": Transformer(
        FLUX, _flux, lambda config: config["in_channels"] // _PACKED**2, lambda _: _PACKED, True
    ),
}
"""By diffusers' class."""
