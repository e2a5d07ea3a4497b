"""Erasures and erased models written in every format, for the commands and the nodes alike."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ESDError
from ..models.architectures import SD3
from ..models.transformer_keys import is_transformer
from ..storage.lazy import LazyTensors, Spec, renamed, spec_of, union
from .apply import summed
from .base import Base
from .diffusers import plain_config, write_official, write_unet_folder
from .erasure import Erasure
from .finite import to_write
from .formats import DIFFUSERS, ERASURE, FORMATS, LORA, OFFICIAL, UNET
from .lora import ALPHA, DOWN, UP, low_rank, write_lora
from .metadata import Key
from .native import write_erasure
from .parts import parts_of
from .unet import write_unet

_KEPT = ("esd.", "modelspec.", "ss_base", Key.WORDS, Key.COVERS)


def export(
    form: str,
    path: Path,
    erasure: Erasure,
    base: Base | None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
    rank: int | None = None,
    energy: float | None = None,
    force: bool = False,
) -> str:
    """Writes base and change, or the change alone; what there is to say of it, or "".

    Args:
        form: one of FORMATS that can be written.
        erasure: it fits the base.
        base: may be None for a format that holds no weights.
        strength: how much of the change. dtype: of what is written.
        rank: of a LoRA's layers, at most; None for no bound.
        energy: the smallest rank of a LoRA's layer that keeps this share of its squared norm.
        force: overwrite.

    Raises:
        FileError: `path` cannot be written, or a value would not be finite.
        ESDError: a transformer has no names in that format.
    """
    metadata = _metadata(form, erasure, strength)
    delta = erasure.delta(base.weights if base else erasure.change(), strength)
    if form == ERASURE:
        for name, tensor in delta.items():  # alpha may be finite where what it scales is not
            to_write(name, tensor)
        tensors = _scaled(erasure.tensors, strength, dtype)
        write_erasure(path, replace(erasure, tensors=tensors, metadata=metadata), force)
        return ""
    if form == LORA:
        architecture = base.architecture.name if base else erasure.architecture
        lora = low_rank(delta, rank, energy)
        parts = parts_of(base.config) if base and base.architecture is SD3 and base.config else {}
        write_lora(path, lora, architecture, metadata, dtype, force, parts)
        return str(lora)
    assert base
    if form in (DIFFUSERS, OFFICIAL) and not _is_named(base, form):
        raise ESDError(
            f"{FORMATS[form].title} cannot be written of {base.architecture.title}: take the "
            "format erasure, LoRA or UNet"
        )
    if form == UNET:
        if base.config:
            metadata[Key.UNET_CONFIG] = json.dumps(plain_config(base.config), sort_keys=True)
        write_unet(path, _whole(base, delta, dtype), metadata, base.prediction_markers, force)
    elif form == DIFFUSERS:
        write_unet_folder(path, base.config, _whole(base, delta, dtype), force)
    else:
        changed = renamed(base.weights, {name: name for name in delta})
        write_official(path, base.config, summed(changed, delta, dtype), metadata, force)
    return ""


def _is_named(base: Base, form: str) -> bool:
    """Whether it has names in that format: the official code reads no transformers here."""
    return bool(base.config) and (form == DIFFUSERS or not is_transformer(base.config))


def _whole(base: Base, delta: Mapping[str, Tensor], dtype: torch.dtype) -> LazyTensors:
    """All that a file of the erased model holds."""
    return union(summed(base.weights, delta, dtype), base.tables)


def official_name(metadata: Mapping[str, str]) -> str:
    """The name that the official code gives to the file of such an erasure."""
    try:
        anchors = dict(json.loads(metadata.get(Key.ANCHORS, "{}")))
        words = {"": "erased"} if not anchors else {str(a): str(c) for c, a in anchors.items()}
    except (TypeError, ValueError, RecursionError):
        words = {"": "erased"}
    anchor, concept = next(iter(words.items()))
    method = metadata.get(Key.METHOD, "esd").replace("-", "")
    parts = [re.sub(r"[^\w.-]", "_", word) for word in (concept, anchor or concept, method)]
    return f"esd-{parts[0]}-from-{parts[1]}-{parts[2]}.safetensors"


def _scaled(tensors: Mapping[str, Tensor], strength: float, dtype: torch.dtype) -> LazyTensors:
    """The same change times strength; alpha carries it where it is of low rank."""
    specs = {
        key: Spec(torch.float32 if key.endswith(ALPHA) else dtype, spec_of(tensors, key).shape)
        for key in tensors
    }

    def tensor(key: str) -> Tensor:
        share = 1.0 if key.endswith((UP, DOWN)) else strength
        return to_write(key, (tensors[key].float() * share).to(specs[key].dtype))

    return LazyTensors(specs, tensor)


def _metadata(form: str, erasure: Erasure, strength: float) -> dict[str, str]:
    """What the erasure says of itself, as far as it is true of a file in this format."""
    kept = {key: text for key, text in erasure.metadata.items() if key.startswith(_KEPT)}
    if form != ERASURE:
        kept.pop(Key.FORMAT, None)
    if form not in (ERASURE, LORA):  # modelspec.* calls the file a LoRA
        kept = {key: text for key, text in kept.items() if not key.startswith("modelspec.")}
    if strength != 1:
        kept[Key.STRENGTH] = f"{strength:g}"
    return {"format": "pt", **kept}
