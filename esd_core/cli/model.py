"""The model that a command works on."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileError
from ..models.embedded import EMBEDDED, POCKET, WEIGHTS
from ..training.out_of_memory import oom_as_error
from .console import hush

if TYPE_CHECKING:
    from ..files.base import Base
    from ..models.headless import Headless

FORMS = (
    f"{', '.join(EMBEDDED)}, a diffusers folder, a .safetensors checkpoint or a hub id (owner/name)"
)

_LATENTS = 128
"""Along the edge of FLUX.1's pictures, whose config does not say it."""
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def add_arguments(parser: ArgumentParser, device: bool = True) -> None:
    """--model, and --device where it computes."""
    parser.add_argument("--model", metavar="MODEL", required=True, help=f"The base model: {FORMS}.")
    if device:
        add_device(parser)


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="Where to compute: cuda, cuda:1, mps, cpu (default: the first accelerator).",
    )


def load(model: str, precision: str = "auto", device: str | None = None) -> Headless:
    """The model, loaded quietly. Errors are those of `load_denoiser`, or say that none is there."""
    _check_model(model)
    hush()
    from ..models.loading import load_denoiser

    with memory_told():
        return load_denoiser(model, precision, device)


def load_artist(model: str, device: str | None = None) -> Headless:
    """The model for pictures that are only read."""
    hush()
    from ..models.loading import quick_precision

    return load(model, quick_precision(device), device)


def base(model: str) -> Base:
    """The model's UNet alone; tensors on this disk are read one at a time."""
    _check_model(model)
    hush()
    from ..files.base import Base, markers_of, open_base
    from ..models.loading import load_denoiser

    if model == POCKET or Path(model).exists():
        return open_base(WEIGHTS if model == POCKET else Path(model))
    with memory_told():  # in fp32, so that base and change are summed exactly and rounded once
        found = load_denoiser(model, "fp32", "cpu")
    markers = markers_of(found.scheduler.config)
    weights, tables = found.parameters(), found.tables()
    return Base(found.architecture, found.config, weights, markers, tables)


def _check_model(model: str) -> None:
    """FileError for a model that is neither a path that exists nor possibly a hub id."""
    is_local = not _HUB_ID.fullmatch(model) or model.endswith(".safetensors")
    is_local |= Path(model).is_symlink()
    if model not in EMBEDDED and is_local and not Path(model).exists():
        raise FileError(f"there is no model {model}: give {FORMS}")


def native_size(denoiser: Headless) -> int:
    """The edge, in pixels, of the pictures that the model was trained on."""
    size = denoiser.config.get("sample_size", _LATENTS)
    edge: int = size if isinstance(size, int) else max(size)
    return edge * denoiser.latents.factor


def memory_told() -> AbstractContextManager[None]:
    """Turns running out of memory into a sentence."""
    return oom_as_error("try a smaller size, fewer pictures side by side, or --precision bf16")
