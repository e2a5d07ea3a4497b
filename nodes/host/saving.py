"""Whole models to disk, as they are sampled: with all that is patched into them."""

from __future__ import annotations

from pathlib import Path

import comfy.model_patcher
import torch
from torch import Tensor

from ...esd_core.formats.diffusers import write_unet_folder
from ...esd_core.formats.unet import write_unet
from . import folders
from .model import architecture, parameters, predicts_v
from .session import lent
from .unet_config import diffusers_config

DIFFUSERS = "diffusers"


def write_whole_unet(model: comfy.model_patcher.ModelPatcher, prefix: str) -> Path:
    """For UNETLoader; the path."""
    architecture(model)
    path = folders.next_file(folders.UNETS, prefix)
    with lent(model) as own:
        weights = parameters(own)
        write_unet(path, weights, {}, _dtype(weights), {"format": "pt"}, _marks(own))
    return path


def write_diffusers(model: comfy.model_patcher.ModelPatcher, prefix: str) -> Path:
    """A folder for UNet2DConditionModel.from_pretrained; its path."""
    architecture(model)
    path = folders.next_folder(DIFFUSERS, prefix)
    with lent(model) as own:
        weights = parameters(own)
        write_unet_folder(path, diffusers_config(own), weights, {}, _dtype(weights))
    return path


def _dtype(weights: dict[str, Tensor]) -> torch.dtype:
    """That of most weights."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def _marks(model: comfy.model_patcher.ModelPatcher) -> list[str]:
    """The host's signs for what a UNet's weights do not show."""
    if not predicts_v(model) or architecture(model) != "sdxl":
        return []
    is_zero = getattr(model.model.model_sampling, "zsnr", False)
    return ["v_pred", "ztsnr"] if is_zero else ["v_pred"]
