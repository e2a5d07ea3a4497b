"""A run's work, done by one process, or by several of which each does its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

T = TypeVar("T")


class Alone:
    """The only process of a run, which does all of it: nothing here computes anything.

    `training.ranks` has what takes its place where there are several. Those call the same methods
    in the same order, and all are given the same.

    Attributes:
        rank: the number of this process, from 0 on. count: of all of them.
        neighbours: how many of them are on this machine.
        shards_optimizer: whether each keeps the optimizer's state of its own masters only.
    """

    rank, count, neighbours = 0, 1, 1
    shards_optimizer = False

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item, beginning with the rank's own; there may be none."""
        return items[self.rank :: self.count]

    def most(self, items: int) -> int:
        """Of so many items, the most that a rank has in its share."""
        return -(-items // self.count)

    def gather(self, own: T) -> list[T]:
        """What every rank has, in their order."""
        return [own]

    def of_first(self, own: T) -> T:
        """What the first rank has."""
        return own

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return here

    def total(self, here: float) -> float:
        """The sum over all ranks."""
        return here

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Makes each the sum over all ranks, in place and with the same bits on all."""

    def queue(self, length: int) -> Iterator[int]:
        """Numbers below the length: each comes to one rank, when it is free for it."""
        yield from range(length)

    def optimizer(
        self, kind: type[Optimizer], masters: list[nn.Parameter], options: dict[str, Any]
    ) -> Optimizer:
        """One of that kind, whose state may be sharded."""
        return kind(masters, **options)

    def state_of(self, optimizer: Optimizer) -> dict[int, Any]:
        """The whole state, by the number of the master, on the first rank at least."""
        state: dict[int, Any] = optimizer.state_dict()["state"]
        return state

    def load_state(self, optimizer: Optimizer, state: dict[int, Any]) -> None:
        """Takes up what `state_of` gave on the first rank."""
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


ALONE = Alone()
