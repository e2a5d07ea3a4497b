"""Erasures and whole models to disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import weight_dtype

from ...esd_core.errors import ConfigError
from ...esd_core.files.apply import check_fits
from ...esd_core.files.base import Base
from ...esd_core.files.erasure import Erasure
from ...esd_core.files.export import export
from ...esd_core.files.formats import ERASURE, FORMATS, Format
from ...esd_core.files.unet import MARKERS
from ...esd_core.models.prediction import Epsilon
from ...esd_core.storage.dtypes import PRECISIONS
from . import folders
from .model import architecture, prediction
from .session import borrowed
from .unet_config import base_of, diffusers_config


def save(
    form: str, prefix: str, erasure: Erasure | None, model: ModelPatcher | None, rank: int
) -> tuple[Path, str]:
    """Writes the inputs in a format; its path, and what else there is to say.

    A format of a whole model is written from MODEL with all that is patched into it; of an erasure
    it takes the metadata alone.

    Raises:
        ESDError: an input that the format needs is missing or does not fit.
    """
    kind = FORMATS[form]
    _refuse_missing(kind, erasure, model)
    path = folders.next_file(kind.folder, prefix)
    path = path.with_suffix("") if kind.is_folder else path
    written = erasure or Erasure({}, {})
    if not (kind.has_weights and model):
        dtype = weight_dtype(written.tensors) if form == ERASURE else torch.float16
        return path, export(form, path, written, None, dtype=dtype, rank=rank)
    with _base(model, kind) as base:
        dtype = weight_dtype(base.weights)
        if kind.is_whole:
            written = Erasure({}, written.metadata)
        else:
            check_fits(written, base)
            dtype = dtype if dtype in PRECISIONS.values() else torch.float16
        return path, export(form, path, written, base, dtype=dtype)


def _refuse_missing(kind: Format, erasure: Erasure | None, model: ModelPatcher | None) -> None:
    if erasure is None and not kind.is_whole:
        raise ConfigError(
            f"the format {kind.label} needs the input erasure: connect that output of ESD Train "
            "or ESD Load Erased, or choose the format UNet or diffusers for a MODEL"
        )
    if model is None and kind.has_weights:
        raise ConfigError(
            f"the format {kind.label} needs the input model: connect the erased MODEL of ESD Train "
            "or ESD Load Erased"
        )


@contextmanager
def _base(model: ModelPatcher, kind: Format) -> Iterator[Base]:
    """MODEL's own weights, or for a whole model those with all that is patched into them."""
    if not kind.is_whole:
        yield base_of(model)
        return
    known = architecture(model)
    with borrowed(model) as own:
        # Not its parameters alone: some have tables beside them.
        whole = own.model.diffusion_model.state_dict(keep_vars=True)
        yield Base(known, diffusers_config(own), whole, _markers(own))


def _markers(model: ModelPatcher) -> tuple[str, ...]:
    """By which the host will know the prediction form again."""
    if isinstance(prediction(model), Epsilon) or not architecture(model).is_marked_v:
        return ()
    is_zero = getattr(model.model.model_sampling, "zsnr", False)
    return MARKERS if is_zero else MARKERS[:1]
