"""Regression samples: states of trajectories with what the student should predict there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..config.settings import ErasureConfig
from .shares import Alone


@dataclass(frozen=True)
class Samples:
    """N samples; the first `erasing` of them erase, the rest preserve.

    Attributes:
        x: noisy latents, float32 [N, C, h, w]. sigma: their noise levels, float32 [N].
        condition: which of the bank's prompts the student is given, int64 [N].
        target: what it should predict, float32 [N, C, h, w]. weight: in the loss, float32 [N].
    """

    x: Tensor
    sigma: Tensor
    condition: Tensor
    target: Tensor
    weight: Tensor
    erasing: int

    def __len__(self) -> int:
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "erasing"}

    def select(self, rows: Tensor) -> Samples:
        """These samples, in this order, which must have those that erase first."""
        chosen = {name: value[rows] for name, value in self.tensors().items()}
        return Samples(**chosen, erasing=int((rows < self.erasing).sum()))

    def split(self, size: int) -> list[Samples]:
        """Parts of at most `size` samples; none where there are no samples."""
        return [self.select(rows) for rows in torch.arange(len(self)).split(size) if len(rows)]

    def share(self, ranks: Alone) -> Samples:
        """Those that a rank trains on, of a batch for all."""
        return self.select(torch.arange(len(self))[ranks.rank :: ranks.count])

    def subsample(self, count: int, generator: torch.Generator) -> Samples:
        """As many of them, at random; of samples that all preserve."""
        return self.select(torch.randperm(len(self), generator=generator)[:count])

    def to(self, device: torch.device) -> Samples:
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        return Samples(**moved, erasing=self.erasing)

    @staticmethod
    def cat(parts: Sequence[Samples], places: Tensor | None = None) -> Samples:
        """All samples of all parts, those that erase first.

        places: by which either sort is put in order, int64 [N]; by default they stay as they come.
        """
        preserves = torch.cat([torch.arange(len(part)) >= part.erasing for part in parts])
        order = torch.arange(len(preserves)) if places is None else places.argsort(stable=True)
        order = order[preserves[order].int().argsort(stable=True)]
        joined = {
            name: torch.cat([part.tensors()[name] for part in parts])[order]
            for name in parts[0].tensors()
        }
        return Samples(**joined, erasing=sum(part.erasing for part in parts))

    def batches(
        self, generator: torch.Generator, batch_size: int, reuse: int, preserving: int = 1
    ) -> Tensor:
        """Rows of shuffled batches, int64 [batches, B]: every one erases and preserves.

        Each erasing sample comes `reuse` times, but for the few that fill no whole batch.

        preserving: samples of a batch that preserve for every one that erases; fewer where there
            are not as many.
        """
        rest = len(self) - self.erasing
        part = preserved_part(batch_size, preserving) if rest else 0
        share = min(batch_size - part, self.erasing)
        count = self.erasing // share
        if rest:
            part = max(1, min(part, rest // count))
            count = min(count, rest // part)
        passes = []
        for _ in range(reuse):
            shuffled = [
                (torch.randperm(self.erasing, generator=generator), share),
                (self.erasing + torch.randperm(rest, generator=generator), part),
            ]
            parts = [rows[: count * size].view(count, size) for rows, size in shuffled if size]
            passes.append(torch.cat(parts, 1))
        return torch.cat(passes)


def preserved_part(batch_size: int, preserving: int) -> int:
    """How many samples of a batch preserve, with so many for every one that erases."""
    return batch_size * preserving // (preserving + 1)


def batches_of(config: ErasureConfig, erasing: int, preserving: int) -> int:
    """How many `Samples.batches` makes of a round with so many samples that erase."""
    batch = config.training.batch_size
    share = batch - (preserved_part(batch, preserving) if config.preserves else 0)
    return erasing // min(share, erasing) * config.trajectory.reuse


@dataclass(frozen=True)
class Placed:
    """Samples, and for each the place that it has among those of a round, int64 [N]."""

    places: Tensor
    samples: Samples

    @staticmethod
    def in_order(parts: Sequence[Placed]) -> Samples:
        """All samples of all parts by their places, those that erase first."""
        places = torch.cat([part.places for part in parts])
        return Samples.cat([part.samples for part in parts], places)
