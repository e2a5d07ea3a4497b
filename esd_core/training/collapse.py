"""Tells a ruined model from an erased one, by the probes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

_MARGIN = 1.5
"""Of the drift that an erasure may need; BENCHMARKS.md says what was measured on either side."""


def collapse(probes: Mapping[str, Any], negative_guidance: float) -> str:
    """What is wrong, and what to change, when other prompts have moved further than the concept
    was to; "" when all is well, or nothing was measured.

    The bar is the run's own: at its target a concept's prediction has moved by (1 + eta) times
    what the concept is worth there (`reach`), and nothing else has to move as far.

    Args:
        probes: of the run's last report, as a mapping. negative_guidance: its eta.
    """
    drifts, reach = probes.get("drift", {}).values(), probes.get("reach", {}).values()
    if not drifts or not reach:
        return ""
    typical, needed = median(drifts), (1 + negative_guidance) * max(reach)
    if typical <= _MARGIN * needed:
        return ""
    return (
        f"the model is ruined: other prompts drifted by {typical:.0%} (half of them more), where "
        f"the erasure moves the concept itself by {needed:.0%}; lower `training.learning_rate`, to "
        "a tenth of it or less, or set `training.max_drift`, which ends a run in time"
    )
