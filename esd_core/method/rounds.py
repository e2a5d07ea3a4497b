"""Batches of samples, round after round: what a training draws from, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..models.swap import Weight
from .bank import Bank
from .samples import Samples


class Rounds:
    """Draws batches from a bank, and samples a new round when one is used up.

    Two random streams, `noise` (latents, choice of states) and `order` (shuffles), start from one
    seed.

    Attributes:
        next_index: of the round that will be sampled next.
    """

    def __init__(self, bank: Bank, batch_size: int, seed: int) -> None:
        self.bank, self._batch_size = bank, batch_size
        self._noise = torch.Generator().manual_seed(seed)
        self._order = torch.Generator().manual_seed(seed ^ 0x0DDE)
        self.next_index = self._position = 0
        self.samples: Samples | None = None
        self.batches = torch.empty(0, 0, dtype=torch.long)

    @property
    def ready(self) -> int:
        """Batches that are left of this round; 0 where the next needs new trajectories first."""
        return len(self.batches) - self._position

    @property
    def batch_size(self) -> int:
        """Of the batches of this round, which a small round makes smaller; 0 before the first."""
        return self.batches.shape[1]

    def next_batch(self, student: Callable[[], Mapping[str, Weight]]) -> Samples:
        """student: makes its tensors, for trajectories on policy."""
        if not self.ready:
            self._sample(student)
        assert self.samples is not None
        batch = self.samples.select(self.batches[self._position])
        self._position += 1
        return batch

    @torch.no_grad()
    def _sample(self, student: Callable[[], Mapping[str, Weight]]) -> None:
        trajectory = self.bank.trajectory
        on_policy = student() if trajectory.source == "student" else None
        self.samples = self.bank.sample_round(self.next_index, self._noise, on_policy)
        self.batches = self.samples.batches(
            self._order, self._batch_size, trajectory.reuse, self.bank.source.preserving
        )
        self.next_index, self._position = self.next_index + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Samples are handed out as they are: they are replaced, and never written to."""
        samples = self.samples
        return {
            "round": self.next_index,
            "position": self._position,
            "batches": self.batches,
            "samples": samples.tensors() | {"erasing": samples.erasing} if samples else {},
            "noise": self._noise.get_state(),
            "order": self._order.get_state(),
            "evaluations": self.bank.evaluations,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """KeyError when a part is missing."""
        self.next_index, self._position = state["round"], state["position"]
        self.batches = state["batches"]
        self.samples = Samples(**state["samples"]) if state["samples"] else None
        self._noise.set_state(state["noise"])
        self._order.set_state(state["order"])
        self.bank.evaluations = state["evaluations"]
