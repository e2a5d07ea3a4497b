"""The same erasure by the bank and by the schedule of the public codes, in pairs."""

from __future__ import annotations

from esd_core.config.settings import ErasureConfig
from esd_core.method.bank import Bank
from esd_core.method.fresh import FreshBank
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.pocket.judge import Reading, judge
from esd_core.training.run import erase

from . import pocket
from .figure import Figure

PAIRS = 3
PER_PAIR = 16


def run(pairs: int, config: ErasureConfig | None = None, per_pair: int = PER_PAIR) -> list[Figure]:
    """Seconds of whole runs, sampling and training; `runs` has what they cost and what they left.

    Args:
        config: of the first pair, pocket's preset where none is given; seeds follow its own.
        per_pair: pictures of every object in every look that a result is judged by.
    """
    first, denoiser = config or pocket.config(), pocket.load()
    before = judge(denoiser, [], per_pair).before
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "other": []}
    for seed in range(first.seed, first.seed + pairs):
        for side, bank_type in (("ours", Bank), ("other", FreshBank)):
            result = _measure(denoiser, first.override({"seed": seed}), bank_type, before, per_pair)
            runs[side].append(result)
    ours, other = ([run["seconds"] for run in of_side] for of_side in runs.values())
    what = "a whole erasure on pocket, against the official schedule"
    return [Figure("erase", what, "s", 0.1, ours, other, {"runs": runs})]


def _measure(
    denoiser: DiffusersDenoiser,
    config: ErasureConfig,
    bank_type: type[Bank],
    before: tuple[Reading, ...],
    per_pair: int,
) -> dict[str, float]:
    host = pocket.Silent()
    result = erase(denoiser, config, host, host, bank_type=bank_type)
    judged = judge(denoiser, [(result.erasure, 1.0)], per_pair, before=before).as_dict()
    erased = [c["after"] for c in judged["concepts"].values() if c["erased"]]
    return {
        "seconds": result.report["seconds"],
        "evaluations": result.report["teacher_evaluations"],
        "samples": result.report["samples"],
        "shown": max(erased),
        "worst_drop": judged["worst_drop"],
    }
