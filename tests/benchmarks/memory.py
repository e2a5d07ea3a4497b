"""The peak of memory of one training step of SDXL, esd-x-strict, 256x256, 16-bit weights.

The other is what the official code holds: two UNets, gradients for all weights, Adam in 16 bits.
Each side runs in a process of its own, up to some 18 GB. The optimizer's state is made in a first
step; the second one has it all.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from esd_core.erase import prepare
from esd_core.selection import select

from . import full_size
from .figure import Figure, peak_bytes
from .worker import answer

PAIRS = 3
LEAN = {"training.rank": 8, "training.gradient_checkpointing": "on"}
STEPS = 2


def run(pairs: int, sizes: str = "sdxl") -> list[Figure]:
    other = [answer("memory", "official", sizes) / 1e9 for _ in range(pairs)]
    figures = []
    for name, side, bar in (("memory", "ours", 0.65), ("memory, leanest", "lean", 0.35)):
        ours = [answer("memory", side, sizes) / 1e9 for _ in range(pairs)]
        kind = "rank 8, checkpointing" if side == "lean" else "default settings"
        what = f"peak of a training step, {kind}, against the official code's way"
        figures.append(Figure(name, what, "GB", bar, ours, other))
    return figures


def ours(settings: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Steps on a bank of two trajectories of two steps: that is all they need."""
    short = {"trajectory.steps": 2, "trajectory.count": 2}
    config = full_size.config(**short, **settings)
    trainer = prepare(full_size.denoiser(torch.bfloat16, sizes), config)
    with trainer.denoiser.checkpointed(trainer.checkpointing):
        for _ in range(STEPS):
            trainer.take_step()


def official(sizes: dict[str, Any]) -> None:
    """Student and frozen teacher; all of the student has gradients, which only the trained lose."""
    teacher = full_size.denoiser(torch.bfloat16, sizes)
    student = full_size.denoiser(torch.bfloat16, sizes)
    student.unet.requires_grad_(True)
    names = select("esd-x-strict", student.parameters(), "sdxl")
    optimizer = torch.optim.Adam([student.parameters()[name] for name in names], lr=2e-4)
    rows = student.encode(["Van Gogh", ""], 256, 256)
    x, sigma = torch.randn(1, 4, 32, 32), torch.ones(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            concept, empty = (teacher.predict_noise(x, sigma, rows.select([i])) for i in (0, 1))
        predicted = student.predict_noise(x, sigma, rows.select([0]))
        (predicted - (2 * empty - concept)).square().mean().backward()
        optimizer.step()


if __name__ == "__main__":
    side, named = sys.argv[1:]
    chosen = {"sdxl": full_size.SDXL, "pocket": full_size.SMALL}[named]
    if side == "official":
        official(chosen)
    else:
        ours(LEAN if side == "lean" else {}, chosen)
    print(json.dumps(peak_bytes()))
