"""SDXL's UNet in its full size with random weights: what memory and time depend on.

No pictures come of it, and no text encoder is needed: a prompt is a row of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from esd_core.config.mappings import override
from esd_core.config.presets import load_preset
from esd_core.config.settings import ErasureConfig
from esd_core.models.denoiser import Conditioning
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.models.swap import materialize
from esd_core.pocket.models import build_scheduler, build_unet, build_vae

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = dict(build_unet().config)
"""Pocket's, to try a benchmark on."""


class RandomDenoiser(DiffusersDenoiser):
    """Prompts are rows of noise, the same for the same prompt."""

    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        config = self.network.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        rows = [_row(prompt, 77 * config.cross_attention_dim + pooled) for prompt in prompts]
        context, vector = (
            torch.stack(rows)
            .to(self.compute_dtype)
            .split([77 * config.cross_attention_dim, pooled], 1)
        )
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(prompts))
        encoded = Conditioning(context.unflatten(1, (77, -1)), vector, sizes.float())
        return encoded.map(lambda part: part.to(self.device))


def _row(prompt: str, length: int) -> Tensor:
    seed = int.from_bytes(prompt.encode()[:7], "big")
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


def config(**settings: Any) -> ErasureConfig:
    """The defaults on SDXL, with esd-x-strict at 256x256; other settings by dotted name."""
    own = {"concepts": ["Van Gogh"], "method": "esd-x-strict", "width": 256, "height": 256}
    return ErasureConfig.from_mapping(override({**load_preset("official-sdxl"), **own}, settings))


def denoiser(
    dtype: torch.dtype, sizes: dict[str, Any] = SDXL, device: str = "cpu"
) -> RandomDenoiser:
    """A model of these sizes, in `dtype`; on the CPU 16 bits compute as `in_float` says."""
    unet = random_unet(dtype, sizes).to(device)
    if dtype != torch.float32 and device == "cpu":
        in_float(unet)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return RandomDenoiser(
        StableDiffusionXLPipeline(
            **parts,
            vae=build_vae(),  # for the size of latents alone
            unet=unet,
            scheduler=build_scheduler(),
            add_watermarker=False,
        )
    )


def random_unet(dtype: torch.dtype, sizes: dict[str, Any] = SDXL) -> UNet2DConditionModel:
    """Frozen, and made in `dtype` at once: at no time is there more than its own weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sizes)
    unet = unet.to(dtype).to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for module in unet.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:  # keeps the size of what goes through
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return unet


# -- 16 bits on a CPU ------------------------------------------------------------------------


_PART = 1 << 22
"""Weights that are in float32 at a time: 16 MB, beside which what is kept in 16 bits counts."""


def in_float(unet: nn.Module) -> None:
    """Layers multiply in float32, a part of a layer at a time; all that is kept stays in 16 bits.

    A CPU without instructions for 16 bits takes 25 times as long with them. What a graph saves is
    what it saves on an accelerator, so that the peak of memory is that of computing in 16 bits.
    """
    for module in unet.modules():
        if isinstance(module, nn.Linear):
            module.forward = _linear.__get__(module)
        elif isinstance(module, nn.Conv2d):
            module.forward = _convolution.__get__(module)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    result: Tensor = _InFloat.apply(
        F.linear, {}, x, materialize(module.weight), materialize(module.bias)
    )
    return result


def _convolution(module: nn.Conv2d, x: Tensor) -> Tensor:
    how = {"stride": module.stride, "padding": module.padding}
    result: Tensor = _InFloat.apply(
        F.conv2d, how, x, materialize(module.weight), materialize(module.bias)
    )
    return result


class _InFloat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Any, how: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.layer, ctx.how, ctx.has_bias = layer, how, bias is not None
        ctx.save_for_backward(
            x if ctx.needs_input_grad[3] else None, weight if ctx.needs_input_grad[2] else None
        )
        ctx.shapes, ctx.rows = (x.shape, weight.shape), max(1, _PART // weight[0].numel())
        ctx.channel = 1 if layer is F.conv2d else x.dim() - 1
        outside, weights = x.float(), weight.split(ctx.rows)
        biases = [None] * len(weights) if bias is None else bias.float().split(ctx.rows)
        parts = (
            layer(outside, part.float(), own, **how).to(x.dtype)
            for part, own in zip(weights, biases, strict=True)
        )
        return torch.cat(list(parts), ctx.channel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs, grads = ctx.needs_input_grad, grad.split(ctx.rows, ctx.channel)
        to_x = to_weight = to_bias = None
        if needs[2]:
            weights = zip(weight.split(ctx.rows), grads, strict=True)
            to_x = sum(_of_input(ctx, w.float(), part.float()) for w, part in weights)
            to_x = to_x.to(grad.dtype)
        if needs[3]:
            outside = x.float()
            rows = [_of_weight(ctx, outside, part.float()).to(grad.dtype) for part in grads]
            to_weight = torch.cat(rows)
        if ctx.has_bias and needs[4]:
            to_bias = grad.float().transpose(0, ctx.channel).flatten(1).sum(1).to(grad.dtype)
        return None, None, to_x, to_weight, to_bias


def _of_input(ctx: Any, weight: Tensor, grad: Tensor) -> Tensor:
    if ctx.layer is F.linear:
        return grad @ weight
    return torch.nn.grad.conv2d_input(ctx.shapes[0], weight, grad, **ctx.how)


def _of_weight(ctx: Any, x: Tensor, grad: Tensor) -> Tensor:
    if ctx.layer is F.linear:
        return grad.flatten(0, -2).T @ x.flatten(0, -2)
    shape = (grad.shape[1], *ctx.shapes[1][1:])
    return torch.nn.grad.conv2d_weight(x, shape, grad, **ctx.how)
