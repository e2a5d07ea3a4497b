"""Ranks: several processes, with a device each, that train one student together.

Every rank has the whole state of the run but works on its share: some of a round's trajectories and
some rows of each batch. Noise and order are drawn for the whole run on every rank, samples are
gathered and gradients summed: so all take the same step, to the last bit, and it is the step that
one process would take, but for rounding.

This is all of torch.distributed that there is here; a run of one process comes by none of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from ..errors import ESDError
from ..method.shares import Alone

T = TypeVar("T")
_BUCKET = 2**24
"""Values that are summed by one call: 64 MB in float32."""
_PATIENCE = timedelta(days=1)
"""For a rank that draws previews, or is at its last run of many; one that is lost is no matter of
time."""
_LOST = 2
"""Exit code of a run that a rank was killed in."""
_GRACE = 3.0
"""Seconds in which the first rank, which knows most, may say that another is lost."""


@dataclass(frozen=True)
class Place:
    """Which of the ranks this process is.

    Attributes:
        local: its number on its own machine. neighbours: how many there are.
        meeting: where ranks find each other, "tcp://host:port"; "env://" is as torchrun says.
    """

    rank: int
    count: int
    local: int
    neighbours: int
    meeting: str = "env://"


class RankLost(ESDError):
    """Another rank has ended before the run."""

    __module__ = ESDError.__module__


class Together(Alone):
    """One of several ranks; all call the same methods in the same order.

    A method that waits for the others raises RankLost when one of them is gone.
    """

    def __init__(
        self, place: Place, store: distributed.Store, shards_optimizer: bool = False
    ) -> None:
        self.rank, self.count, self.neighbours = place.rank, place.count, place.neighbours
        self.shards_optimizer = shards_optimizer
        self._store = store
        # Over sockets, also between GPUs: they tell at once when the other end is gone.
        messages = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(messages, distributed.ProcessGroup)
        self._messages = messages

    def gather(self, own: T) -> list[T]:
        gathered: list[Any] = [None] * self.count
        with _noticing():
            distributed.all_gather_object(gathered, own, group=self._messages)
        return gathered

    def of_first(self, own: T) -> T:
        sent: list[Any] = [own]
        with _noticing():
            distributed.broadcast_object_list(sent, 0, group=self._messages)
        return sent[0]

    def any(self, here: bool) -> bool:
        return self.total(float(here)) > 0

    def total(self, here: float) -> float:
        value = torch.tensor(here, dtype=torch.float64)
        with _noticing():
            distributed.all_reduce(value, group=self._messages)
        return value.item()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Flat, a bucket at a time, so that they are never there twice."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with _noticing():
                self._add_up(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _add_up(self, flat: Tensor) -> None:
        if _has_nccl(flat.device):
            distributed.all_reduce(flat)
        else:
            on_cpu = flat.cpu()
            distributed.all_reduce(on_cpu, group=self._messages)
            flat.copy_(on_cpu)

    def optimizer(
        self, kind: type[Optimizer], masters: list[nn.Parameter], options: dict[str, Any]
    ) -> Optimizer:
        if self.shards_optimizer:
            return ZeroRedundancyOptimizer(masters, kind, **options)
        return super().optimizer(kind, masters, options)

    def state_of(self, optimizer: Optimizer) -> dict[int, Any]:
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            with _noticing():
                optimizer.consolidate_state_dict(to=0)
            if not self.is_first:
                return {}
        return super().state_of(optimizer)

    def load_state(self, optimizer: Optimizer, state: dict[int, Any]) -> None:
        if not isinstance(optimizer, ZeroRedundancyOptimizer):
            return super().load_state(optimizer, state)
        # By the optimizer of this rank's own masters: its own way leaves Adam's steps on the CPU.
        masters = optimizer.param_groups[0]["params"]
        numbers = {master: number for number, master in enumerate(masters)}
        own = [numbers[master] for master in optimizer.optim.param_groups[0]["params"]]
        kept = {place: state[number] for place, number in enumerate(own) if number in state}
        super().load_state(optimizer.optim, kept)

    def queue(self, length: int) -> Iterator[int]:
        while (number := int(self._store.add("queue", 1)) - 1) < length:
            yield number

    def tells(self, error: BaseException) -> bool:
        """Whether this rank is to say why the run ends, which one of them does."""
        if isinstance(error, RankLost) and not self.is_first:
            time.sleep(_GRACE)
        try:
            return int(self._store.add("told", 1)) == 1
        except RuntimeError:  # it went with the first rank
            return True


@contextmanager
def joined(
    place: Place, device: torch.device, shards_optimizer: bool = False
) -> Iterator[Together]:
    """This process as a rank, once all others are there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, _, _ = next(distributed.rendezvous(place.meeting, place.rank, place.count))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if _has_nccl(device) else "gloo",
        store=distributed.PrefixStore("ranks", store),
        rank=place.rank,
        world_size=place.count,
    )
    yield Together(place, store, shards_optimizer)
    distributed.destroy_process_group()  # not after an error: it would wait for the others


def launch(count: int, words: Sequence[str]) -> int:
    """Runs the command `esd` with these words as so many ranks on this machine; its exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # ranks tell it themselves
    options = ["--standalone", f"--nproc-per-node={count}", "-m", "esd_core", *words]
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else _LOST
    except SignalException as error:
        return 128 + error.sigval
    return 0


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            "another rank of this run has ended, killed or with a machine that went away"
        ) from error


def _has_nccl(device: torch.device) -> bool:
    return device.type == "cuda" and distributed.is_nccl_available()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
