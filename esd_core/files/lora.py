"""A change of weights as a LoRA of low rank, for every loader there is.

Names are kohya's, `lora_unet_<path>` with underscores: LDM's paths for SDXL, diffusers' for SD 1.x
and 2.x. Of transformers they are ComfyUI's paths, which diffusers' pipelines read for FLUX.1; for
SD3 they read their own names alone, which ComfyUI reads too. The factors are those of the singular
value decomposition, which is the nearest matrix of a rank (Eckart and Young 1936); a convolution is
the matrix [out, in * kernel].
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError
from ..models.architectures import ARCHITECTURES, SD1
from ..models.keys import canonical_to_diffusers
from ..models.parts import Part
from ..storage.writing import write_safetensors
from .finite import to_write
from .metadata import Key

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
KOHYA = "lora_unet_"


@dataclass(frozen=True)
class LowRank:
    """Matrices up @ down that stand for a change.

    Attributes:
        factors: up [out, r] or [out, r, 1, 1] and down [r, in] or [r, in, kh, kw], float32, by the
            canonical name of the layer, without ".weight".
        kept: the part of the norm of the change that they keep, 0 to 1, by layer; 0 for biases and
            norms, which have no rank.
        kept_in_all: the same of all layers together.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    kept: dict[str, float]
    kept_in_all: float

    @property
    def rank(self) -> int:
        """The largest."""
        return max((len(down) for _, down in self.factors.values()), default=0)

    def __str__(self) -> str:
        return f"rank {self.rank} keeps {self.kept_in_all:.1%} of the change's norm"


def low_rank(
    change: Mapping[str, Tensor], rank: int | None = None, energy: float | None = None
) -> LowRank:
    """The nearest matrices of low rank to a change, float by canonical name of the tensor.

    Args:
        rank: at most this one in every layer; None for no bound.
        energy: the smallest rank that keeps this share of a layer's squared norm, 0 to 1.

    Raises:
        FileError: nothing in it changes a weight, or it is not finite.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    kept: dict[str, float] = {}
    total = total_kept = 0.0
    for name in sorted(change):  # so that the file does not follow the order of its source
        tensor = change[name]
        square = float(to_write(name, tensor).double().square().sum())
        if square == 0:
            continue
        held = 0.0
        if tensor.dim() > 1:
            factors[name.removesuffix(".weight")], held = _factors(tensor.float(), rank, energy)
        kept[name] = (held / square) ** 0.5
        total, total_kept = total + square, total_kept + held
    if not factors:
        raise FileError("the erasure changes no weight matrix, so a LoRA cannot be made of it")
    return LowRank(factors, kept, (total_kept / total) ** 0.5)


def write_lora(
    path: Path,
    lora: LowRank,
    architecture: str,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    force: bool = False,
    parts: Mapping[str, Part] | None = None,
) -> None:
    """Write it under kohya's names, or those of diffusers where `parts` says them.

    Loaders scale by alpha / rank. alpha is the largest rank in every layer, and smaller layers'
    factors make up for it: diffusers forgets the alphas of attention layers that differ.

    metadata: copied, without `esd.format`: the file is not an erasure's.
    Raises FileError as `write_safetensors`.
    """
    tensors: dict[str, Tensor] = {}
    for layer, (up, down) in lora.factors.items():
        if parts:
            tensors |= _named_by_parts(parts[f"{layer}.weight"], up.to(dtype), down.to(dtype))
            continue
        stem = kohya_name(layer, architecture)
        share = (len(down) / lora.rank) ** 0.5
        for part, factor in ((UP, up), (DOWN, down)):
            tensors[stem + part] = to_write(stem + part, (share * factor).to(dtype))
        tensors[stem + ALPHA] = torch.tensor(float(lora.rank))
    about = {
        **{key: text for key, text in metadata.items() if key != Key.FORMAT},
        Key.LORA_KEPT: f"{lora.kept_in_all:.4f}",
        Key.LORA_KEPT_BY_LAYER: json.dumps(
            {name: round(part, 4) for name, part in lora.kept.items()}
        ),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.rank),
        "ss_v2": str(ARCHITECTURES.get(architecture, SD1).is_v2),
    }
    write_safetensors(path, tensors, about, force)


def _named_by_parts(part: Part, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """As diffusers' pipelines of transformers have it, whose scale is 1 without an alpha."""
    found = {}
    for name, rows in part.cut(up).items():
        stem = f"transformer.{name.removesuffix('.weight')}"
        found[f"{stem}.lora_A.weight"] = to_write(stem, down)
        found[f"{stem}.lora_B.weight"] = to_write(stem, rows.contiguous())
    return found


def kohya_name(layer: str, architecture: str) -> str:
    """That of a layer, by its canonical name without ".weight"."""
    if not ARCHITECTURES.get(architecture, SD1).has_ldm_lora_names:
        # diffusers' defaults have the structure of SD 1.x and 2.x.
        weight = canonical_to_diffusers({}).get(f"{layer}.weight", layer)
        layer = weight.removesuffix(".weight")
    return KOHYA + layer.replace(".", "_")


def _factors(
    tensor: Tensor, rank: int | None, energy: float | None
) -> tuple[tuple[Tensor, Tensor], float]:
    """up and down, which share the singular values evenly, and the squared norm they keep."""
    left, values, right = _decomposed(tensor.flatten(1), rank if energy is None else None)
    squares = values.double().square()
    count = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        reached = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
        count = min(count, int(reached.int().argmax()) + 1)
    root = values[:count].sqrt()
    up, down = left[:, :count] * root, root[:, None] * right[:count]
    if tensor.dim() == 4:
        up, down = up[:, :, None, None], down.view(count, *tensor.shape[1:])
    return (up.contiguous(), down.contiguous()), float(squares[:count].sum())


_OVERSAMPLED, _ITERATIONS = 32, 4


def _decomposed(matrix: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors [out, k], values [k] and right vectors [k, in], the largest first.

    Where a few of many are wanted, they are found by random projection (Halko et al., arXiv
    0909.4061), some twenty times as quick at SDXL's sizes; the seed makes it the same every time.
    """
    if rank is None or 4 * (rank + _OVERSAMPLED) > min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, rank + _OVERSAMPLED, _ITERATIONS)
    return left, values, right.T
