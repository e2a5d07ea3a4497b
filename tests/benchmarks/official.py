"""The baseline: the schedule of the public codes.

The official scripts of 2025 draw k uniformly below 50, sample a fresh guided trajectory of k steps
for one training sample, and throw away what they saw on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from esd_core.config.settings import ErasureConfig
from esd_core.method.bank import Bank, _Found
from esd_core.method.contexts import term_source
from esd_core.method.terms import RoundTerms
from esd_core.models.denoiser import Denoiser
from esd_core.training.trainer import Trainer

from . import pocket

STEPS = 50


def official(denoiser: Denoiser, config: ErasureConfig) -> Trainer:
    """A trainer like any other, but for where its samples come from."""
    trainer = pocket.trainer(denoiser, config)
    size = config.width, config.height
    trainer.rounds.bank = OfficialScheduleBank(
        denoiser,
        term_source(config, denoiser.architecture),
        config.trajectory,
        size,
        trainer.plan.sampling_batch,
    )
    return trainer


class OfficialScheduleBank(Bank):
    """A bank whose rounds hold as many samples, each at the end of a trajectory of its own."""

    def _rollout_all(
        self, terms: RoundTerms, noise: torch.Generator, student: Mapping[str, Tensor] | None
    ) -> _Found:
        schedule = self.denoiser.schedule(STEPS, 64, 64)
        whole = _Found()
        for (term,) in terms.followed:
            for _ in range(self.trajectory.steps):
                k = int(torch.randint(STEPS, (), generator=noise))
                found, steps = _Found(), range(k + 1)
                levels, x = schedule.part(steps), self._starts(1, noise)
                self._rollout({0: term}, x, levels, steps, found, student)
                whole.followed.append(found.followed[-1])
                whole.free += found.free[-1:]
                whole.evaluations += found.evaluations
        return whole
