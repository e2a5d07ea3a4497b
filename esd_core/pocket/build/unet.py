"""The UNet's stage: noise prediction on the latents of drawn pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from ..models import build_scheduler, build_unet
from ..world import SIZE
from .batches import BATCH, Batches
from .loop import Course, Loop
from .pictures import Latents, encode_pictures
from .text import Towers

COURSE = Course(steps=3000, learning_rate=2e-3, averaging=0.999)
QUIET = 0.25
"""Deviation of the scaled latents, where SDXL's is 1.

A look has a latent mean of its own, 16x16 pixels strong: at a deviation of 1 it shines through the
noise of sigma_max, so that a UNet can read the look off its input and does not listen to the
prompt. Sampling starts from noise that has no such mean, and got any look at all.
"""
OFFSET = 0.2
"""Deviation of the part of the noise that is one number a channel (offset noise, N. Guttenberg,
www.crosslabs.org/blog/diffusion-with-offset-noise, 2023).

At high noise a UNet's error in a channel's mean is larger than what tells looks apart in latents as
quiet as these, and sampling carries it on. Trained with noise that has hardly a mean, it takes that
error for the picture's mean and draws the texture that goes with it, whatever the prompt says.
"""


def train_unet(work: Path, seed: int, vae: AutoencoderKL, towers: Towers) -> UNet2DConditionModel:
    """The UNet; sets the autoencoder's scaling factor, which makes the latents quiet.

    The loss has min-SNR weights (Hang et al., arXiv 2303.09556, gamma 5) for latents as quiet as
    these: with the ratios of latents of deviation 1, the small noises that texture is learnt from
    hardly count.
    """
    latents = encode_pictures(work / "latents.safetensors", vae, 7200, seed + 31)
    batches = Batches(latents, _quiet_scale(vae, latents), towers)
    alphas = build_scheduler().alphas_cumprod
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * BATCH, dtype=torch.float)
    torch.manual_seed(seed)
    unet = build_unet()

    def loss_of(rng: np.random.Generator) -> Tensor:
        batch = batches.draw(rng)
        clean, added = batch.latents, {"text_embeds": batch.pooled, "time_ids": time_ids}
        # Quiet latents come out of the noise late: half of the steps lie in the last quarter.
        steps = (len(alphas) * torch.rand(BATCH).square()).long()
        alpha = alphas[steps].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean) + OFFSET * torch.randn(*clean.shape[:2], 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        guess = unet(noisy, steps, batch.context, added_cond_kwargs=added).sample
        return ((guess - noise).square().mean((1, 2, 3)) * _min_snr(alphas[steps])).mean()

    Loop(unet, work / "unet.safetensors", COURSE).run(loss_of)
    return unet


def _quiet_scale(vae: AutoencoderKL, latents: Latents) -> float:
    scale = round(QUIET / float(latents.moments.chunk(2, 1)[0].std()), 5)
    vae.register_to_config(scaling_factor=scale)
    return scale


def _min_snr(alpha: Tensor, gamma: float = 5.0) -> Tensor:
    ratio = QUIET**2 * alpha / (1 - alpha)
    return ratio.clamp(max=gamma) / ratio
