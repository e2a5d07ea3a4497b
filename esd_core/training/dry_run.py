"""A training step on tensors that have shapes and no contents, to count what would be alive.

The network is the backend's own, so that casts, attention and recomputation count as they are done
there. One rehearsal serves every batch and size: its batch and its latents' edge are primes, which
no layer's width holds, so that the factors of an allocation tell what it grows with.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..config.settings import ErasureConfig
from ..method.objective import regression_loss
from ..method.terms import prompts_of, terms
from ..models.denoiser import Rehearsable
from .student import Student, make_student

BATCH, EDGE = 31, 37
LEVELS = 8
"""The edge of rehearsed latents is EDGE * LEVELS, which can be halved three times."""

Growth = tuple[int, int]
"""Of an allocation: the powers of the batch and of the edge that its size is proportional to."""


class Count:
    """What was alive over the course of a rehearsal, for any batch and size."""

    def __init__(self, events: list[tuple[Growth | str, int]]) -> None:
        kinds = [*dict.fromkeys(kind for kind, _ in events)]
        deltas = torch.zeros(len(events) + 1, len(kinds), dtype=torch.float64)
        for row, (kind, size) in enumerate(events):
            deltas[row, kinds.index(kind)] = size
        alive = deltas.cumsum(0).unbind(1)
        self._alive = dict(zip(kinds, alive, strict=True))
        self._none = torch.zeros(len(events) + 1, dtype=torch.float64)

    def peak(self, batch: int, height: int, width: int, gradients: str | int = 0) -> int:
        """Bytes at the worst moment of a pass of `batch` samples, its inputs included.

        Args:
            height, width: of the latents.
            gradients: "fp32" or "bf16" when they are held so as they arrive; or bytes that are
                held all the time.
        """
        edge = (height * width) ** 0.5 / LEVELS
        total = self._none + (gradients if isinstance(gradients, int) else 0)
        for kind, alive in self._alive.items():
            if isinstance(kind, tuple):
                total = total + alive * (batch ** kind[0] * edge ** kind[1])
        if isinstance(gradients, str) and gradients in self._alive:
            total = total + self._alive[gradients]
        return round(float(total.max()))


class DryRun:
    """Rehearses the steps of a denoiser's runs, each kind of them once."""

    def __init__(self, denoiser: Rehearsable, config: ErasureConfig) -> None:
        """config: whose prompts, the longest of which all rows are as long as."""
        longest = max(prompts_of(terms(config)), key=len)
        self._row = denoiser.encode([longest], config.width, config.height)
        self._channels = denoiser.latent_shape(config.width, config.height)[0]
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self._network = denoiser.hollow()
        self._students: dict[Any, Student] = {}
        self._counts: dict[Any, Count] = {}

    def masters(self, config: ErasureConfig) -> list[Tensor]:
        """The masters of its student."""
        key = config.method, config.training.rank
        if key not in self._students:
            with self._mode:
                self._students[key] = make_student(self._network, config)
        return list(self._students[key].masters.values())

    def step(self, config: ErasureConfig, checkpointing: bool) -> Count:
        """Of a pass forward and backward."""
        masters = self.masters(config)
        student = self._students[config.method, config.training.rank]
        key = config.method, config.training.rank, checkpointing
        if key not in self._counts:
            with (
                self._mode,
                torch.enable_grad(),
                self._network.checkpointed(checkpointing),
                _Alive([*self._network.parameters().values(), *masters], masters) as alive,
                self._network.swapped(student.lazy_tensors()),
            ):
                predicted = self._predict()
                target, weight = torch.zeros_like(predicted), torch.ones(BATCH)
                regression_loss(predicted, target, weight).backward()
                del predicted
            self._counts[key] = Count(alive.events)
        return self._counts[key]

    def evaluation(self) -> Count:
        """Of a prediction of which nothing is kept for a gradient."""
        if "evaluation" not in self._counts:
            base = self._network.parameters().values()
            with self._mode, torch.no_grad(), _Alive(base) as alive:
                self._predict()
            self._counts["evaluation"] = Count(alive.events)
        return self._counts["evaluation"]

    def _predict(self) -> Tensor:
        edge = EDGE * LEVELS
        rows = self._row.map(lambda t: torch.empty(BATCH, *t.shape[1:], dtype=t.dtype))
        x = torch.empty(BATCH, self._channels, edge, edge)
        return self._network.predict(x, torch.ones(BATCH), rows)


class _Alive(TorchDispatchMode):
    """Notes what is allocated and freed inside.

    Args:
        before: tensors that are there already, and whose views cost nothing.
        masters: whose gradients are noted on their own, under "fp32" and "bf16", as they arrive.
    """

    def __init__(self, before: Iterable[Tensor], masters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.events: list[tuple[Growth | str, int]] = []
        self._known = {tensor.untyped_storage()._cdata for tensor in before}
        self._hooks = [m.register_post_accumulate_grad_hook(self._take) for m in masters]

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        growth, size = _growth(storage.nbytes())
        self.events.append((growth, size))
        weakref.finalize(storage, self._forget, key, growth, size)

    def _forget(self, key: int, growth: Growth, size: int) -> None:
        self._known.remove(key)
        self.events.append((growth, -size))

    def _take(self, master: Tensor) -> None:
        # In 16 bits while the arrived one is still there; in 32 it is the arrived one.
        self.events.append(("bf16", 2 * master.numel()))
        master.grad = None
        self.events.append(("fp32", 4 * master.numel()))


def _growth(size: int) -> tuple[Growth, int]:
    """What an allocation grows with, and its bytes for one of each."""
    powers = []
    for prime in (BATCH, EDGE):
        power = 0
        while size and size % prime == 0:
            size, power = size // prime, power + 1
        powers.append(power)
    return (powers[0], powers[1]), size
