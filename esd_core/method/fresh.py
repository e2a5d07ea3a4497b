"""The schedule of the public codes, to be measured against.

The official scripts of 2025 draw k uniformly below 50, sample a fresh guided trajectory of k steps
for one training sample, and throw away what they saw on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.denoiser import Schedule
from .bank import Bank, Line, Samples, join

STEPS = 50


class FreshBank(Bank):
    """A bank whose rounds hold as many samples, each at the end of a trajectory of its own."""

    def _gather(
        self, lines: list[Line], noise: torch.Generator, student: Mapping[str, Tensor] | None
    ) -> tuple[Samples, Samples]:
        schedule = self.denoiser.schedule(STEPS)
        parts = []
        for line in lines:
            for _ in range(self.config.trajectory.steps):
                k = int(torch.randint(STEPS, (), generator=noise))
                until = Schedule(schedule.sigmas[: k + 2], schedule.initial_scale)
                own, empty = self._follow([line], self._starts(1, noise), until, student)
                parts.append((own.last(), empty.last()))
        own_all, empty_all = zip(*parts, strict=True)
        return join(own_all), join(empty_all)
