"""The latent side of a model of diffusers: its autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

DECODED = 4
"""Pictures that are decoded side by side."""


class Latents:
    """An autoencoder, and which latents of it a network takes.

    Attributes:
        factor: pixels a latent, along either edge.
    """

    def __init__(
        self, vae: Any, channels: int, patch: int = 1, most: int = 0, is_upcast: bool = False
    ) -> None:
        """
        Args:
            vae: an AutoencoderKL.
            channels: of its latents.
            patch: what the network takes together along either edge.
            most: how many patches an edge has at most; 0 for no bound.
            is_upcast: whether it decodes in float32, in the place of fp16, if its config asks for
                that. SDXL's own overflows, so that pictures are black; diffusers' pipelines of
                transformers do not ask.
        """
        self.vae, self._channels, self._patch, self._most = vae, channels, patch, most
        self._is_upcast = is_upcast
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of that many pixels."""
        pixels = self.factor * self._patch
        if width % pixels or height % pixels:
            raise ConfigError(
                f"width and height must be multiples of {pixels}, not {width}x{height}"
            )
        if self._most and max(width, height) > self._most * pixels:
            raise ConfigError(
                f"width and height must be at most {self._most * pixels}, not {width}x{height}"
            )
        return self._channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, float32 [B, 3, H, W] in 0..1 on the CPU, of latents without noise."""
        vae, before = self.vae, self.vae.dtype
        vae.to(self.dtype)
        try:
            scaled = latents / vae.config.scaling_factor
            if vae.config.get("shift_factor"):
                scaled = scaled + vae.config.shift_factor
            # A few at a time: an autoencoder's activations are large, and a CPU's caches are not.
            parts = [vae.decode(p).sample.float() for p in scaled.to(vae.dtype).split(DECODED)]
        finally:
            vae.to(before)
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1).cpu()

    @property
    def dtype(self) -> torch.dtype:
        """What the autoencoder decodes in."""
        own: torch.dtype = self.vae.dtype
        overflows = own == torch.float16 and self.vae.config.force_upcast
        return torch.float32 if overflows and self._is_upcast else own
