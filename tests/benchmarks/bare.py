"""A student's forward and backward in plain torch, beside which a training step is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from esd_core.training.trainer import Trainer


class Bare:
    """The UNet of diffusers with gradients switched on where a method trains; nothing else."""

    def __init__(self, trainer: Trainer) -> None:
        self.unet = trainer.denoiser.network  # type: ignore[attr-defined]  # of DiffusersDenoiser
        self.trainer = trainer
        slots = trainer.denoiser._slots  # type: ignore[attr-defined]
        self.trained = [
            module.get_parameter(leaf) for module, leaf in map(slots.get, trainer.student.masters)
        ]

    def step(self) -> None:
        batch = self.trainer.config.training.batch_size
        bank, config = self.trainer.rounds.bank, self.trainer.config
        shape = self.trainer.denoiser.latent_shape(config.width, config.height)
        x, target = torch.randn(2, batch, *shape, dtype=self.unet.dtype)
        rows = bank.conditioning.select([0] * batch)
        added = {"text_embeds": rows.pooled, "time_ids": rows.time_ids}
        for parameter in self.trained:
            parameter.requires_grad_(True)
        predicted: Tensor = self.unet(
            x, 500, rows.context, added_cond_kwargs=added, return_dict=False
        )[0]
        (predicted - target).square().mean().backward()
        for parameter in self.trained:
            parameter.grad = None
            parameter.requires_grad_(False)
