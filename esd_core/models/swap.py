"""Where a network's parameters hang, and other tensors in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

Slot = tuple[nn.Module, str]
"""A module, and the parameter's name in it."""


ALL = slice(None)


class LazyWeight:
    """A weight that is materialized when a layer uses it, and freed right after.

    So the 16-bit (or expanded low-rank) copies of all trained weights never exist at once. torch
    asks `__torch_function__` of whatever has it, tensor or not.
    """

    def __init__(
        self, make: Callable[[slice], Tensor], like: Any, dtype: torch.dtype, rows: slice = ALL
    ) -> None:
        """
        Args:
            make: these rows of the weight.
            like: of the shape and on the device of all its rows.
            rows: those that this one is.
        """
        self._make, self._rows = make, rows
        count = len(range(*rows.indices(like.shape[0])))
        self.shape = torch.Size((count, *like.shape[1:]))
        self.device, self.dtype = like.device, dtype

    def make(self) -> Tensor:
        return self._make(self._rows)

    def of_rows(self, rows: slice) -> LazyWeight:
        """These rows of a whole one, which makes no others for it."""
        return LazyWeight(self._make, self, self.dtype, rows)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {name: materialize(value) for name, value in (kwargs or {}).items()}
        return func(*map(materialize, args), **given)


Weight = Tensor | LazyWeight
"""What a layer can compute with."""


def materialize(value: Any) -> Any:
    """The tensor of a LazyWeight, also in a list of tensors; anything else is itself."""
    if isinstance(value, LazyWeight):
        return value.make()
    if isinstance(value, (list, tuple)) and any(isinstance(item, LazyWeight) for item in value):
        return type(value)(map(materialize, value))
    return value


def rows_of(weight: Weight, rows: slice) -> Weight:
    """A part of what a layer can compute with, into which gradients flow too."""
    return weight.of_rows(rows) if isinstance(weight, LazyWeight) else weight[rows]


def slots_of(network: nn.Module) -> dict[str, Slot]:
    """Where every parameter hangs, by its full name."""
    modules = dict(network.named_modules())
    parts = {name: name.rpartition(".") for name, _ in network.named_parameters()}
    return {name: (modules[path], leaf) for name, (path, _, leaf) in parts.items()}


@contextmanager
def replaced(slots: Mapping[str, Slot], tensors: Mapping[str, Weight]) -> Iterator[None]:
    """Inside, modules compute with these tensors, and gradients flow into them.

    The parameters themselves are not written to. On leaving, a tensor that somebody else has put
    in since, as a host may when it loads other weights, stays.
    """
    places = [(*slots[name], tensor) for name, tensor in tensors.items()]
    before = [module._parameters[leaf] for module, leaf, _ in places]
    try:
        for module, leaf, tensor in places:
            module._parameters[leaf] = tensor  # type: ignore[assignment]  # no leaf needed
        yield
    finally:
        for (module, leaf, tensor), original in zip(places, before, strict=True):
            if module._parameters[leaf] is tensor:
                module._parameters[leaf] = original


def hollowed(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy whose tensors have the shapes of the network's, and are made anew, on the CPU.

    Inside torch's FakeTensorMode those have no contents: nothing of the network's size is made.
    That goes for tensors of its last pass, too, where a network keeps some.

    dtype: of all of them; their own unless given.
    """
    memo: dict[int, object] = {}
    held = (value for part in network.modules() for value in tree_iter(vars(part)))
    for tensor in (value for value in held if isinstance(value, Tensor)):
        empty = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="cpu")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(network, memo)
