"""Ten concepts in one run against one, with as many steps: in time, and in memory."""

from __future__ import annotations

import json
import sys

from esd_core.pocket.world import LOOKS, OBJECTS
from esd_core.training.run import erase

from . import pocket
from .figure import Figure, peak_bytes, seconds
from .worker import answer

PAIRS = 3
COUNTS = (10, 1)


def run(pairs: int, steps: int = 200) -> list[Figure]:
    """Every run has a process of its own; memory is what training adds to the loaded model."""
    runs = [
        [answer("concepts", str(n), str(seed), str(steps)) for n in COUNTS] for seed in range(pairs)
    ]
    figures = []
    for index, (name, unit) in enumerate((("concepts", "s"), ("concepts, memory", "MB"))):
        ours, other = ([pair[side][index] for pair in runs] for side in (0, 1))
        what = f"ten concepts in one run against one on pocket, {steps} steps"
        figures.append(Figure(name, what, unit, 1.2, ours, other))
    return figures


def names(count: int) -> list[str]:
    """Looks first, then objects, as pocket knows them."""
    return [*LOOKS[1:], *OBJECTS][:count]


if __name__ == "__main__":
    count, seed, steps = map(int, sys.argv[1:])
    denoiser, host = pocket.load(), pocket.Silent()
    config = pocket.config(concepts=names(count), seed=seed, training__steps=steps)
    before = peak_bytes()
    took = seconds(lambda: erase(denoiser, config, host, host))
    print(json.dumps([took, (peak_bytes() - before) / 1e6]))
