"""The student: the teacher's network with a few tensors of its own.

Its masters are float32 whatever the teacher is stored in, since a step of 1e-5 is lost in 16 bits.
What the network computes with is made from them anew at every step, inside the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..config.settings import ErasureConfig
from ..errors import ConfigError
from ..models.denoiser import Denoiser
from ..models.swap import LazyWeight
from .selection import select


class _Masters:
    """The part of a student that changes."""

    masters: dict[str, nn.Parameter]

    def state_dict(self) -> dict[str, Tensor]:
        """The masters themselves, not copies."""
        return {name: master.detach() for name, master in self.masters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies the masters in; ValueError when they are another student's."""
        if _shapes(state) != _shapes(self.masters):
            raise ValueError("the state is of another student")
        for name, value in state.items():
            self.masters[name].copy_(value)


class FullStudent(_Masters):
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

    def lazy_tensors(self) -> dict[str, LazyWeight]:
        """As `tensors`, each materialized when a layer needs it."""
        return {
            name: LazyWeight(partial(master.to, self._dtype), master, self._dtype)
            for name, master in self.masters.items()
        }

    @torch.no_grad()
    def change(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The change against the teacher, in `dtype` on the CPU, by canonical name."""
        return {
            name: (master - self._base[name].to(master)).to("cpu", dtype)
            for name, master in self.masters.items()
        }


class LowRankStudent(_Masters):
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
            raise ConfigError("a low-rank student needs weights to train: set `training.rank` to 0")
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

    def lazy_tensors(self) -> dict[str, LazyWeight]:
        """As FullStudent's."""
        return {
            name: LazyWeight(partial(self._sum, name), weight, self._dtype)
            for name, weight in self._base.items()
        }

    def _sum(self, name: str) -> Tensor:
        # In place: a lean run peaks at what the largest weight takes here.
        total = self._product(name).add_(self._base[name].flatten(1))
        return total.to(self._dtype).view(self._base[name].shape)

    @torch.no_grad()
    def change(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """As FullStudent's."""
        return {
            name: self._product(name).view(weight.shape).to("cpu", dtype)
            for name, weight in self._base.items()
        }


Student = FullStudent | LowRankStudent


def make_student(denoiser: Denoiser, config: ErasureConfig) -> Student:
    """The student that `method` and `rank` ask for, equal to the teacher."""
    base, dtype, training = denoiser.parameters(), denoiser.compute_dtype, config.training
    names = select(config.method, base, denoiser.architecture)
    if not training.rank:
        return FullStudent(base, names, dtype)
    start = torch.Generator().manual_seed(config.seed)
    return LowRankStudent(base, names, dtype, training.rank, training.effective_alpha, start)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _float_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)
