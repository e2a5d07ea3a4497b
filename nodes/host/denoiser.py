"""The backend of ComfyUI: a MODEL and a CLIP behind the core's Denoiser protocol."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import comfy.model_base
import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_management import get_free_memory, throw_exception_if_processing_interrupted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...esd_core.errors import ConfigError, ESDError
from ...esd_core.models.denoiser import Conditioning, Schedule
from ...esd_core.models.fragments import fragments
from ...esd_core.models.prediction import from_denoised
from ...esd_core.models.swap import Weight, hollowed, materialize, replaced, slots_of
from .model import architecture, context_width, prediction
from .session import compute_dtype, differentiable_attention
from .text import Texts

OnRows = Callable[[int, bool], None]
"""Called with the rows that go through the network, and whether they are trained on."""


class HostDenoiser:
    """Speaks for a MODEL that `session.borrowed` has opened.

    Only weights and model sampling are seen, not what acts on sampling alone (FreeU, PAG, and
    other patches of attention): those come back when the result is sampled.
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, texts: Texts) -> None:
        self.model, self.texts = model, texts
        self.architecture = architecture(model)
        self.device: torch.device = model.load_device
        self.compute_dtype = compute_dtype(model)
        self.prediction = prediction(model)
        self.on_rows: OnRows = lambda rows, is_trained: None
        self._take(model.model)

    def _take(self, inner: comfy.model_base.BaseModel) -> None:
        self._inner = inner
        self._teacher: dict[str, Tensor] = dict(inner.diffusion_model.named_parameters())
        self._slots = slots_of(inner.diffusion_model)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._teacher

    def swapped(self, tensors: Mapping[str, Weight]) -> AbstractContextManager[None]:
        # Layers that cast on the way look at their weights before they compute with them.
        is_casting = self.model.get_model_object("manual_cast_dtype") is not None
        given = {n: materialize(t) for n, t in tensors.items()} if is_casting else tensors
        return replaced(self._slots, given)

    @contextmanager
    def checkpointed(self, enabled: bool) -> Iterator[None]:
        """The host has no switch for it: blocks forget what they computed, one by one."""
        kinds = (ResBlock, BasicTransformerBlock)
        modules = self._inner.diffusion_model.modules()
        blocks = [block for block in modules if enabled and isinstance(block, kinds)]
        try:
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)  # the class's own shows again

    def free_memory(self) -> int:
        return int(get_free_memory(self.device)) - fragments(self.device)

    def hollow(self) -> HostDenoiser:
        inner = copy.copy(self._inner)
        # All of them: the noise levels lie on the device as the weights do.
        inner._modules = {name: hollowed(part) for name, part in inner._modules.items() if part}
        other = copy.copy(self)
        other._take(inner)
        return other

    @property
    def network(self) -> nn.Module:
        unet: nn.Module = self._inner.diffusion_model
        return unet

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        factor = self.architecture.latent_factor
        if width % factor or height % factor:
            raise ConfigError(
                f"width and height must be multiples of {factor}, not {width}x{height}"
            )
        return self.architecture.latent_channels, height // factor, width // factor

    def schedule(self, steps: int) -> Schedule:
        """Even steps through the training's noise levels, from below, as SDXL is published."""
        levels = self.model.model.model_sampling.sigmas.float().cpu()
        stride = len(levels) // steps
        if not stride:
            raise ConfigError(
                f"`trajectory.steps` must be at most {len(levels)}, the noise levels of the MODEL"
            )
        rows = 1 + stride * torch.arange(steps - 1, -1, -1)
        sigmas = torch.cat([levels[rows.clamp(max=len(levels) - 1)], torch.zeros(1)])
        return Schedule(sigmas, float((sigmas[0] ** 2 + 1).sqrt()))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        """`pooled` holds what the MODEL makes of pooled text and sizes together."""
        states, pooled = self.texts.rows(prompts)
        if states.shape[-1] != context_width(self.model):
            raise ESDError(
                f"the CLIP gives text of width {states.shape[-1]}, and the MODEL takes "
                f"{context_width(self.model)}: connect the CLIP of the same checkpoint"
            )
        vector = None
        if self.architecture.takes_sizes:
            vector = self.model.model.encode_adm(
                pooled_output=pooled, width=width, height=height, device=self.device
            ).to(self.device)
        return Conditioning(states.to(self.device), vector)

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        throw_exception_if_processing_interrupted()
        self.on_rows(len(x), torch.is_grad_enabled())
        vector: dict[str, Any] = {}
        if conditioning.pooled is not None:
            vector = {"y": conditioning.pooled}
        denoised = self._inner.apply_model(
            x,
            sigma,
            c_crossattn=conditioning.context,
            transformer_options={"optimized_attention_override": differentiable_attention},
            **vector,
        )
        return from_denoised(denoised, x, sigma)
