"""Erasures in files of any kind, laid over a MODEL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import comfy.float
import torch
from comfy.model_patcher import ModelPatcher

from ...esd_core.errors import counted
from ...esd_core.files.apply import check_fits
from ...esd_core.files.base import Base
from ...esd_core.files.erasure import Erasure
from ...esd_core.files.formats import FOREIGN
from ...esd_core.files.open import open_source
from ...esd_core.models.keys import PREFIX
from ...esd_core.storage.lazy import spec_of
from .patches import erased, patched
from .unet_config import base_of

_CHAIN = "esd_loaded"
"""Of the MODEL: what ESD Load Erased has laid over it, in order."""
_AGAIN = "{name} is erased by {below} already: choose strengths that come to about 1 together"
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Loaded:
    """A file laid over a MODEL.

    Attributes:
        erasure: the change alone, in memory; None for an adapter that only the host reads.
        told: what is to be said of it.
    """

    model: ModelPatcher
    erasure: Erasure | None
    told: str


@dataclass(frozen=True)
class _Layer:
    """What one node has laid over a MODEL."""

    file: str
    strength: float
    concepts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file} at {self.strength:g}"

    def erases(self, name: str) -> bool:
        """Case does not tell concepts apart: the text encoders lower it."""
        return name.casefold() in map(str.casefold, self.concepts)


def load(model: ModelPatcher, path: Path, strength: float) -> Loaded:
    """MODEL with the file's change at that strength.

    Reads what `open_source` does, and what else the host reads as a LoRA.

    Raises:
        FileError: the file is damaged, holds no weights for this MODEL, or is for another kind.
    """
    source = open_source(path, mapped=True)
    erasure, notes = None, list[str]()
    if source.kind == FOREIGN:
        changed = patched(model, source.tensors, strength)
    else:
        base = base_of(model)
        lazy = source.erasure(base)
        # Kept as it is now: the base that it may be a difference from gets patched later.
        erasure = replace(lazy, tensors=dict(lazy.tensors))
        notes = [check_fits(erasure, base), _stacked(model, erasure)]
        changed = erased(model, erasure.tensors, strength)
        notes.append(_rounding(base, erasure, strength))
    if source.skipped and not source.needs_base:
        notes.append(f"{counted(source.skipped, 'tensor')} for a text encoder left out")
    below: tuple[_Layer, ...] = model.get_attachment(_CHAIN) or ()
    layer = _Layer(path.name, strength, erasure.concepts if erasure else ())
    if strength:
        changed.set_attachments(_CHAIN, (*below, layer))
        notes = _again(below, layer) + notes
    told = f"applied {layer}" + (f", on top of {', '.join(map(str, below))}" if below else "")
    return Loaded(changed, erasure, ";\n".join(filter(None, (told, *notes))))


def _again(below: tuple[_Layer, ...], layer: _Layer) -> list[str]:
    """Says which concepts other files of the chain were made for too."""
    notes = []
    for name in layer.concepts:
        others = [str(before) for before in below if before.erases(name)]
        if others:
            notes.append(_AGAIN.format(name=name, below=", ".join(others)))
    return notes


def _stacked(model: ModelPatcher, erasure: Erasure) -> str:
    """Says so when something else on the MODEL changes the same layers."""
    change = erasure.change()
    shared = sum(f"{PREFIX}{name}" in model.patches for name in change)
    if not shared:
        return ""
    return (
        f"an erasure or a LoRA before it changes {shared} of its {counted(len(change), 'tensor')} "
        "too: the changes add up"
    )


@torch.no_grad()
def _rounding(base: Base, erasure: Erasure, strength: float) -> str:
    """Measures and says what is lost of the change where the MODEL's weights have eight bits."""
    delta, lost, whole = erasure.delta(base.weights, strength), 0.0, 0.0
    for name in delta:
        dtype = spec_of(base.weights, name).dtype
        if dtype not in _FP8:
            continue
        change = delta[name]
        wanted = base.weights[name].to("cpu", torch.float32) + change
        stored = comfy.float.stochastic_rounding(wanted, dtype, seed=0).float()
        lost += float((stored - wanted).square().sum())
        whole += float(change.square().sum())
    if not whole:
        return ""
    return (
        "the MODEL's weights are fp8, and rounding the erased ones to it moves them by "
        f"{(lost / whole) ** 0.5:.0%} of the change: load the model as fp16 or bf16 to have it "
        "whole"
    )
