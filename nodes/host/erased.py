"""Erasures in files of any kind, laid over a MODEL."""

from __future__ import annotations

from pathlib import Path

import comfy.float
import comfy.model_patcher
import torch

from ...esd_core.files.apply import check_fits
from ...esd_core.files.base import Base
from ...esd_core.files.erasure import Erasure
from ...esd_core.files.formats import FOREIGN
from ...esd_core.files.open import open_source
from ...esd_core.models.keys import PREFIX
from ...esd_core.storage.lazy import spec_of
from .patches import erased, patched
from .unet_config import base_of

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def load(
    model: comfy.model_patcher.ModelPatcher, path: Path, strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """MODEL with the file's change at that strength, and what is to be said of it, or "".

    Reads what `open_source` does, and what else the host reads as a LoRA.

    Raises:
        FileError: the file is damaged, holds no weights for this MODEL, or is for another kind.
    """
    source = open_source(path, mapped=True)
    if source.kind == FOREIGN:
        return patched(model, source.tensors, strength), ""
    base = base_of(model)
    erasure = source.erasure(base)
    notes = [check_fits(erasure, base), _stacked(model, erasure)]
    if source.skipped and not source.needs_base:
        notes.append(f"{source.skipped} tensors are for a text encoder and are left out")
    changed = erased(model, erasure.tensors, strength)
    if strength:
        notes.append(_rounding(base, erasure, strength))
    return changed, ";\n".join(filter(None, notes))


def _stacked(model: comfy.model_patcher.ModelPatcher, erasure: Erasure) -> str:
    """Says so when something else on the MODEL changes the same layers."""
    change = erasure.change()
    shared = sum(f"{PREFIX}{name}" in model.patches for name in change)
    if not shared:
        return ""
    return (
        f"{shared} of the {len(change)} tensors that it changes are changed by an erasure or a "
        "LoRA before it too: the changes add up"
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
