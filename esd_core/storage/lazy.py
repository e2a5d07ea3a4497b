"""Tensors that are made when they are asked for, so that one at a time is in memory."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """What a tensor is, or will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class LazyTensors(Mapping[str, Tensor]):
    """A mapping whose values are made anew whenever they are read; their shapes are known before.

    specs: what each will be, by name, in order.
    make: the tensor of a name.
    """

    def __init__(self, specs: Mapping[str, Spec], make: Callable[[str], Tensor]) -> None:
        self.specs, self._make = specs, make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:  # Mapping's own would make the tensor
        return name in self.specs


def spec_of(tensors: Mapping[str, Tensor], name: str) -> Spec:
    """What `tensors[name]` is, without making it where it is lazy."""
    if isinstance(tensors, LazyTensors):
        return tensors.specs[name]
    return Spec(tensors[name].dtype, tuple(tensors[name].shape))


def union(*parts: Mapping[str, Tensor]) -> LazyTensors:
    """All of all parts, under their names; the last one's, where several have one of that name."""
    owners = {name: part for part in parts for name in part}
    specs = {name: spec_of(part, name) for name, part in owners.items()}
    return LazyTensors(specs, lambda name: owners[name][name])


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> LazyTensors:
    """The same tensors under other names. names: new name -> the one in `tensors`."""
    specs = {new: spec_of(tensors, old) for new, old in names.items()}
    return LazyTensors(specs, lambda new: tensors[names[new]])
