"""A MODEL as the core's files know it: diffusers' config, and the weights without any patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_base
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...esd_core.files.base import Base
from ...esd_core.models.keys import PREFIX
from ...esd_core.models.structure import unet_config
from .model import architecture, parameters


def base_of(model: ModelPatcher) -> Base:
    """What files are held against. Its weights are those that the loader has read, also while the
    host has patches worked into them."""
    kind = architecture(model)
    return Base(kind, diffusers_config(model), unpatched(model))


def unpatched(model: ModelPatcher) -> dict[str, Tensor]:
    """By canonical name. The host keeps aside what it works a patch into."""
    found = parameters(model)
    aside = {key: kept.weight for key, kept in model.backup.items()}
    aside |= {key: kept[0] for key, kept in model.hook_backup.items()}
    for key, weight in aside.items():
        name = key.removeprefix(PREFIX)
        if key != name and name in found:
            found[name] = weight
    return found


def diffusers_config(model: ModelPatcher) -> dict[str, Any]:
    """The config of the UNet2DConditionModel that has this MODEL's weights; {} of a transformer."""
    if not architecture(model).is_unet:
        return {}
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters(model).items()}
    config = unet_config(shapes)
    config["attention_head_dim"] = _heads(
        model.model.model_config.unet_config, config["block_out_channels"]
    )
    if isinstance(model.model, comfy.model_base.SDXL):
        config["addition_time_embed_dim"] = model.model.embedder.dim
    return config


def _heads(unet: Mapping[str, Any], channels: Sequence[int]) -> list[int]:
    """The number of heads a level, which diffusers has under the name of their width."""
    if unet.get("num_heads", -1) != -1:
        return [unet["num_heads"]] * len(channels)
    return [width // unet["num_head_channels"] for width in channels]
