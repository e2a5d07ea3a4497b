"""The result: the change of the trained tensors, with its metadata.

The file is a LoRA file in ComfyUI's own layout (`diffusion_model.<path>.diff` for weights,
`.diff_b` for biases, or `.lora_up.weight`, `.lora_down.weight` and `.alpha`), so that stock loaders
apply it with a strength and nobody needs this code to use a result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.settings import ErasureConfig
from ..errors import ESDError, FileError
from ..method.probes import ProbeReport
from ..models.architectures import Architecture, title
from ..models.denoiser import Denoiser
from ..storage.lazy import LazyTensors, Spec, renamed, spec_of
from ..storage.reading import file_tensors, read_header
from ..storage.writing import write_safetensors
from ..training.student import LowRankStudent, Student
from .adapters import check_tensors, is_finite
from .lora import ALPHA as _ALPHA
from .lora import DOWN as _DOWN
from .lora import UP as _UP
from .metadata import describe

SAVE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

_PREFIX = "diffusion_model."
# Samples of the same weights in another number format differ by less than this, relative.
_SAME_WEIGHTS = 0.01


@dataclass(frozen=True)
class Erasure:
    """A change of weights and what is known of it.

    Attributes:
        tensors: as in the file, without the prefix.
        metadata: text by key, as in the file.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    path: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path else "the erasure"

    @property
    def architecture(self) -> str:
        return self.metadata.get("esd.base_architecture", "")

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(json.loads(self.metadata.get("esd.concepts", "[]")))

    @property
    def fingerprint(self) -> list[float]:
        """Of the base that it was made for; empty when that is not known."""
        return [float(v) for v in self.metadata.get("esd.base_fingerprint", "").split()]

    def change(self) -> LazyTensors:
        """float32 change by canonical name; low-rank ones are multiplied out.

        Made when asked for: one at a time is in memory where the tensors are lazy too.
        """
        specs: dict[str, Spec] = {}
        sources: dict[str, str] = {}
        for key in self.tensors:
            shape = spec_of(self.tensors, key).shape
            if key.endswith(_UP):
                stem = key.removesuffix(_UP)
                name, down = f"{stem}.weight", spec_of(self.tensors, stem + _DOWN).shape
                shape = (shape[0], *down[1:])
            elif key.endswith(".diff"):
                name = f"{key.removesuffix('.diff')}.weight"
            elif key.endswith(".diff_b"):
                name = f"{key.removesuffix('.diff_b')}.bias"
            else:
                continue
            specs[name], sources[name] = Spec(torch.float32, shape), key
        return LazyTensors(specs, lambda name: self._change_of(sources[name]))

    def _change_of(self, key: str) -> Tensor:
        value = self.tensors[key].float()
        if not key.endswith(_UP):
            return value
        stem = key.removesuffix(_UP)
        down = self.tensors[stem + _DOWN].float()
        product = (value.flatten(1) @ down.flatten(1)).view(len(value), *down.shape[1:])
        return float(self.tensors[stem + _ALPHA]) / len(down) * product

    def delta(self, base: Mapping[str, Tensor], strength: float = 1.0) -> LazyTensors:
        """strength * change, in the shapes of the base's tensors; it must fit them."""
        change = self.change()
        specs = {name: Spec(torch.float32, spec_of(base, name).shape) for name in change}
        return LazyTensors(specs, lambda n: strength * change[n].view(specs[n].shape))


# -- making and writing ------------------------------------------------------------------------


def make_erasure(
    student: Student,
    denoiser: Denoiser,
    config: ErasureConfig,
    steps: int,
    probes: ProbeReport | None,
) -> Erasure:
    """The student's change, in the config's save_dtype, with all metadata.

    Nothing in it tells of time or place: the same run makes the same bytes.

    Raises:
        ESDError: the change is not finite, in save_dtype at least.
    """
    dtype = SAVE_DTYPES[config.training.save_dtype]
    if isinstance(student, LowRankStudent):
        tensors = _low_rank_layout(student, denoiser, dtype)
    else:
        tensors = _full_layout(student, dtype)
    if not all(map(is_finite, tensors.values())):
        raise ESDError(
            "the trained change holds values that are not finite: lower training.learning_rate, "
            "or set training.save_dtype to fp32"
        )
    metadata = describe(denoiser, config, steps, probes)
    metadata["esd.base_fingerprint"] = fingerprint(denoiser.parameters())
    return Erasure(tensors, metadata)


def _full_layout(student: Student, dtype: torch.dtype) -> dict[str, Tensor]:
    suffixes = {"weight": "diff", "bias": "diff_b"}
    split = ((name.rpartition("."), value) for name, value in student.change(dtype).items())
    return {f"{path}.{suffixes[leaf]}": value for (path, _, leaf), value in split}


def _low_rank_layout(
    student: LowRankStudent, denoiser: Denoiser, dtype: torch.dtype
) -> dict[str, Tensor]:
    """LoRA's shapes: a convolution's down keeps its kernel, its up is 1x1."""
    base = denoiser.parameters()
    tensors = {}
    for key, master in student.masters.items():
        value = master.detach().cpu()
        stem, is_up = key.removesuffix(_UP).removesuffix(_DOWN), key.endswith(_UP)
        kernel = base[f"{stem}.weight"].shape[2:]
        if kernel:
            shape = (*value.shape, 1, 1) if is_up else (len(value), -1, *kernel)
            value = value.reshape(shape)
        tensors[key] = value.to(dtype).contiguous()
        if is_up:
            # The loaders divide alpha by the rows of down, which small layers have fewer of.
            tensors[stem + _ALPHA] = torch.tensor(student.alpha / student.rank * value.shape[1])
    return tensors


def write_erasure(path: Path, erasure: Erasure, force: bool = False) -> None:
    """Whole or not at all; FileError when the file exists (unless `force`) or cannot be written."""
    tensors = renamed(erasure.tensors, {f"{_PREFIX}{key}": key for key in erasure.tensors})
    write_safetensors(path, tensors, erasure.metadata, force)


# -- reading and applying ----------------------------------------------------------------------


def read_erasure(path: Path) -> Erasure:
    """FileError when the file is missing, damaged, no erasure, or holds numbers that are none."""
    header = read_header(path)
    foreign = [key for key in header.tensors if not _is_ours(key)]
    if foreign or not header.tensors:
        what = f'"{foreign[0]}"' if foreign else "no tensor"
        raise FileError(
            f"{path} is no erasure file (it holds {what}): give one that `esd erase` wrote"
        )
    stored = file_tensors(header)
    tensors = renamed(stored, {key.removeprefix(_PREFIX): key for key in stored})
    check_tensors(path, tensors)
    return Erasure(tensors, read_metadata(path, header.metadata), Path(path))


def read_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """FileError when what is read from it later is not readable."""
    probe = Erasure({}, metadata)
    try:
        _ = probe.concepts, probe.fingerprint
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged: its metadata cannot be read") from error
    return dict(metadata)


def _is_ours(key: str) -> bool:
    return key.startswith(_PREFIX) and key.endswith((".diff", ".diff_b", _UP, _DOWN, _ALPHA))


class Weights(Protocol):
    """What a change is held against: a Denoiser or a Base."""

    @property
    def architecture(self) -> Architecture: ...

    def parameters(self) -> Mapping[str, Tensor]: ...


def check_fits(erasure: Erasure, denoiser: Weights) -> str:
    """Refuses a base of another shape; returns a warning for one of other weights, or "".

    Raises:
        FileError: it says what was expected and what came.
    """
    expected = erasure.architecture
    if expected and expected != denoiser.architecture.name:
        raise FileError(
            f"{erasure.name} was made for {title(expected)}, and this model is "
            f"{denoiser.architecture.title}: give the kind of model it was made for"
        )
    base = denoiser.parameters()
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
