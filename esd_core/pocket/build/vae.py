"""The autoencoder's stage, in two parts: first it learns to draw sharply, then to be calm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..models import LATENT_FACTOR, build_vae
from ..world import SIZE
from .loop import Course, Loop
from .pictures import Pictures, draw_pictures, to_model

SHARP = Course(steps=1500, learning_rate=1.5e-3, averaging=0.98)
CALM = Course(steps=600, learning_rate=7e-4, averaging=0.98)
_BATCH, _EDGE = 16, 64


def train_vae(work: Path, seed: int) -> AutoencoderKL:
    """The autoencoder; its scaling factor is the UNet's affair.

    With a light pull to the prior alone, textures hide in the last bits of two latent channels, and
    a UNet that is a little wrong draws none.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    pictures = draw_pictures(4320, seed=seed + 21)
    for name, course, pull in (("sharp", SHARP, 4e-4), ("calm", CALM, 1e-2)):

        def loss_of(rng: np.random.Generator, pull: float = pull) -> Tensor:
            return _loss(vae, _cuts(pictures, rng), pull)

        Loop(vae, work / f"vae-{name}.safetensors", course).run(loss_of)
    return vae


def _cuts(pictures: Pictures, rng: np.random.Generator) -> Tensor:
    """Squares of random pictures, at the places of latent pixels, in -1..1."""
    rows = rng.integers(0, len(pictures.pixels), _BATCH)
    corners = LATENT_FACTOR * rng.integers(0, (SIZE - _EDGE) // LATENT_FACTOR + 1, (_BATCH, 2))
    cuts = [
        pictures.pixels[row, :, y : y + _EDGE, x : x + _EDGE]
        for row, (y, x) in zip(rows, corners, strict=True)
    ]
    return to_model(torch.stack(cuts))


def _loss(vae: AutoencoderKL, batch: Tensor, pull: float) -> Tensor:
    """Errors of pixels and of their differences, and `pull` times the divergence a latent value."""
    posterior = vae.encode(batch).latent_dist
    error = vae.decode(posterior.sample()).sample - batch
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + error.square().mean() + 0.3 * edges + pull * divergence
