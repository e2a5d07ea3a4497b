"""Whole models to disk, as they are sampled: with all that is patched into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor

from ...esd_core.formats.diffusers import write_unet_folder
from ...esd_core.formats.unet import write_unet
from . import folders
from .model import architecture, parameters
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
    sampling: Any = model.model.model_sampling
    is_v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
    marks = ["v_pred"] if is_v and architecture(model) == "sdxl" else []
    return [*marks, "ztsnr"] if marks and getattr(sampling, "zsnr", False) else marks
