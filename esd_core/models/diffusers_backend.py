"""The UNets of diffusers behind the Denoiser protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from .architectures import like
from .denoiser import Conditioning, Schedule
from .headless import Headless
from .keys import diffusers_to_canonical
from .latents import Latents
from .prediction import prediction
from .swap import Weight, replaced, slots_of
from .texts import sdxl_texts


class DiffusersDenoiser(Headless):
    """A Stable Diffusion 1.x, 2.x or XL pipeline, of eps- or v-prediction."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline, unet = pipeline, pipeline.unet
        is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
        self.architecture = like(unet.config.cross_attention_dim, is_xl)
        self.prediction = prediction(pipeline.scheduler.config.prediction_type)
        latents = Latents(pipeline.vae, unet.config.in_channels, is_upcast=is_xl)
        super().__init__(unet, latents, pipeline.scheduler)
        scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        alphas = scheduler.alphas_cumprod.double()
        self._train_sigmas = ((1 - alphas) / alphas) ** 0.5

    def _take(self, network: UNet2DConditionModel) -> None:
        self.network = network
        slots, names = slots_of(network), diffusers_to_canonical(network.config)
        self._slots = {canonical: slots[name] for name, canonical in names.items()}
        self._teacher: dict[str, Tensor] = {
            name: module.get_parameter(leaf) for name, (module, leaf) in self._slots.items()
        }

    def parameters(self) -> Mapping[str, Tensor]:
        return self._teacher

    def swapped(self, tensors: Mapping[str, Weight]) -> AbstractContextManager[None]:
        return replaced(self._slots, tensors)

    def schedule(self, steps: int, width: int, height: int) -> Schedule:
        scheduler = EulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)
        return Schedule(scheduler.sigmas.float(), float(scheduler.init_noise_sigma))

    def _encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        if not self.architecture.takes_sizes:
            context, _ = self.pipeline.encode_prompt(
                list(prompts), self.device, 1, do_classifier_free_guidance=False
            )
            return Conditioning(context)
        sizes = [height, width, 0, 0, height, width]
        time_ids = torch.tensor([sizes] * len(prompts), device=self.device, dtype=torch.float32)
        return replace(sdxl_texts(self.pipeline, prompts), time_ids=time_ids)

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        scale = (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
        added: dict[str, Any] = {}
        if conditioning.pooled is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        raw: Tensor = self.network(
            (x / scale).to(self.compute_dtype),
            self._timesteps(sigma),
            conditioning.context,
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()
        return self.prediction.direction(raw, x, sigma)

    def _timesteps(self, sigma: Tensor) -> Tensor:
        """Undoes the interpolation by which the Euler scheduler turns timesteps into sigmas."""
        known = self._train_sigmas
        levels = sigma.detach().cpu().double().clamp(known[0], known[-1])
        upper = torch.searchsorted(known, levels).clamp(min=1)
        share = (levels - known[upper - 1]) / (known[upper] - known[upper - 1])
        return (upper - 1 + share).to(sigma.device, torch.float32)
