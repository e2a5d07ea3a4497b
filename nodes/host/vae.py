"""Pictures of latents, by the VAE that came with the MODEL."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...esd_core.errors import ESDError


def refuse_other(vae: Any, model: ModelPatcher) -> None:
    """ESDError for a VAE that decodes other latents than the MODEL has, or none."""
    if vae is None or getattr(vae, "first_stage_model", vae) is None:
        raise ESDError(
            "the input vae is empty, as of a checkpoint without one: load the VAE with VAELoader"
        )
    channels = model.get_model_object("latent_format").latent_channels
    own = getattr(vae, "latent_channels", channels)  # a pack's own kind need not tell
    if own != channels:
        raise ESDError(
            f"the input vae decodes latents of {own} channels, and the MODEL has {channels}: "
            "connect the VAE of the same checkpoint"
        )


def decode(vae: Any, latents: Tensor) -> Tensor:
    """IMAGE, [B, H, W, 3] in 0..1; of video models, whose VAEs give [B, frames, H, W, 3], the one
    frame that was drawn."""
    pictures = vae.decode(latents)
    return pictures[:, 0] if pictures.ndim == 5 else pictures
