"""The backend of ComfyUI: a MODEL and a CLIP behind the core's Denoiser protocol."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import comfy.model_base
import comfy.sampler_helpers
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_management import get_free_memory, throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ...esd_core.errors import ConfigError, ESDError
from ...esd_core.models.denoiser import TARGET_GUIDANCE, Conditioning, Schedule
from ...esd_core.models.fragments import fragments
from ...esd_core.models.prediction import from_denoised
from ...esd_core.models.swap import Weight, hollowed, materialize, replaced, slots_of
from .model import architecture, context_width, latent_shape, prediction, takes_guidance
from .session import compute_dtype, differentiable_attention
from .text import Texts, own

_STATES = "c_crossattn"
"""An argument of all networks: token states."""
_COUNTED = "num_tokens"
"""An argument of Lumina 2's network: how many tokens a prompt has, one number for all rows."""

_LAYERS = "encoder_hidden_states_llama3"
"""An argument of HiDream's network: the states of all of Llama's layers, [B, N, L, C]. They are as
many as a prompt has tokens, so they are the context here, [B, L, N * C]; what the network calls so,
T5's states, is as long for every prompt."""

OnRows = Callable[[int, bool], None]
"""Called with the rows that go through the network, and whether they are trained on."""


class HostDenoiser:
    """Speaks for a MODEL that `session.borrowed` has opened.

    Only weights and model sampling are seen, not what acts on sampling alone (FreeU, PAG, and
    other patches of attention): those come back when the result is sampled.
    """

    def __init__(self, model: ModelPatcher, texts: Texts) -> None:
        self.model, self.texts = model, texts
        self.architecture = architecture(model)
        self.device: torch.device = model.load_device
        self.compute_dtype = compute_dtype(model)
        self.prediction = prediction(model)
        self.on_rows: OnRows = lambda rows, is_trained: None
        self._take(model.model)

    def _take(self, inner: comfy.model_base.BaseModel) -> None:
        self._inner = inner
        self.network: nn.Module = inner.diffusion_model
        self._teacher: dict[str, Tensor] = dict(self.network.named_parameters())
        self._slots = slots_of(self.network)

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
        blocks = _blocks(self.network) if enabled else []
        try:
            for block in blocks:
                block.forward = partial(
                    checkpoint, block.forward, use_reentrant=False, context_fn=_recomputing
                )
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
    def is_guided(self) -> bool:
        return takes_guidance(self.model)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return latent_shape(self.model, width, height)

    def schedule(self, steps: int, width: int, height: int) -> Schedule:
        """For UNets even steps through the training's noise levels, from below, as SDXL is
        published; for flows the host's own of the name simple, from the first noise level on."""
        if not self.architecture.is_unet:
            return self._simple_schedule(steps)
        levels = self.model.model.model_sampling.sigmas.float().cpu()
        stride = len(levels) // steps
        if not stride:
            raise ConfigError(
                f"`trajectory.steps` must be at most {len(levels)}, the noise levels of the MODEL"
            )
        rows = 1 + stride * torch.arange(steps - 1, -1, -1)
        sigmas = torch.cat([levels[rows.clamp(max=len(levels) - 1)], torch.zeros(1)])
        return Schedule(sigmas, float((sigmas[0] ** 2 + 1).sqrt()))

    def _simple_schedule(self, steps: int) -> Schedule:
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps).float().cpu()
        one = torch.ones(1)
        start = sampling.noise_scaling(sigmas[0], one, torch.zeros(1), max_denoise=True)
        return Schedule(sigmas, float(start))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        """The host's whole condition of every prompt, as its samplers make it.

        `pooled` holds what the MODEL makes of pooled text, and of sizes.
        """
        conds = [self._conds(prompt, width, height) for prompt in prompts]
        states = [one[_STATES] for one in conds]
        if self.architecture.is_unet:
            # As the host does: attention to tokens that all come n times is the same.
            length = math.lcm(*(one.shape[1] for one in states))
            states = [one.repeat(1, length // one.shape[1], 1) for one in states]
        return Conditioning.cat(
            [self._row(state, cond) for state, cond in zip(states, conds, strict=True)]
        )

    def _conds(self, prompt: str, width: int, height: int) -> dict[str, Any]:
        """By the names of the network's arguments."""
        found = self.texts.condition(prompt)
        states = found.pop("cond")
        if context_width(self.model) not in (None, states.shape[-1]):
            raise ESDError(
                f"the CLIP gives text of width {states.shape[-1]}, and the MODEL takes "
                f"{context_width(self.model)}: connect the CLIP of the same checkpoint"
            )
        latent = torch.zeros(1, *self.latent_shape(width, height), device=self.device)
        with torch.inference_mode():  # in which some models prepare text beforehand
            asked = found | {"width": width, "height": height}
            cond = comfy.sampler_helpers.convert_cond([[states, asked]])
            make = self._inner.extra_conds
            made = comfy.samplers.encode_model_conds(make, cond, latent, self.device, "positive")
            conds = {n: one.process_cond(1, area=None) for n, one in made[0]["model_conds"].items()}
        if isinstance(self._inner, comfy.model_base.HiDream) and _LAYERS not in conds:
            raise ESDError(
                "the CLIP gives no text states of Llama, which the MODEL takes: load HiDream's "
                "text encoders with QuadrupleCLIPLoader"
            )
        return {name: own(one.cond) for name, one in conds.items() if one.cond is not None}

    def _row(self, states: Tensor, conds: Mapping[str, Any]) -> Conditioning:
        parts = {n: v for n, v in conds.items() if isinstance(v, Tensor) and n != _STATES}
        if _COUNTED in conds:
            parts[_COUNTED] = torch.tensor([conds[_COUNTED]])
        parts = {name: part.to(self.device) for name, part in parts.items()}
        guidance = None
        if self.is_guided:  # others may be told, and do not listen
            guidance = torch.full_like(parts.pop("guidance"), TARGET_GUIDANCE)
        if _LAYERS in parts:
            parts[_STATES] = states
            states = rearrange(parts.pop(_LAYERS), "b n l c -> b l (n c)")
        if not self.architecture.is_unet:  # whose states are many, and are cast on the way anyhow
            states = states.to(self.compute_dtype)
        pooled = parts.pop("y", None)
        return Conditioning(states.to(self.device), pooled, guidance=guidance, extra=parts)

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        throw_exception_if_processing_interrupted()
        self.on_rows(len(x), torch.is_grad_enabled())
        # The teacher, too, where another kernel would give other digits.
        is_needed = torch.is_grad_enabled() or isinstance(self.network, MiniTrainDIT)
        with Differentiable() if is_needed else nullcontext():
            if conditioning.lengths is None:
                denoised = self._denoised(x, sigma, conditioning)
            else:
                groups = conditioning.by_length()
                parts = [self._denoised(x[rows], sigma[rows], own) for rows, own in groups]
                order = torch.tensor([row for rows, _ in groups for row in rows]).argsort()
                denoised = torch.cat(parts)[order.to(x.device)]
        return from_denoised(denoised, x, sigma)

    def _denoised(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        given: dict[str, Any] = dict(conditioning.extra)
        if _COUNTED in given:
            given[_COUNTED] = conditioning.context.shape[1]
        if conditioning.pooled is not None:
            given["y"] = conditioning.pooled
        if conditioning.guidance is not None:
            given["guidance"] = conditioning.guidance
        if _STATES in given:
            width = given[_STATES].shape[-1]
            given[_LAYERS] = rearrange(conditioning.context, "b l (n c) -> b n l c", c=width)
        options = {"optimized_attention_override": differentiable_attention}
        given.setdefault(_STATES, conditioning.context)
        return self._inner.apply_model(x, sigma, transformer_options=options, **given)


class Differentiable(TorchFunctionMode):
    """Inside, the host's networks can go back.

    `x += y` makes a new tensor, as it must where backward needs the old one. The blocks of FLUX and
    its kin add to their inputs in place: plain backward raises, and recomputation from inputs that
    have been added to gives wrong gradients without a word. What is rebound, as by +=, is right
    either way; a bare `x.add_(y)` would be lost, and no model that can be trained here has one
    (tests/host/test_family_gradients.py compares predictions).

    Anima calls a kernel that has no gradient, without asking whether the host trains.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.add_ and _is_recorded(*args):
            func = Tensor.add
        if func is _RMS_ROPE:
            func = _rms_rope
        return func(*args, **(kwargs or {}))


_RMS_ROPE = getattr(torch.ops.comfy_kitchen, "rms_rope_split_half", None)
"""None on older hosts, whose networks do the same with torch alone."""


def _rms_rope(
    q: Tensor, k: Tensor, turns: Tensor, q_scale: Tensor, k_scale: Tensor, eps: float, *_: int
) -> tuple[Tensor, Tensor]:
    """Queries and keys, [..., D], by RMSNorm (Zhang and Sennrich 2019), then with element i and
    element i + D / 2 turned together (RoPE, Su et al. 2021).

    turns: [..., D / 2, 2, 2], a rotation a pair.
    """

    def turned(x: Tensor, scale: Tensor) -> Tensor:
        normed = F.rms_norm(x, x.shape[-1:], scale, eps).to(turns.dtype)
        first, second = (half.unsqueeze(-1) for half in normed.chunk(2, dim=-1))
        pairs = turns[..., 0] * first + turns[..., 1] * second
        return rearrange(pairs, "... d two -> ... (two d)").to(x.dtype)

    return turned(q, q_scale), turned(k, k_scale)


def _is_recorded(*values: Any) -> bool:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _recomputing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Around a block's pass, and around its recomputation, which may run in another thread."""
    return nullcontext(), Differentiable()


def _blocks(network: nn.Module) -> list[nn.Module]:
    """What is recomputed one by one: a UNet's inner blocks, or the items of a transformer's lists
    of blocks."""
    if isinstance(network, UNetModel):
        kinds = (ResBlock, BasicTransformerBlock)
        return [block for block in network.modules() if isinstance(block, kinds)]
    lists = [part for part in network.children() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part]
