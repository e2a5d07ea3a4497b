"""What a MODEL is, and whether it can be trained."""

from __future__ import annotations

import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...esd_core.errors import ESDError

PREFIX = "diffusion_model."
"""Of the UNet's parameters among those of a MODEL."""

_CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2"}
_LATENT_CHANNELS = 4
_SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale")


def architecture(model: comfy.model_patcher.ModelPatcher) -> str:
    """ "sdxl", "sd1" or "sd2"; ESDError for any other MODEL."""
    inner = model.model
    unet = getattr(inner, "diffusion_model", None)
    kind = type(inner).__name__
    if not isinstance(unet, UNetModel):
        raise ESDError(
            f"the MODEL is no UNet but {kind}: connect Stable Diffusion 1.x, 2.x or SDXL"
        )
    if unet.in_channels != _LATENT_CHANNELS:
        raise ESDError(
            f"the MODEL takes {unet.in_channels} channels, as inpainting models do: connect the "
            "text-to-image model that it was made from"
        )
    if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ESDError("the MODEL is sampled as a flow: connect one of eps- or v-prediction")
    if isinstance(inner, comfy.model_base.SDXL):
        return "sdxl"
    if type(inner) is comfy.model_base.BaseModel and context_width(model) in _CONTEXT_WIDTHS:
        return _CONTEXT_WIDTHS[context_width(model)]
    raise ESDError(f"the MODEL is {kind}: connect Stable Diffusion 1.x, 2.x or SDXL")


def context_width(model: comfy.model_patcher.ModelPatcher) -> int:
    """Of the text states that the UNet attends to."""
    width: int = model.model.model_config.unet_config["context_dim"]
    return width


def predicts_v(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether the UNet's output is v, and not eps."""
    sampling = model.get_model_object("model_sampling")
    return isinstance(sampling, comfy.model_sampling.V_PREDICTION)


def parameters(model: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
    """The UNet's tensors as they are now, by canonical name."""
    return dict(model.model.diffusion_model.named_parameters())


def refuse_quantised(model: comfy.model_patcher.ModelPatcher) -> None:
    """ESDError when weights are held in a form that gradients cannot reach."""
    for name, tensor in parameters(model).items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
        scaled = name.endswith(_SCALES)
        if not plain or scaled or not tensor.is_floating_point():
            raise ESDError(
                f"the MODEL's weights are quantised ({name}), and such weights cannot train: load "
                "the model's fp16 or bf16 file"
            )
