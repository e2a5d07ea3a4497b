"""What a MODEL is, and whether it can be trained."""

from __future__ import annotations

import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...esd_core.errors import ESDError
from ...esd_core.models.architectures import Architecture, like
from ...esd_core.models.prediction import Epsilon, Prediction, VPrediction
from ..defaults import POCKET
from .pocket import PocketSDXL

_SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale")


def architecture(model: comfy.model_patcher.ModelPatcher) -> Architecture:
    """ESDError for a MODEL that cannot be trained."""
    inner = model.model
    unet = getattr(inner, "diffusion_model", None)
    kind = type(inner).__name__
    if not isinstance(unet, UNetModel):
        raise ESDError(
            f"the MODEL is not a UNet but {kind}: connect Stable Diffusion 1.x, 2.x or SDXL"
        )
    takes_sizes = isinstance(inner, comfy.model_base.SDXL)
    found = like(context_width(model), takes_sizes)
    if unet.in_channels != found.latent_channels:
        raise ESDError(
            f"the MODEL takes {unet.in_channels} channels, as inpainting models do: connect the "
            "text-to-image model that it was made from"
        )
    if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ESDError("the MODEL is sampled as a flow: connect one of eps- or v-prediction")
    is_plain = type(inner) is comfy.model_base.BaseModel
    if takes_sizes or (is_plain and context_width(model) == found.context_width):
        return found
    raise ESDError(f"the MODEL is {kind}: connect Stable Diffusion 1.x, 2.x or SDXL")


def preset(model: comfy.model_patcher.ModelPatcher, method: str) -> str:
    """The preset that serves this MODEL and method; ESDError for a MODEL that cannot be trained."""
    kind = architecture(model)
    is_pocket = isinstance(model.model.model_config, PocketSDXL)
    return POCKET if is_pocket else kind.preset_for(method)


def context_width(model: comfy.model_patcher.ModelPatcher) -> int:
    """Of the text states that the UNet attends to."""
    width: int = model.model.model_config.unet_config["context_dim"]
    return width


def prediction(model: comfy.model_patcher.ModelPatcher) -> Prediction:
    """The form of the UNet's output."""
    sampling = model.get_model_object("model_sampling")
    is_v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
    return VPrediction() if is_v else Epsilon()


def parameters(model: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
    """The UNet's tensors as they are now, by canonical name."""
    return dict(model.model.diffusion_model.named_parameters())


def refuse_split(model: comfy.model_patcher.ModelPatcher) -> None:
    """ESDError for a MODEL with copies of itself on other GPUs, which would not learn with it."""
    if model.get_additional_models_with_key("multigpu"):
        raise ESDError(
            "the MODEL is split over several GPUs, and training would change it on one of them "
            "alone: connect it from before the node that splits it (MultiGPU CFG Split), and split "
            "what comes out"
        )


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
