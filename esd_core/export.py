"""Erasures written in the forms that other programs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .erasure import SAVE_DTYPES, Erasure, write_erasure
from .formats.base import Base
from .formats.diffusers import plain_config, write_official, write_unet_folder
from .formats.header import Spec
from .formats.lazy import LazyTensors, spec_of
from .formats.lora import ALPHA, low_rank
from .formats.safetensors_file import write_safetensors
from .formats.unet import CONFIG, write_unet

ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL = "erasure", "lora", "unet", "diffusers", "official"
FORMS = (ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL)


@dataclass(frozen=True)
class Options:
    """How an erasure is written.

    Attributes:
        strength: how much of the change.
        dtype: of SAVE_DTYPES.
        rank: of a LoRA's layers; 0 for what `energy` needs.
        energy: the part of ||dW||^2 that every layer of a LoRA keeps at least.
        force: overwrite.
    """

    strength: float = 1.0
    dtype: str = "fp16"
    rank: int = 0
    energy: float = 0.99
    force: bool = False


def export(form: str, path: Path, erasure: Erasure, base: Base, options: Options) -> str:
    """Writes base and change, or the change alone, in a form of FORMS; what is to be told of it.

    Raises:
        FileError: the erasure does not fit the base, or `path` cannot be written.
    """
    delta = erasure.delta(base.weights, options.strength)
    metadata = _provenance(erasure, options.strength)
    dtype, force = SAVE_DTYPES[options.dtype], options.force
    if form == ERASURE:
        write_erasure(path, _scaled(erasure, options.strength, dtype), force)
    elif form == LORA:
        return write_lora(path, delta, base, metadata, options)
    elif form == UNET:
        metadata[CONFIG] = json.dumps(plain_config(base.config), sort_keys=True)
        write_unet(path, base.weights, delta, dtype, metadata, base.marks, force)
    elif form == DIFFUSERS:
        write_unet_folder(path, base.config, base.weights, delta, dtype, force)
    else:
        write_official(path, base.config, base.weights, delta, dtype, force, metadata)
    return ""


def write_lora(
    path: Path,
    delta: Mapping[str, Tensor],
    base: Base,
    metadata: Mapping[str, str],
    options: Options,
) -> str:
    """Writes the change at low rank in kohya's names; what part of it that keeps, in words."""
    low = low_rank(delta, base.config, options.rank, options.energy, SAVE_DTYPES[options.dtype])
    ranks = sorted(low.ranks.values())
    most = str(ranks[-1] if ranks else 0)
    kept = {name: round(part, 5) for name, part in low.layers.items()}
    own = {
        "esd.lora_kept": f"{low.kept:.5f}",
        "esd.lora_kept_by_layer": json.dumps(kept, sort_keys=True),
        "ss_network_module": "networks.lora",
        "ss_network_dim": most,
        "ss_network_alpha": most,
    }
    write_safetensors(path, low.tensors, {**metadata, **own}, options.force)
    return _told(low.kept, low.layers, ranks)


def _told(kept: float, layers: Mapping[str, float], ranks: list[int]) -> str:
    lines = [f"kept {kept:.1%} of ||dW|| in {len(ranks)} layers"]
    if ranks:
        lines[0] += f" of rank {ranks[0]} to {ranks[-1]}"
    without = [name for name, part in layers.items() if part == 0]
    if without:
        lines.append(f"left out {len(without)} biases and norms, which LoRAs have no place for")
    some = {name: part for name, part in layers.items() if part > 0}
    if some:
        worst = min(some, key=some.__getitem__)
        lines.append(f"least of all {some[worst]:.1%} of {worst}")
    return "\n".join(lines)


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
        is_factor = key.endswith((".lora_up.weight", ".lora_down.weight"))
        return (own[key].float() * (1.0 if is_factor else strength)).to(specs[key].dtype)

    return replace(erasure, tensors=LazyTensors(specs, tensor))


def _provenance(erasure: Erasure, strength: float) -> dict[str, str]:
    """What the erasure says of itself, but that it is one."""
    kept = ("esd.", "modelspec.", "ss_base", "trained_words", "ssmd_cover_images")
    own = {key: text for key, text in erasure.metadata.items() if key.startswith(kept)}
    own.pop("esd.format", None)
    return {"format": "pt", **own, "esd.strength": f"{strength:g}"}
