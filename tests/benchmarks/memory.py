"""The peak of memory of one training step of SDXL, esd-x-strict, 256x256, 16-bit weights.

The other is what the official code holds: two UNets, gradients for all weights, Adam in 16 bits.
Each side runs in a process of its own, up to some 18 GB. The optimizer's state is made in a first
step; the second one has it all.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch
from trainers import bank_of

from esd_core.config.settings import ErasureConfig
from esd_core.method.probes import Probes
from esd_core.method.rounds import Rounds
from esd_core.training import plan as memory
from esd_core.training.run import make_student
from esd_core.training.selection import select
from esd_core.training.trainer import Trainer

from . import full_size
from .figure import Figure, peak_bytes
from .worker import answer

PAIRS = 3
LEAN = {
    "preserve_empty": False,
    "training.batch_size": 1,  # as the official code's
    "training.rank": 4,
    "training.optimizer": "adafactor",
    "training.gradient_checkpointing": "on",
}
STEPS = 2


def run(pairs: int, sizes: str = "sdxl") -> list[Figure]:
    other = [_peak("official", sizes) for _ in range(pairs)]
    figures = []
    for name, settings, bar in (("memory", {}, 0.65), ("memory, leanest", LEAN, 0.35)):
        ours = [_peak("ours", sizes, json.dumps(settings)) for _ in range(pairs)]
        kind = "rank 4, Adafactor, checkpointing, one sample" if settings else "default settings"
        what = f"peak of a training step, {kind}, against the official code's way"
        figures.append(Figure(name, what, "GB", bar, ours, other))
    return figures


def _peak(*words: str) -> float:
    peak: float = answer("memory", *words)["peak"] / 1e9
    return peak


def ours(sizes: dict[str, Any], dtype: torch.dtype, settings: dict[str, Any]) -> dict[str, int]:
    """Two steps on a bank of one trajectory of two steps: that is all they need.

    Returns the process' peak, what it grew by from the loaded model on, and what was planned.
    """
    short = {"trajectory.steps": 2, "trajectory.count": 1}
    config = full_size.config(**short, **settings)
    denoiser = full_size.denoiser(dtype, sizes)
    _take_steps(denoiser, config.override({"width": 64, "height": 64}))  # what libraries hold
    needed = memory.Planner(denoiser, config).plan(config).needed
    before = psutil.Process().memory_info().rss
    _take_steps(denoiser, config)
    return {"peak": peak_bytes(), "grown": peak_bytes() - before, "needed": needed}


def _take_steps(denoiser: full_size.RandomDenoiser, config: ErasureConfig) -> None:
    plan = memory.check(denoiser, config)
    rounds = Rounds(bank_of(denoiser, config), config.training.batch_size, config.seed)
    # Probes sample before and after a training, and are no part of a step.
    probes = cast(Probes, SimpleNamespace(preserved=()))
    trainer = Trainer(denoiser, config, rounds, make_student(denoiser, config), probes, plan)
    with denoiser.checkpointed(plan.checkpointing):
        for _ in range(STEPS):
            trainer.take_step()


def official(sizes: dict[str, Any]) -> dict[str, int]:
    """Student and frozen teacher; all of the student has gradients, which only the trained lose."""
    teacher = full_size.denoiser(torch.bfloat16, sizes)
    student = full_size.denoiser(torch.bfloat16, sizes)
    student.network.requires_grad_(True)
    names = select("esd-x-strict", student.parameters(), student.architecture)
    optimizer = torch.optim.Adam([student.parameters()[name] for name in names], lr=2e-4)
    rows = student.encode(["Van Gogh", ""], 256, 256)
    x, sigma = torch.randn(1, 4, 32, 32), torch.ones(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            concept, empty = (teacher.predict(x, sigma, rows.select([i])) for i in (0, 1))
        predicted = student.predict(x, sigma, rows.select([0]))
        (predicted - (2 * empty - concept)).square().mean().backward()
        optimizer.step()
    return {"peak": peak_bytes()}


if __name__ == "__main__":
    side, named, *words = sys.argv[1:]
    sizes, dtype = {
        "sdxl": (full_size.SDXL, torch.bfloat16),
        "pocket": (full_size.SMALL, torch.float32),
    }[named]
    asked = json.loads(words[0]) if words else {}
    measured = official(sizes) if side == "official" else ours(sizes, dtype, asked)
    print(json.dumps(measured))
