"""The transformers of diffusers behind the Denoiser protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from .denoiser import TARGET_GUIDANCE, Conditioning, Schedule
from .headless import Headless
from .latents import Latents
from .prediction import Flow
from .swap import Weight, replaced, slots_of
from .texts import Texts, flux_texts, sd3_texts
from .transformer import kind_of
from .transformer_keys import POS_EMBED, transformer_parts


class TransformerDenoiser(Headless):
    """A text side, a transformer of SD3's or FLUX's kind that predicts velocities, and an
    autoencoder."""

    prediction = Flow()

    def __init__(self, network: Any, texts: Texts, vae: Any, scheduler: Any) -> None:
        """
        Args:
            network: a SD3Transformer2DModel or FluxTransformer2DModel.
            scheduler: a FlowMatchEulerDiscreteScheduler, or one with such a config.
        """
        self._kind, self._texts = kind_of(network), texts
        self.architecture = self._kind.architecture
        config = network.config
        channels, patch = self._kind.channels(config), self._kind.patch(config)
        most = config.get("pos_embed_max_size") or 0
        super().__init__(network, Latents(vae, channels, patch, most), scheduler)

    @classmethod
    def of(cls, pipeline: Any) -> TransformerDenoiser:
        """Of a StableDiffusion3Pipeline or a FluxPipeline."""
        texts = flux_texts if isinstance(pipeline, FluxPipeline) else sd3_texts
        return cls(pipeline.transformer, partial(texts, pipeline), pipeline.vae, pipeline.scheduler)

    def _take(self, network: Any) -> None:
        """What canonical names know as one tensor becomes one, whose rows are diffusers' parameters
        from then on: they are there once, and a student of the one is a student of all."""
        self.network, self._slots = network, slots_of(network)
        own = dict(network.named_parameters())
        self._parts = transformer_parts(self.config)
        self._teacher: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            whole = part.joined(own)
            self._teacher[name] = whole if part.is_same else _frozen(whole)
            if len(part.rows) > 1:
                for theirs, rows in part.cut(whole).items():
                    module, leaf = self._slots[theirs]
                    module._parameters[leaf] = own[theirs] = _frozen(rows)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._teacher

    def tables(self) -> dict[str, Tensor]:
        own = dict(self.network.named_buffers())
        return {POS_EMBED: own[_POSITIONS]} if _POSITIONS in own else {}

    def swapped(self, tensors: Mapping[str, Weight]) -> AbstractContextManager[None]:
        given: dict[str, Weight] = {}
        for name, weight in tensors.items():
            given |= self._parts[name].weights(weight)
        return replaced(self._slots, given)

    def schedule(self, steps: int, width: int, height: int) -> Schedule:
        """The pipeline's own: shifted once for all sizes, or by the size of the picture."""
        config = self.scheduler.config
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        given: dict[str, Any] = {}
        if self._kind.spaces_steps:
            given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        if scheduler.config.use_dynamic_shifting:
            given["mu"] = self._shift(scheduler.config, width, height)
        scheduler.set_timesteps(steps, **given)
        return Schedule(scheduler.sigmas.float(), 1.0)

    def _shift(self, config: Mapping[str, Any], width: int, height: int) -> float:
        _, rows, columns = self.latent_shape(width, height)
        tokens = rows * columns // self._kind.patch(self.network.config) ** 2
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return float(calculate_shift(tokens, *(config[name] for name in names)))

    def _encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        rows = self._texts(prompts).map(lambda part: part.to(self.device, self.compute_dtype))
        if not self.is_guided:
            return rows
        guidance = torch.full((len(prompts),), TARGET_GUIDANCE, device=self.device)
        return replace(rows, guidance=guidance)

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        noisy = x.to(self.compute_dtype)
        velocity = self._kind.velocity(self.network, noisy, sigma, conditioning)
        return self.prediction.direction(velocity.float(), x, sigma)


_POSITIONS = "pos_embed.pos_embed"


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
