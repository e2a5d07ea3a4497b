"""The baseline: the schedule of the public codes.

The official scripts of 2025 draw k uniformly below 50, sample a fresh guided trajectory of k steps
for one training sample, and throw away what they saw on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from esd_core.config.settings import ErasureConfig
from esd_core.method.bank import Bank, Line, Samples, join
from esd_core.models.denoiser import Denoiser, Schedule
from esd_core.training.run import prepare
from esd_core.training.trainer import Trainer

STEPS = 50


def official(denoiser: Denoiser, config: ErasureConfig) -> Trainer:
    """A trainer like any other, but for where its samples come from."""
    trainer = prepare(denoiser, config)
    bank = OfficialScheduleBank(denoiser, config)
    bank.together = trainer.bank.together
    trainer.bank = bank
    return trainer


class OfficialScheduleBank(Bank):
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
