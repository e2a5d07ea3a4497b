"""Regression samples: states of trajectories with what the student should predict there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


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
        """Parts of at most `size` samples."""
        return [self.select(rows) for rows in torch.arange(len(self)).split(size)]

    def subsample(self, count: int, generator: torch.Generator) -> Samples:
        """As many of them, at random; of samples that all preserve."""
        return self.select(torch.randperm(len(self), generator=generator)[:count])

    def to(self, device: torch.device) -> Samples:
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        return Samples(**moved, erasing=self.erasing)

    @staticmethod
    def cat(parts: Sequence[Samples]) -> Samples:
        """All samples of all parts, those that erase first."""
        erasing = [torch.arange(len(part)) < part.erasing for part in parts]
        order = torch.cat(erasing).int().argsort(descending=True, stable=True)
        joined = {
            name: torch.cat([part.tensors()[name] for part in parts])[order]
            for name in parts[0].tensors()
        }
        return Samples(**joined, erasing=sum(part.erasing for part in parts))

    def batches(self, generator: torch.Generator, batch_size: int, reuse: int) -> Tensor:
        """Rows of shuffled batches, int64 [batches, B]: every one erases and preserves in halves.

        Each erasing sample comes `reuse` times, but for the few that fill no whole batch.
        """
        preserving = len(self) - self.erasing
        share = batch_size - (batch_size // 2 if preserving else 0)
        halves = [(0, self.erasing, min(share, self.erasing))]
        if preserving:
            halves.append((self.erasing, preserving, min(batch_size // 2, preserving)))
        passes = []
        for _ in range(reuse):
            shuffled = [start + torch.randperm(n, generator=generator) for start, n, _ in halves]
            batches = min(n // size for _, n, size in halves)
            parts = [
                rows[: batches * size].view(batches, size)
                for rows, (_, _, size) in zip(shuffled, halves, strict=True)
            ]
            passes.append(torch.cat(parts, 1))
        return torch.cat(passes)
