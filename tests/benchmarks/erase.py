"""The same erasure by the bank and by the schedule of the public codes, in pairs."""

from __future__ import annotations

from collections.abc import Callable

from esd_core.config.settings import ErasureConfig
from esd_core.models.headless import Headless
from esd_core.pocket.judge import Reading, judge
from esd_core.training.run import finish
from esd_core.training.trainer import Trainer

from . import pocket
from .figure import Figure
from .official import official

PAIRS = 3
PER_PAIR = 16
"""Pictures of every object in every look that a result is judged by."""


def run(pairs: int) -> list[Figure]:
    """Seconds of whole runs, sampling and training; `runs` has what they cost and what they left.

    Each pair has a seed of its own.
    """
    denoiser = pocket.load()
    before = judge(denoiser, [], PER_PAIR).before
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "other": []}
    for seed in range(pairs):
        for side, make in (("ours", pocket.trainer), ("other", official)):
            runs[side].append(_measure(denoiser, pocket.config(seed=seed), make, before))
    ours, other = ([run["seconds"] for run in of_side] for of_side in runs.values())
    what = "a whole erasure on pocket, against the official schedule"
    return [Figure("erase", what, "s", 0.1, ours, other, {"runs": runs})]


def _measure(
    denoiser: Headless,
    config: ErasureConfig,
    make: Callable[[Headless, ErasureConfig], Trainer],
    before: tuple[Reading, ...],
) -> dict[str, float]:
    host = pocket.Silent()
    trainer = make(denoiser, config)
    result = finish(trainer, trainer.run(host, host))
    judged = judge(denoiser, [(result.erasure, 1.0)], PER_PAIR, before=before).as_dict()
    erased = [c["after"] for c in judged["concepts"].values() if c["erased"]]
    return {
        "seconds": result.report["seconds"],
        "evaluations": result.report["teacher_evaluations"],
        "samples": result.report["samples"],
        "shown": max(erased),
        "worst_drop": judged["worst_drop"],
    }
