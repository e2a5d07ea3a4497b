"""Files of changes by any program: whose part is what, and of which module.

kohya's and LECO's LoRAs (`lora_unet_*`), LyCORIS' full differences, diffusers' and PEFT's LoRAs,
and ComfyUI's own LoraSave. Layouts: kohya-ss/sd-scripts `networks/lora.py`; LyCORIS
`modules/full.py`, `modules/norms.py`; ComfyUI `comfy/lora.py`.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..models.keys import PREFIX, diffusers_to_canonical
from ..models.parts import Part
from ..models.transformer_keys import is_transformer
from ..storage.lazy import LazyTensors, spec_of, union
from .finite import check_finite
from .lora import ALPHA, DOWN, UP

# What a tensor's name ends in -> what we call that part.
PARTS = {
    **{UP: UP, DOWN: DOWN, ALPHA: ALPHA, ".diff": ".diff", ".diff_b": ".diff_b"},
    **{".lora_B.weight": UP, ".lora_A.weight": DOWN},
    **{".lora.up.weight": UP, ".lora.down.weight": DOWN},
    **{"_lora.up.weight": UP, "_lora.down.weight": DOWN},
    **{".w_norm": ".diff", ".b_norm": ".diff_b"},
}
_FOREIGN = ("hada_", "lokr_", "oft_", "dora_scale", "lora_mid", "glora", ".a1.", "set_weight")
_TEXT = ("lora_te", "text_encoder", "te_", "clip_", "text_model")


def part_of(name: str) -> tuple[str, str] | None:
    """(module, part) of a tensor in a file of changes; None for one of another kind."""
    for end, part in PARTS.items():
        if name.endswith(end):
            return name.removesuffix(end), part
    return None


def foreign_part(names: Iterable[str]) -> str:
    """The first tensor that belongs to an adapter of another kind than LoRA, or ""."""
    return next((n for n in names if any(word in n for word in _FOREIGN)), "")


def is_of_text(name: str) -> bool:
    """Whether a tensor changes a text encoder."""
    return name.startswith(_TEXT)


def with_alphas(tensors: LazyTensors) -> LazyTensors:
    """Adds alphas, equal to the rank, where a program has written none: the scale is 1."""
    ranks = {
        name.removesuffix(DOWN) + ALPHA: torch.tensor(float(spec.shape[0]))
        for name, spec in tensors.specs.items()
        if name.endswith(DOWN) and spec.shape
    }
    missing = {alpha: rank for alpha, rank in ranks.items() if alpha not in tensors}
    return union(tensors, missing)


def modules(config: Mapping[str, Any], weights: Iterable[str]) -> dict[str, str]:
    """What files of changes call the modules of a model -> canonical module names.

    config: of its UNet2DConditionModel, or another; empty where there is none. weights: its
        canonical names.
    """
    found: dict[str, str] = {}
    if not config or is_transformer(config):
        for ours in (name.removesuffix(".weight") for name in weights if name.endswith(".weight")):
            found |= {f"{PREFIX}{ours}": ours, f"lora_unet_{ours.replace('.', '_')}": ours}
        return found
    for theirs, ours in diffusers_to_canonical(config).items():
        if not theirs.endswith(".weight"):
            continue
        theirs, ours = theirs.removesuffix(".weight"), ours.removesuffix(".weight")
        processor = theirs.replace(".to_", ".processor.to_").removesuffix(".0")
        found |= dict.fromkeys(
            (
                *(f"{PREFIX}{ours}", f"lora_unet_{ours.replace('.', '_')}"),
                *(f"{p}_{theirs.replace('.', '_')}" for p in ("lora_unet", "lycoris")),
                *(f"{p}{theirs}" for p in ("unet.", "base_model.model.", "")),
                *(f"{p}{processor}" for p in ("unet.", "")),
            ),
            ours,
        )
    return found


def parts_by_module(parts: Mapping[str, Part]) -> dict[str, str]:
    """What files of changes call the modules of diffusers' transformers -> diffusers' own names."""
    found: dict[str, str] = {}
    for own in (name for part in parts.values() for name in part.rows):
        module = own.rpartition(".")[0]
        plain = module.replace(".", "_")
        dotted = (f"{prefix}{module}" for prefix in ("transformer.", "base_model.model.", ""))
        found |= dict.fromkeys((*dotted, f"lora_transformer_{plain}", f"lycoris_{plain}"), module)
    return found


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """FileError for a change that is not finite, or low-rank halves that do not fit.

    One tensor at a time is in memory.
    """
    for key in tensors:
        stem = key.removesuffix(UP).removesuffix(DOWN).removesuffix(ALPHA)
        if stem != key and not _is_whole(tensors, stem):
            raise FileError(f"{path} is damaged: {key} lacks its other half, or does not fit it")
        tensor = tensors[key]
        # Some programs write alpha as a whole number.
        check_finite(path, key, tensor.float() if key.endswith(ALPHA) else tensor)


def _is_whole(tensors: Mapping[str, Tensor], stem: str) -> bool:
    """Whether a low-rank change has all its parts, in shapes that can be multiplied."""
    if not all(stem + part in tensors for part in (UP, DOWN, ALPHA)):
        return False
    up, down, alpha = (spec_of(tensors, stem + part).shape for part in (UP, DOWN, ALPHA))
    if min(len(up), len(down)) < 2:
        return False
    return math.prod(up[1:]) == down[0] > 0 and math.prod(alpha) == 1
