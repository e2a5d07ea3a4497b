"""Values that a file of weights may hold: floating-point ones, neither NaN nor infinite."""

import math
from pathlib import Path

from torch import Tensor

from ..errors import FileError


def is_finite(tensor: Tensor) -> bool:
    """By its least and greatest, which NaN spoils too: no mask is made of it."""
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # fp8 cannot be compared
    return tensor.numel() == 0 or all(math.isfinite(end) for end in wide.aminmax())


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """FileError for a tensor of a file that holds anything else."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise FileError(f"{path} is damaged: {name} holds {kind}, and weights are floating point")
    if not is_finite(tensor):
        raise FileError(f"{path} is damaged: {name} holds a value that is not finite")


def to_write(name: str, tensor: Tensor) -> Tensor:
    """The same tensor. FileError for one that a reader would call damaged."""
    if not is_finite(tensor):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise FileError(
            f"{name} would not be finite as {kind}, so nothing is written: the change is too large "
            "for that number format, or the file that it comes from is damaged"
        )
    return tensor
