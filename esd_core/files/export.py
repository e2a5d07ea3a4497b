"""Erasures written in the forms that other programs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..storage.lazy import LazyTensors, Spec, spec_of
from .base import Base
from .cover import COVERS
from .diffusers import plain_config, write_official, write_unet_folder
from .erasure import SAVE_DTYPES, Erasure, write_erasure
from .lora import ALPHA, DOWN, UP, low_rank, write_lora
from .unet import CONFIG, write_unet

ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL = "erasure", "lora", "unet", "diffusers", "official"


@dataclass(frozen=True)
class Options:
    """How an erasure is written.

    Attributes:
        strength: how much of the change.
        dtype: of SAVE_DTYPES.
        rank: of a LoRA's layers, at most; None for no bound.
        energy: the smallest rank of a LoRA's layer that keeps this share of its squared norm.
        force: overwrite.
    """

    strength: float = 1.0
    dtype: str = "fp16"
    rank: int | None = None
    energy: float | None = None
    force: bool = False


def export(form: str, path: Path, erasure: Erasure, base: Base, options: Options) -> str:
    """Writes base and change, or the change alone, in a form named above; what is to be told.

    Raises:
        FileError: the erasure does not fit the base, or `path` cannot be written.
    """
    delta = erasure.delta(base.weights, options.strength)
    metadata = _provenance(erasure, options.strength)
    if form != LORA:  # it calls the file a LoRA
        metadata = {key: text for key, text in metadata.items() if not key.startswith("modelspec.")}
    dtype, force = SAVE_DTYPES[options.dtype], options.force
    if form == ERASURE:
        write_erasure(path, _scaled(erasure, options.strength, dtype), force)
    elif form == LORA:
        lora = low_rank(delta, options.rank, options.energy)
        write_lora(path, lora, base.architecture.name, metadata, dtype, force)
        return str(lora)
    elif form == UNET:
        metadata[CONFIG] = json.dumps(plain_config(base.config), sort_keys=True)
        write_unet(path, base.weights, delta, dtype, metadata, base.marks, force)
    elif form == DIFFUSERS:
        write_unet_folder(path, base.config, base.weights, delta, dtype, force)
    else:
        write_official(path, base.config, base.weights, delta, dtype, force, metadata)
    return ""


def official_name(metadata: Mapping[str, str]) -> str:
    """The name that the official code gives to the file of such an erasure."""
    try:
        anchors = dict(json.loads(metadata.get("esd.anchors", "{}")))
        words = {"": "erased"} if not anchors else {str(a): str(c) for c, a in anchors.items()}
    except (TypeError, ValueError):
        words = {"": "erased"}
    anchor, concept = next(iter(words.items()))
    method = metadata.get("esd.method", "esd").replace("-", "")
    parts = [re.sub(r"[^\w.-]", "_", word) for word in (concept, anchor or concept)]
    return f"esd-{parts[0]}-from-{parts[1]}-{method}.safetensors"


def _scaled(erasure: Erasure, strength: float, dtype: torch.dtype) -> Erasure:
    """The same change times strength; alpha carries it where it is of low rank."""
    own = erasure.tensors
    specs = {
        key: Spec(torch.float32 if key.endswith(ALPHA) else dtype, spec_of(own, key).shape)
        for key in own
    }

    def tensor(key: str) -> Tensor:
        is_factor = key.endswith((UP, DOWN))
        return (own[key].float() * (1.0 if is_factor else strength)).to(specs[key].dtype)

    return replace(erasure, tensors=LazyTensors(specs, tensor))


def _provenance(erasure: Erasure, strength: float) -> dict[str, str]:
    """What the erasure says of itself, but that it is one."""
    kept = ("esd.", "modelspec.", "ss_base", "trained_words", COVERS)
    own = {key: text for key, text in erasure.metadata.items() if key.startswith(kept)}
    own.pop("esd.format", None)
    return {"format": "pt", **own, "esd.strength": f"{strength:g}"}
