"""A training step on tensors that have shapes and no contents, to count what would be alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..method.objective import regression_loss
from ..models.denoiser import Conditioning, Denoiser, Rehearsable
from .gradients import ShortGradients
from .selection import select
from .student import FullStudent, LowRankStudent, Student


class DryRun:
    """Steps and evaluations of a denoiser's own network at one size of pictures."""

    def __init__(self, denoiser: Rehearsable, width: int, height: int) -> None:
        """width, height: in pixels."""
        self._denoiser = denoiser
        self._latent = denoiser.latent_shape(width, height)
        self._prompt = denoiser.encode([""], width, height)
        # Methods are few, and the network is rehearsed once for each way to train it.
        self.step = cache(self._step)
        self.evaluation = cache(self._evaluation)

    def _step(
        self, method: str, rank: int, batch: int, checkpointing: bool, short: bool
    ) -> tuple[tuple[torch.Size, ...], int]:
        """The masters' shapes, and the peak of a pass with `batch` samples, gradients included.

        short: whether ShortGradients holds them.
        """
        with _fake(), torch.enable_grad():
            denoiser = self._denoiser.hollow()
            base = denoiser.parameters()
            names = select(method, base, denoiser.architecture)
            student: Student = FullStudent(base, names, denoiser.compute_dtype)
            if rank:
                start = torch.Generator().manual_seed(0)
                student = LowRankStudent(base, names, denoiser.compute_dtype, rank, rank, start)
            masters = list(student.masters.values())
            if short:
                ShortGradients(masters)
            given = self._given(batch)
            with (
                denoiser.checkpointed(checkpointing),
                _Peak([*base.values(), *masters]) as peak,
                denoiser.swapped(student.made()),
            ):
                predicted = denoiser.predict(*given)
                target = torch.zeros_like(predicted)
                regression_loss(predicted, target, torch.ones(batch)).backward()
            shapes = tuple(master.shape for master in masters)
        return shapes, peak.most

    def _evaluation(self) -> int:
        """The peak of one row's evaluation, of which nothing is kept for a gradient."""
        with _fake(), torch.no_grad():
            denoiser: Denoiser = self._denoiser.hollow()
            given = self._given(1)
            with _Peak(denoiser.parameters().values()) as peak:
                denoiser.predict(*given)
        return peak.most

    def _given(self, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        """What `predict` takes."""

        def rows(tensor: Tensor) -> Tensor:
            return torch.empty(batch, *tensor.shape[1:], dtype=tensor.dtype)

        x = torch.empty(batch, *self._latent)
        return x, torch.ones(batch), self._prompt.map(rows)


def _fake() -> FakeTensorMode:
    """Inside, tensors are made without contents; a model's own constants are taken as such."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class _Peak(TorchDispatchMode):
    """Counts the bytes that are alive of what is allocated inside; `most` is their peak.

    before: tensors that are there already, and whose views cost nothing.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self.most = self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._before:
            return
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key)
