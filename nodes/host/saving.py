"""Whole models to disk, as they are sampled: with all that is patched into them."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_patcher
import torch
from torch import Tensor

from ...esd_core.files.diffusers import write_unet_folder
from ...esd_core.files.erasure import SAVE_DTYPES, Erasure, check_fits
from ...esd_core.files.export import OFFICIAL, Options, export
from ...esd_core.files.unet import CONFIG, write_unet
from ...esd_core.models.prediction import Epsilon
from . import folders
from .model import architecture, parameters, prediction
from .session import borrowed
from .unet_config import base_of, diffusers_config

DIFFUSERS = "diffusers"


def write_whole_unet(model: comfy.model_patcher.ModelPatcher, prefix: str) -> Path:
    """For UNETLoader; the path."""
    architecture(model)
    path = folders.next_file(folders.UNETS, prefix)
    with borrowed(model) as own:
        weights = parameters(own)
        metadata = {"format": "pt", CONFIG: json.dumps(diffusers_config(own), sort_keys=True)}
        write_unet(path, weights, {}, _dtype(weights), metadata, _marks(own))
    return path


def write_diffusers(model: comfy.model_patcher.ModelPatcher, prefix: str) -> Path:
    """A folder for UNet2DConditionModel.from_pretrained; its path."""
    architecture(model)
    path = folders.next_folder(DIFFUSERS, prefix)
    with borrowed(model) as own:
        weights = parameters(own)
        write_unet_folder(path, diffusers_config(own), weights, {}, _dtype(weights))
    return path


def write_official_file(
    model: comfy.model_patcher.ModelPatcher, erasure: Erasure, prefix: str
) -> Path:
    """The erased weights for the official code: MODEL's own, without what is patched into them,
    and the erasure; below output/loras, where ESD Load Erased finds it again. The path."""
    base = base_of(model)
    check_fits(erasure, base)
    path = folders.next_file(folders.LORAS, prefix)
    names = {dtype: name for name, dtype in SAVE_DTYPES.items()}
    dtype = names.get(_dtype(dict(base.weights)), "fp16")
    export(OFFICIAL, path, erasure, base, Options(dtype=dtype))
    return path


def _dtype(weights: dict[str, Tensor]) -> torch.dtype:
    """That of most weights."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def _marks(model: comfy.model_patcher.ModelPatcher) -> list[str]:
    """The host's signs for what a UNet's weights do not show."""
    if isinstance(prediction(model), Epsilon) or not architecture(model).is_marked_v:
        return []
    is_zero = getattr(model.model.model_sampling, "zsnr", False)
    return ["v_pred", "ztsnr"] if is_zero else ["v_pred"]
