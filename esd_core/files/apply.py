"""Erasures laid over weights: whether they fit, and their sum."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..models.architectures import Architecture, title
from ..models.denoiser import Denoiser
from ..storage.lazy import LazyTensors, Spec, spec_of
from .base import Base
from .erasure import Erasure
from .finite import to_write

# Samples of the same weights in another number format differ by less than this, relative.
_SAME_WEIGHTS = 0.01


def check_fits(erasure: Erasure, model: Denoiser | Base) -> str:
    """Refuses a base of another shape; returns a warning for one of other weights, or "".

    Raises:
        FileError: it says what was expected and what came.
    """
    check_architecture(erasure.name, erasure.architecture, model.architecture)
    base = model.parameters()
    for name, spec in erasure.change().specs.items():
        if name not in base:
            raise FileError(f"{erasure.name} changes {name}, which this model does not have")
        there, here = spec.shape, spec_of(base, name).shape
        if math.prod(there) != math.prod(here) or there[:1] != here[:1]:
            raise FileError(
                f"{erasure.name} was made for another model: {name} has the shape "
                f"{list(there)} there and {list(here)} here"
            )
    return _other_weights(erasure, base)


def check_architecture(name: str, made_for: str, model: Architecture) -> None:
    """FileError when the file `name` says that it was made for another architecture."""
    if made_for not in ("", model.name):
        raise FileError(
            f"{name} was made for {title(made_for)}, and this model is {model.title}: give the "
            "kind of model it was made for"
        )


def _other_weights(erasure: Erasure, base: Mapping[str, Tensor]) -> str:
    if not erasure.fingerprint:
        return ""
    before = torch.tensor(erasure.fingerprint)
    now = torch.tensor([float(v) for v in fingerprint(base).split()])
    if len(before) != len(now):
        return ""
    difference = float((now - before).norm() / before.norm())
    if difference <= _SAME_WEIGHTS:
        return ""
    return (
        f"{erasure.name} was made for other weights than this model's "
        f"(they differ by {difference:.0%} where compared): the erasure may be weaker"
    )


def applied(
    denoiser: Denoiser, erasures: Sequence[tuple[Erasure, float]]
) -> AbstractContextManager[None]:
    """Inside, the model computes with base + the sum of strength * change; they may overlap."""
    return denoiser.swapped(merged(denoiser, erasures))


@torch.no_grad()
def merged(denoiser: Denoiser, erasures: Sequence[tuple[Erasure, float]]) -> dict[str, Tensor]:
    """The changed tensors, summed in float32 and stored in the model's own dtype.

    Raises:
        FileError: an erasure does not fit the model.
    """
    base = denoiser.parameters()
    sums: dict[str, Tensor] = {}
    for erasure, strength in erasures:
        check_fits(erasure, denoiser)
        for name, change in erasure.change().items():
            start = sums.get(name, base[name].float())
            sums[name] = start + strength * change.to(start.device).view(start.shape)
    return {name: value.to(base[name].dtype) for name, value in sums.items()}


def summed(
    base: Mapping[str, Tensor], delta: Mapping[str, Tensor], dtype: torch.dtype
) -> LazyTensors:
    """base + delta on the CPU, summed in float32 and rounded once, each made when asked for.

    delta: as `Erasure.delta` makes it of that base.
    Raises FileError where a sum is not finite in that dtype.
    """
    specs = {name: Spec(dtype, spec_of(base, name).shape) for name in base}

    def tensor(name: str) -> Tensor:
        value = base[name].detach().to("cpu")
        if name in delta:
            value = value.to(torch.float32) + delta[name].detach().to("cpu", torch.float32)
        return to_write(name, value.to(dtype))

    return LazyTensors(specs, tensor)


def fingerprint(parameters: Mapping[str, Tensor]) -> str:
    """A few hundred weights, four digits each, that tell one base from another.

    Values, and not a hash of them, so that the same weights in another number format are known
    again and the distance to a fine-tune can be told.
    """
    shapes = {name: spec_of(parameters, name).shape for name in parameters}
    names = sorted(name for name, shape in shapes.items() if math.prod(shape) >= 4096)
    chosen = names[:: max(1, len(names) // 64)]
    rows: list[Any] = []
    for name in chosen:
        flat = parameters[name].detach().reshape(-1)
        rows += flat[:: len(flat) // 4][:4].float().tolist()
    return " ".join(f"{value:.4g}" for value in rows)
