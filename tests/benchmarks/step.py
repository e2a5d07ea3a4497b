"""One training step, and the bare student forward and backward in plain torch."""

from __future__ import annotations

import json
import sys

import torch

from esd_core.config.settings import ErasureConfig
from esd_core.models.headless import Headless

from . import full_size, pocket, variants
from .bare import Bare
from .figure import Figure, seconds
from .worker import answer

PAIRS = 5
FULL_PAIRS = 3


def run(pairs: int) -> list[Figure]:
    """On pocket, and on SDXL of full size in float32: some 17 GB, in a process of its own."""
    what = "a training step, against the student's bare forward and backward"
    figures = [Figure("step", f"{what}, pocket", "s", 1.05, *of_pocket(pairs))]
    times = answer("step", str(min(pairs, FULL_PAIRS)))
    figures.append(Figure("step, full size", f"{what}, SDXL", "s", 1.05, *times))
    return [*figures, *variants.run(pairs)]


def of_pocket(pairs: int) -> tuple[list[float], list[float]]:
    return measured(pocket.load(), pocket.config(training__steps=10_000), pairs, repeats=8)


def measured(
    denoiser: Headless, config: ErasureConfig, pairs: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of a training step, and of the bare one, turn by turn; `repeats` of each a pair."""
    trainer = pocket.trainer(denoiser, config)
    bare = Bare(trainer)
    trainer.take_step()  # which samples the round, and is slow like every first
    bare.step()
    ours, other = [], []
    for _ in range(pairs):
        sums = [0.0, 0.0]
        for _ in range(repeats):
            if not trainer.rounds.ready:
                trainer.take_step()  # samples, which is no part of a step
            sums[0] += seconds(trainer.take_step)
            sums[1] += seconds(bare.step)
        ours.append(sums[0] / repeats)
        other.append(sums[1] / repeats)
    return ours, other


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    settings = full_size.config(**{"trajectory.steps": 4, "trajectory.count": 1})
    sides = measured(full_size.denoiser(torch.float32), settings, int(sys.argv[1]), repeats=1)
    print(json.dumps(sides))
