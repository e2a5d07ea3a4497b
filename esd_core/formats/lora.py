"""Changes as LoRA files of low rank, in kohya's names, which every loader of LoRAs reads.

`lora_unet_<module, by diffusers' name>.lora_up.weight` [out, rank], `.lora_down.weight`
[rank, in] and `.alpha`; a convolution's down keeps its kernel, its up is 1x1. The factors are
those of the singular value decomposition, the best of their rank (Eckart and Young).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .keys import canonical_to_diffusers

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
PREFIX = "lora_unet_"


@dataclass
class LowRank:
    """A change as pairs of factors, and what of it they keep.

    Attributes:
        tensors: by kohya's names.
        layers: the part of ||dW|| that is kept, by canonical name; 0 for what has no low rank.
        ranks: by canonical name.
        kept: the part of ||dW|| over all layers.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    kept: float = 1.0


@torch.no_grad()
def low_rank(
    delta: Mapping[str, Tensor],
    config: Mapping[str, Any],
    rank: int = 0,
    energy: float = 1.0,
    dtype: torch.dtype = torch.float16,
) -> LowRank:
    """The change at low rank, layer by layer.

    Biases and norms are left out: LoRAs have no place for them, and diffusers refuses files that
    hold more.

    Args:
        delta: by canonical name, in the shapes of the weights.
        config: of the UNet2DConditionModel that it belongs to.
        rank: of every layer, as far as its size lets it; 0 for what `energy` needs.
        energy: where rank is 0, the part of ||dW||^2 that every layer keeps at least.
        dtype: of the factors.
    """
    names = canonical_to_diffusers(config)
    result, whole, lost = LowRank(), 0.0, 0.0
    for name in delta:
        change = delta[name].detach().to("cpu", torch.float32)
        size = rest = float(change.double().square().sum())
        if change.dim() > 1 and size:
            left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
            squares = values.double().square()
            count = min(rank, len(values)) if rank else _needed(squares, energy)
            rest = float(squares[count:].sum())
            root = values[:count].sqrt()
            up, down = left[:, :count] * root, root[:, None] * right[:count]
            stem = kohya_stem(name, names)
            result.tensors.update(_factors(stem, up.to(dtype), down.to(dtype), change.shape[2:]))
            result.ranks[name] = count
        result.layers[name] = _kept(size, rest)
        whole, lost = whole + size, lost + rest
    result.kept = _kept(whole, lost)
    return result


def kohya_stem(name: str, names: Mapping[str, str]) -> str:
    """What kohya's files call the module of a canonical weight. names: canonical -> diffusers.

    The embedding of the pooled text goes by its LDM name: diffusers' own reader of kohya's names
    takes the digit off the end of the other.
    """
    known = name if name.startswith("label_emb.") else names[name]
    return PREFIX + known.removesuffix(".weight").replace(".", "_")


def _factors(stem: str, up: Tensor, down: Tensor, kernel: Sequence[int]) -> dict[str, Tensor]:
    if kernel:
        up, down = up.reshape(*up.shape, 1, 1), down.reshape(len(down), -1, *kernel)
    alpha = torch.tensor(float(len(down)))  # loaders scale by alpha / rank
    return {stem + UP: up.contiguous(), stem + DOWN: down.contiguous(), stem + ALPHA: alpha}


def _needed(squares: Tensor, energy: float) -> int:
    """How many singular values, of these squares, hold that part of their sum."""
    enough = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
    return int(enough.int().argmax()) + 1


def _kept(size: float, lost: float) -> float:
    """The part of a norm that is left, from squares."""
    return max(0.0, 1 - lost / size) ** 0.5 if size else 1.0
