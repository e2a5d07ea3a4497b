"""The student: the teacher's network with a few tensors of its own.

Its masters are float32 whatever the teacher is stored in, since a step of 1e-5 is lost in 16 bits.
What the network computes with is made from them anew at every step, inside the graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..config.settings import ErasureConfig
from ..errors import ConfigError
from ..models.denoiser import Denoiser
from ..models.swap import ALL, LazyWeight
from .selection import select


class Student(ABC):
    """float32 masters, and the network's tensors made of them."""

    masters: dict[str, nn.Parameter]

    def __init__(
        self, base: Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype
    ) -> None:
        self._base = {name: base[name].detach() for name in names}
        self._dtype = dtype

    @abstractmethod
    def _tensor(self, name: str, rows: slice) -> Tensor: ...

    @abstractmethod
    def _change(self, name: str) -> Tensor: ...

    def tensors(self) -> dict[str, LazyWeight]:
        """What the network computes with, by canonical name, each materialized when a layer needs
        it; gradients flow to the masters."""
        return {
            name: LazyWeight(partial(self._tensor, name), weight, self._dtype)
            for name, weight in self._base.items()
        }

    @torch.no_grad()
    def change(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The change against the teacher, in `dtype` on the CPU, by canonical name."""
        return {name: self._change(name).to("cpu", dtype) for name in self._base}

    def state_dict(self) -> dict[str, Tensor]:
        """The masters themselves, not copies."""
        return {name: master.detach() for name, master in self.masters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies the masters in; ValueError when they are another student's."""
        now, then = ({n: t.shape for n, t in part.items()} for part in (self.masters, state))
        if now != then:
            raise ValueError("the state is of another student")
        for name, value in state.items():
            self.masters[name].copy_(value)


class FullStudent(Student):
    """A float32 master for every trained tensor."""

    def __init__(
        self, base: Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype
    ) -> None:
        super().__init__(base, names, dtype)
        # Contiguous, as the optimizer's state is after it was saved: kernels take both for alike.
        form = torch.contiguous_format
        self.masters = {
            name: nn.Parameter(t.to(torch.float32, copy=True, memory_format=form))
            for name, t in self._base.items()
        }

    def _tensor(self, name: str, rows: slice) -> Tensor:
        return _cut(self.masters[name], rows).to(self._dtype)

    def _change(self, name: str) -> Tensor:
        return self.masters[name] - self._base[name].to(self.masters[name])


class LowRankStudent(Student):
    """weight + alpha / rank * up @ down for every trained weight; biases stay.

    `masters` holds `<path>.lora_up.weight` [out, rank] and `<path>.lora_down.weight`
    [rank, in * kernel], as matrices. down starts random, up at zero.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        names: Iterable[str],
        dtype: torch.dtype,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, (name for name in names if name.endswith(".weight")), dtype)
        if not self._base:
            raise ConfigError("a low-rank student needs weights to train: set `training.rank` to 0")
        self.rank, self.alpha = rank, alpha
        self.masters = {}
        for name, weight in self._base.items():
            out, into = weight.shape[0], weight[0].numel()
            within = min(rank, out, into)
            down = torch.randn(within, into, generator=generator) / into**0.5
            stem = name.removesuffix(".weight")
            self.masters[f"{stem}.lora_down.weight"] = nn.Parameter(down.to(weight.device))
            up = torch.zeros(out, within, device=weight.device)
            self.masters[f"{stem}.lora_up.weight"] = nn.Parameter(up)

    def _tensor(self, name: str, rows: slice) -> Tensor:
        # In place: a lean run peaks at what the largest weight takes here.
        weight = _cut(self._base[name], rows)
        matrix = weight.flatten(1)
        if matrix.dtype.itemsize == 1:  # torch promotes no fp8, all of whose values bf16 holds
            matrix = matrix.to(torch.bfloat16)
        return self._product(name, rows).add_(matrix).to(self._dtype).view(weight.shape)

    def _change(self, name: str) -> Tensor:
        return self._product(name, ALL).view(self._base[name].shape)

    def _product(self, name: str, rows: slice) -> Tensor:
        """These rows of it, as a matrix, [out, in * kernel]."""
        stem = name.removesuffix(".weight")
        up, down = self.masters[f"{stem}.lora_up.weight"], self.masters[f"{stem}.lora_down.weight"]
        return (self.alpha / self.rank * _cut(up, rows)) @ down


def _cut(tensor: Tensor, rows: slice) -> Tensor:
    """Itself where that is all: a view would be a node more in the graph."""
    return tensor if rows == ALL else tensor[rows]


def make_student(denoiser: Denoiser, config: ErasureConfig) -> Student:
    """The student that `method` and `rank` ask for, equal to the teacher."""
    base, dtype, training = denoiser.parameters(), denoiser.compute_dtype, config.training
    names = select(config.method, base, denoiser.architecture)
    if not training.rank:
        return FullStudent(base, names, dtype)
    start = torch.Generator().manual_seed(config.seed)
    return LowRankStudent(base, names, dtype, training.rank, training.effective_alpha, start)
