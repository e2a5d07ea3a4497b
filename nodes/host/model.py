"""What a MODEL is, and whether it can be trained."""

from __future__ import annotations

import comfy.model_base
import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...esd_core.errors import ConfigError, ESDError, counted
from ...esd_core.models.architectures import SDXL, Architecture, by_host, like, trained_titles
from ...esd_core.models.prediction import Epsilon, Flow, Prediction, VPrediction
from ...esd_core.pocket import GUIDANCE
from . import pocket

_SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale")


def architecture(model: ModelPatcher) -> Architecture:
    """ESDError for a MODEL that cannot be trained."""
    inner = model.model
    is_unet = isinstance(getattr(inner, "diffusion_model", None), UNetModel)
    found = _unet(model) if is_unet else _transformer(model)
    if found is None:
        raise ESDError(f"the MODEL is {type(inner).__name__}: connect {trained_titles()}")
    form = _form(model)
    if form is None or (is_unet and isinstance(form, Flow)):
        what = "a flow" if form else "no eps, v or flow"
        raise ESDError(f"the MODEL is sampled as {what}: connect it without what changes that")
    return found


def _unet(model: ModelPatcher) -> Architecture | None:
    inner = model.model
    takes_sizes = isinstance(inner, comfy.model_base.SDXL)
    width = inner.model_config.unet_config["context_dim"]
    found = like(width, takes_sizes)
    _refuse_pictures(inner.diffusion_model.in_channels - found.latent_channels)
    is_plain = type(inner) is comfy.model_base.BaseModel
    is_known = is_plain and width == found.context_width
    return found if takes_sizes or is_known else None


def _transformer(model: ModelPatcher) -> Architecture | None:
    inner = model.model
    configs = [kind.__name__ for kind in type(inner.model_config).__mro__]
    found = by_host(configs, type(inner).__name__)
    if found:
        latent = torch.zeros(1, *latent_shape(model, 64, 64))
        beside = inner.concat_cond(noise=latent, device=latent.device)
        _refuse_pictures(0 if beside is None else beside.shape[1])
    return found


def _refuse_pictures(channels: int) -> None:
    """channels: what the MODEL takes beside a latent's."""
    if channels:
        raise ESDError(
            f"the MODEL takes {counted(channels, 'channel')} beside those of its latents, as "
            "inpainting models do: connect the text-to-image model that it was made from"
        )


_OLDER_RATIOS = {48: 16}
"""Pixels a latent by channels, other than 8, where the host does not tell: Wan 2.2 alone."""


def latent_shape(model: ModelPatcher, width: int, height: int) -> tuple[int, ...]:
    """(channels, height, width) of a picture's latents, or (channels, 1, height, width)."""
    form = model.get_model_object("latent_format")
    factor = getattr(form, "spacial_downscale_ratio", _OLDER_RATIOS.get(form.latent_channels, 8))
    if width % factor or height % factor:
        raise ConfigError(f"width and height must be multiples of {factor}, not {width}x{height}")
    frames = (1,) * (form.latent_dimensions - 2)
    return form.latent_channels, *frames, height // factor, width // factor


def preset(model: ModelPatcher, method: str) -> str:
    """The preset that serves this MODEL and method; ESDError for a MODEL that cannot be trained."""
    kind = architecture(model)
    return pocket.name_of(model) or kind.preset_for(method, takes_guidance(model))


def cfg(model: ModelPatcher) -> float:
    """What pictures of such a MODEL are drawn with; of those that cannot be trained, as SDXL's."""
    try:
        kind = architecture(model)
    except ESDError:
        return SDXL.cfg
    if takes_guidance(model):
        return 1.0
    return GUIDANCE if pocket.name_of(model) else kind.cfg


def takes_guidance(model: ModelPatcher) -> bool:
    """Whether guidance is an input of the network, as of distilled models."""
    return _GUIDANCE_INPUT in parameters(model)


_GUIDANCE_INPUT = "guidance_in.in_layer.weight"
"""By which the host tells it too."""


def context_width(model: ModelPatcher) -> int | None:
    """Of the text states that the network attends to; None where it does not tell."""
    inner = model.model
    if isinstance(inner.diffusion_model, UNetModel):
        return inner.model_config.unet_config["context_dim"]
    layer = architecture(model).text_input
    return inner.diffusion_model.get_submodule(layer).weight.shape[1] if layer else None


def prediction(model: ModelPatcher) -> Prediction:
    """The form of the network's output."""
    form = _form(model)
    assert form, "`architecture` refuses others"
    return form


def _form(model: ModelPatcher) -> Prediction | None:
    """None for one in which the direction is not what the network predicts."""
    sampling = model.get_model_object("model_sampling")
    return next((form for kind, form in _FORMS.items() if isinstance(sampling, kind)), None)


_KINDS = comfy.model_sampling
_FORMS: dict[type, Prediction | None] = {
    **{kind: None for kind in (_KINDS.IMG_TO_IMG, getattr(_KINDS, "IMG_TO_IMG_FLOW", ())) if kind},
    _KINDS.V_PREDICTION: VPrediction(),
    _KINDS.EPS: Epsilon(),
    _KINDS.CONST: Flow(),
}
"""By the host's classes, the nearest first."""


def parameters(model: ModelPatcher) -> dict[str, Tensor]:
    """The network's tensors as they are now, by canonical name."""
    return dict(model.model.diffusion_model.named_parameters())


def refuse_split(model: ModelPatcher) -> None:
    """ESDError for a MODEL with copies of itself on other GPUs, which would not learn with it."""
    if model.get_additional_models_with_key("multigpu"):
        raise ESDError(
            "the MODEL is split over several GPUs, and training would change it on one of them "
            "alone: connect it from before the node that splits it (MultiGPU CFG Split), and split "
            "what comes out"
        )


def refuse_quantised(model: ModelPatcher) -> None:
    """ESDError when weights are held in a form that gradients cannot reach."""
    for name, tensor in parameters(model).items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
        scaled = name.endswith(_SCALES)
        if not plain or scaled or not tensor.is_floating_point():
            raise ESDError(
                f"the MODEL's weights are quantised ({name}), and such weights cannot train: load "
                "the model's fp16 or bf16 file"
            )
