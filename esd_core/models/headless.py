"""What all networks of diffusers have in common behind the Denoiser protocol."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor

from .denoiser import Conditioning, Rehearsable
from .fragments import fragments
from .latents import Latents
from .swap import hollowed

_ENCODED = 8
"""Prompts that are encoded side by side: a run with contexts has a hundred of them."""


class Headless(Rehearsable):
    """A model without a host: it draws pictures too.

    Attributes:
        network: a UNet or transformer of diffusers.
        latents: its autoencoder's.
        scheduler: of diffusers, whose config says what the network predicts, and where.
    """

    network: Any

    def __init__(self, network: Any, latents: Latents, scheduler: Any) -> None:
        self.latents, self.scheduler = latents, scheduler
        self.device, self.compute_dtype = network.device, network.dtype
        self._take(network.requires_grad_(False))

    @abstractmethod
    def _take(self, network: Any) -> None:
        """Sets `network`, and what follows from it."""

    @abstractmethod
    def _encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning: ...

    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        parts = [prompts[start : start + _ENCODED] for start in range(0, len(prompts), _ENCODED)]
        with torch.no_grad():
            return Conditioning.cat([self._encode(part, width, height) for part in parts])

    @contextmanager
    def checkpointed(self, enabled: bool) -> Iterator[None]:
        before = self.network.is_gradient_checkpointing
        switch = {
            True: self.network.enable_gradient_checkpointing,
            False: self.network.disable_gradient_checkpointing,
        }
        switch[enabled]()
        try:
            yield
        finally:
            switch[before]()

    def free_memory(self) -> int:
        if self.device.type == "cpu":
            return psutil.virtual_memory().available
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        memory = torch.get_device_module(self.device)
        held = memory.memory_reserved(self.device) - memory.memory_allocated(self.device)
        free: int = memory.mem_get_info(self.device)[0] + held
        return free - fragments(self.device)

    def hollow(self) -> Headless:
        other = copy.copy(self)
        other._take(hollowed(self.network))
        return other

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.latents.shape(width, height)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, float32 [B, 3, H, W] in 0..1 on the CPU, of latents in sigma space at 0."""
        return self.latents.decode(latents)

    @property
    def is_guided(self) -> bool:
        return bool(self.network.config.get("guidance_embeds"))

    def tables(self) -> dict[str, Tensor]:
        """What a file of the network holds beside its parameters, by canonical name."""
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """Of the network, with its class, as diffusers writes it."""
        return {**self.network.config, "_class_name": type(self.network).__name__}
