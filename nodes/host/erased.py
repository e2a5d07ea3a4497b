"""Files of erasures, laid over a MODEL."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import comfy.model_patcher
import comfy.utils
from torch import Tensor

from ...esd_core.erasure import FORMAT, Erasure, check_fits, read_erasure
from ...esd_core.errors import FileError
from ...esd_core.formats.header import read_header
from ...esd_core.formats.safetensors_file import iterate_tensors
from .model import PREFIX, architecture, parameters
from .patches import patched, with_prefix


def load(
    model: comfy.model_patcher.ModelPatcher, path: Path, strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """MODEL with the file's change at that strength, and a warning or "".

    Reads erasures of this pack, the official code's files (erased weights under diffusers' names),
    and what else the host reads as a LoRA.

    Raises:
        FileError: the file is damaged, holds no weights for this MODEL, or is for another kind.
    """
    header = read_header(path)
    if header.metadata.get("esd.format") == FORMAT:
        erasure = read_erasure(path)
        warning = check(model, erasure)
        return patched(model, with_prefix(erasure.tensors), strength), warning
    tensors = dict(iterate_tensors(path))
    official = _official(model, tensors)
    if official:
        return _moved_to(model, path, official, strength), ""
    return patched(model, tensors, strength), ""


def check(model: comfy.model_patcher.ModelPatcher, erasure: Erasure) -> str:
    """FileError for a MODEL that the erasure was not made for; a warning for other weights."""
    base = SimpleNamespace(architecture=architecture(model), parameters=lambda: parameters(model))
    return check_fits(erasure, base)  # all that it looks at


def _official(
    model: comfy.model_patcher.ModelPatcher, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Absolute weights by the MODEL's own keys, or nothing when the file holds something else."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    if not all(name in names for name in tensors):
        return {}
    return {f"{PREFIX}{names[name]}": tensor for name, tensor in tensors.items()}


def _moved_to(
    model: comfy.model_patcher.ModelPatcher,
    path: Path,
    weights: dict[str, Tensor],
    strength: float,
) -> comfy.model_patcher.ModelPatcher:
    """MODEL on its way to these weights: it keeps 1 - strength of its own."""
    own = {f"{PREFIX}{name}": tensor for name, tensor in parameters(model).items()}
    for key, tensor in weights.items():
        if key not in own or own[key].shape != tensor.shape:
            raise FileError(f"{path.name} was made for another model: {key} has no place in it")
    clone = model.clone()
    patches = {key: ("diff", (tensor,)) for key, tensor in weights.items()}
    clone.add_patches(patches, strength, 1 - strength)
    return clone
