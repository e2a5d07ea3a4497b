"""The student: the teacher's network with a few tensors of its own.

Its masters are float32 whatever the teacher is stored in, since a step of 1e-5 is lost in 16 bits.
What the network computes with is made from them anew at every step, inside the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class Made:
    """Stands in for a tensor: a layer that computes with it makes it, and lets it go again.

    So at no time does a second set of the trained weights lie in memory, in 16 bits or multiplied
    out. torch asks `__torch_function__` of whatever has it, tensor or not.
    """

    def __init__(self, make: Callable[[], Tensor], like: Tensor, dtype: torch.dtype) -> None:
        self.make = make
        self.shape, self.device, self.dtype = like.shape, like.device, dtype

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(dense, args), **{k: dense(v) for k, v in (kwargs or {}).items()})


def dense(value: Any) -> Any:
    """The tensor that a Made stands for, also in a list of tensors; anything else is itself."""
    if isinstance(value, Made):
        return value.make()
    if isinstance(value, (list, tuple)) and any(isinstance(item, Made) for item in value):
        return type(value)(map(dense, value))
    return value


class FullStudent:
    """A float32 master for every trained tensor."""

    def __init__(
        self, base: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype
    ) -> None:
        self._base = {name: base[name].detach() for name in names}
        self._dtype = dtype
        self.masters = {name: nn.Parameter(_float_copy(base[name])) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """What the network computes with, by canonical name; gradients flow to the masters."""
        return {name: master.to(self._dtype) for name, master in self.masters.items()}

    def made(self) -> dict[str, Tensor]:
        """As `tensors`, but every one is made when a layer needs it: a Made."""
        return {
            name: cast(Tensor, Made(partial(master.to, self._dtype), master, self._dtype))
            for name, master in self.masters.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The masters themselves, not copies."""
        return {name: master.detach() for name, master in self.masters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies the masters in; ValueError when they are another student's."""
        load_masters(self.masters, state)

    @torch.no_grad()
    def change(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The change against the teacher, in `dtype` on the CPU, by canonical name."""
        return {
            name: (master - self._base[name].to(master)).to("cpu", dtype)
            for name, master in self.masters.items()
        }


class LowRankStudent:
    """weight + alpha / rank * up @ down for every trained weight; biases stay.

    `masters` holds `<path>.lora_up.weight` [out, rank] and `<path>.lora_down.weight`
    [rank, in * kernel], as matrices. down starts random, up at zero.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        names: Sequence[str],
        dtype: torch.dtype,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        self._base = {name: base[name].detach() for name in names if name.endswith(".weight")}
        if not self._base:
            raise ConfigError("a low-rank student needs weights to train: set training.rank to 0")
        self._dtype, self.rank, self.alpha = dtype, rank, alpha
        self.masters: dict[str, nn.Parameter] = {}
        for name, weight in self._base.items():
            out, into = weight.shape[0], weight[0].numel()
            within = min(rank, out, into)
            down = torch.randn(within, into, generator=generator) / into**0.5
            stem = name.removesuffix(".weight")
            self.masters[f"{stem}.lora_down.weight"] = nn.Parameter(down.to(weight.device))
            up = torch.zeros(out, within, device=weight.device)
            self.masters[f"{stem}.lora_up.weight"] = nn.Parameter(up)

    def _product(self, name: str) -> Tensor:
        """As a matrix, [out, in * kernel]."""
        stem = name.removesuffix(".weight")
        up, down = self.masters[f"{stem}.lora_up.weight"], self.masters[f"{stem}.lora_down.weight"]
        return (self.alpha / self.rank * up) @ down

    def tensors(self) -> dict[str, Tensor]:
        """As FullStudent's."""
        return {name: self._sum(name) for name in self._base}

    def made(self) -> dict[str, Tensor]:
        """As FullStudent's."""
        return {
            name: cast(Tensor, Made(partial(self._sum, name), weight, self._dtype))
            for name, weight in self._base.items()
        }

    def _sum(self, name: str) -> Tensor:
        # In place: a lean run peaks at what the largest weight takes here.
        total = self._product(name).add_(self._base[name].flatten(1))
        return total.to(self._dtype).view(self._base[name].shape)

    def state_dict(self) -> dict[str, Tensor]:
        """As FullStudent's."""
        return {name: master.detach() for name, master in self.masters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As FullStudent's."""
        load_masters(self.masters, state)

    @torch.no_grad()
    def change(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """As FullStudent's."""
        return {
            name: self._product(name).view(weight.shape).to("cpu", dtype)
            for name, weight in self._base.items()
        }


Student = FullStudent | LowRankStudent


@torch.no_grad()
def load_masters(masters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if {n: m.shape for n, m in masters.items()} != {n: m.shape for n, m in state.items()}:
        raise ValueError("the state is of another student")
    for name, value in state.items():
        masters[name].copy_(value)


def _float_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)
