"""Canonical tensors that diffusers has in several parts, or in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .swap import LazyWeight, Weight, materialize, rows_of


@dataclass(frozen=True)
class Part:
    """What one canonical tensor is made of.

    Attributes:
        rows: diffusers' tensors whose rows, so many of each where there are several, follow one
            another in it.
        is_swapped: whether its two halves, shift and scale, lie the other way round in the one.
    """

    rows: Mapping[str, int]
    is_swapped: bool = False

    @property
    def is_same(self) -> bool:
        """Whether it is diffusers' own tensor."""
        return len(self.rows) == 1 and not self.is_swapped

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The canonical tensor of diffusers' ones."""
        if self.is_same:
            return tensors[next(iter(self.rows))]
        whole = torch.cat([tensors[name] for name in self.rows])
        return _swapped(whole) if self.is_swapped else whole

    def cut(self, tensor: Tensor) -> dict[str, Tensor]:
        """diffusers' tensors of the canonical one, of which they are views unless swapped."""
        if len(self.rows) == 1:
            return {next(iter(self.rows)): _swapped(tensor) if self.is_swapped else tensor}
        return {name: tensor[rows] for name, rows in self._slices().items()}

    def weights(self, weight: Weight) -> dict[str, Weight]:
        """What diffusers' layers compute with, of what stands in for the canonical tensor."""
        if self.is_same:
            return {next(iter(self.rows)): weight}
        if self.is_swapped:
            (name,) = self.rows
            return {name: LazyWeight(lambda _: _swapped(materialize(weight)), weight, weight.dtype)}
        return {name: rows_of(weight, rows) for name, rows in self._slices().items()}

    def _slices(self) -> dict[str, slice]:
        ends = pairwise(accumulate(self.rows.values(), initial=0))
        return {name: slice(*both) for name, both in zip(self.rows, ends, strict=True)}


def _swapped(tensor: Tensor) -> Tensor:
    """With its halves the other way round."""
    return torch.cat([*tensor.chunk(2)][::-1])
