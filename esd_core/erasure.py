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
from typing import Any

import torch
from torch import Tensor

from .concepts import parse_all
from .config import ErasureConfig
from .denoiser import Denoiser
from .errors import ESDError, FileError
from .formats.header import read_header
from .formats.safetensors_file import iterate_tensors, write_safetensors
from .probes import ProbeReport
from .student import LowRankStudent, Student

FORMAT = "esd-erasure-1"
PACK_VERSION = "0.1.0"
CONVENTION = (
    "paper: target = anchor - eta * (concept - empty); the official scripts' eta is this + 1"
)
SAVE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

_PREFIX = "diffusion_model."
_UP, _DOWN, _ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
_LEAVES = {"diff": "weight", "diff_b": "bias"}
_WHOLE = tuple(f".{leaf}" for leaf in _LEAVES)
_MODELSPEC = {
    "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2-768-v", "sd_v2"),
}
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

    def change(self) -> dict[str, Tensor]:
        """float32 change by canonical name; low-rank ones are multiplied out."""
        whole = {
            f"{key.removesuffix('.diff')}.weight": value.float()
            for key, value in self.tensors.items()
            if key.endswith(".diff")
        }
        whole |= {
            f"{key.removesuffix('.diff_b')}.bias": value.float()
            for key, value in self.tensors.items()
            if key.endswith(".diff_b")
        }
        for key in [k for k in self.tensors if k.endswith(_UP)]:
            stem = key.removesuffix(_UP)
            up, down = self.tensors[key].float().flatten(1), self.tensors[stem + _DOWN].float()
            product = (up @ down.flatten(1)).view(len(up), *down.shape[1:])
            whole[f"{stem}.weight"] = float(self.tensors[stem + _ALPHA]) / len(down) * product
        return whole

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `change`, and nothing is computed for them."""
        shapes: dict[str, tuple[int, ...]] = {}
        for key, value in self.tensors.items():
            if key.endswith(_UP):
                stem = key.removesuffix(_UP)
                into = self.tensors[stem + _DOWN][0].numel()
                shapes[f"{stem}.weight"] = (value.shape[0], into)
            elif key.endswith(_WHOLE):
                stem, leaf = key.rsplit(".", 1)
                shapes[f"{stem}.{_LEAVES[leaf]}"] = tuple(value.shape)
        return shapes


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
    if not all(map(_is_finite, tensors.values())):
        raise ESDError(
            "the trained change holds values that are not finite: lower training.learning_rate, "
            "or set training.save_dtype to fp32"
        )
    return Erasure(tensors, _metadata(denoiser, config, steps, probes))


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


def _metadata(
    denoiser: Denoiser, config: ErasureConfig, steps: int, probes: ProbeReport | None
) -> dict[str, str]:
    concepts = parse_all(config.concepts)
    names = ", ".join(c.name for c in concepts)
    architecture, base_version = _MODELSPEC[denoiser.architecture]
    return {
        "format": "pt",
        "esd.format": FORMAT,
        "esd.version": PACK_VERSION,
        "esd.concepts": json.dumps([c.name for c in concepts]),
        "esd.anchors": json.dumps({c.name: c.target_base for c in concepts}),
        "esd.method": config.method,
        "esd.negative_guidance": str(config.negative_guidance),
        "esd.negative_guidance_convention": CONVENTION,
        "esd.steps": str(steps),
        "esd.config": config.to_toml(),
        "esd.config_digest": config.digest(),
        "esd.base_architecture": denoiser.architecture,
        "esd.base_fingerprint": fingerprint(denoiser.parameters()),
        "esd.probes": json.dumps(probes.as_dict() if probes else {}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": f"{names} erased ({config.method})",
        "modelspec.description": f"Erases {names} by Erased Stable Diffusion (arXiv 2303.07345).",
        "ss_base_model_version": base_version,
        "trained_words": json.dumps([c.name for c in concepts]),
    }


def write_erasure(path: Path, erasure: Erasure, force: bool = False) -> None:
    """Whole or not at all; FileError when the file exists (unless `force`) or cannot be written."""
    tensors = {f"{_PREFIX}{key}": value for key, value in erasure.tensors.items()}
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
    tensors = {key.removeprefix(_PREFIX): value for key, value in iterate_tensors(path)}
    for key, value in tensors.items():
        if not _is_finite(value):
            raise FileError(f"{path} is damaged: {key} holds a value that is not finite")
        stem = key.removesuffix(_UP).removesuffix(_DOWN).removesuffix(_ALPHA)
        if stem != key and not _is_whole(tensors, stem):
            raise FileError(f"{path} is damaged: {key} lacks its other half, or does not fit it")
    erasure = Erasure(tensors, header.metadata, Path(path))
    try:
        _ = erasure.concepts, erasure.fingerprint
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged: its metadata cannot be read") from error
    return erasure


def _is_finite(value: Tensor) -> bool:
    """By its least and greatest, which NaN spoils too: no mask is made of it."""
    return value.numel() == 0 or all(bool(end.isfinite()) for end in value.aminmax())


def _is_whole(tensors: Mapping[str, Tensor], stem: str) -> bool:
    """Whether a low-rank change has all its parts, in shapes that can be multiplied."""
    up, down, alpha = (tensors.get(stem + part) for part in (_UP, _DOWN, _ALPHA))
    if up is None or down is None or alpha is None or min(up.dim(), down.dim()) < 2:
        return False
    return up.shape[1:].numel() == len(down) > 0 and alpha.numel() == 1


def _is_ours(key: str) -> bool:
    return key.startswith(_PREFIX) and key.endswith((".diff", ".diff_b", _UP, _DOWN, _ALPHA))


def check_fits(erasure: Erasure, denoiser: Denoiser) -> str:
    """Refuses a base of another shape; returns a warning for one of other weights, or "".

    Raises:
        FileError: it says what was expected and what came.
    """
    expected = erasure.architecture
    if expected and expected != denoiser.architecture:
        raise FileError(
            f"{erasure.name} was made for {expected}, and this model is {denoiser.architecture}: "
            "give the kind of model it was made for"
        )
    base = denoiser.parameters()
    for name, shape in erasure.shapes().items():
        if name not in base:
            raise FileError(f"{erasure.name} changes {name}, which this model does not have")
        if math.prod(shape) != base[name].numel() or shape[:1] != base[name].shape[:1]:
            raise FileError(
                f"{erasure.name} was made for another model: {name} has the shape "
                f"{list(shape)} there and {list(base[name].shape)} here"
            )
    return _other_weights(erasure, base)


def _other_weights(erasure: Erasure, base: Mapping[str, Tensor]) -> str:
    before = torch.tensor(erasure.fingerprint)
    now = torch.tensor([float(v) for v in fingerprint(base).split()])
    if not len(before) or len(before) != len(now):
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
    names = sorted(name for name, value in parameters.items() if value.numel() >= 4096)
    chosen = names[:: max(1, len(names) // 64)]
    rows: list[Any] = []
    for name in chosen:
        flat = parameters[name].detach().reshape(-1)
        rows += flat[:: len(flat) // 4][:4].float().tolist()
    return " ".join(f"{value:.4g}" for value in rows)
