"""One measured number: pairs of ours and the other, and their ratio."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Figure:
    """Pairs of values of which less is better.

    Attributes:
        name: the benchmark's, and after a comma what tells this figure from its others.
        what: ours against the other, in words. unit: of both.
        bar: the ratio that it is to stay below; None where none is set.
        further: whatever else is worth keeping, as JSON knows it.
    """

    name: str
    what: str
    unit: str
    bar: float | None
    ours: Sequence[float]
    other: Sequence[float]
    further: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[float]:
        """ours / other, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs."""
        return statistics.median(self.pairs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "bar": self.bar,
            "ours": list(self.ours),
            "other": list(self.other),
            "pairs": self.pairs,
            "ratio": self.ratio,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            **self.further,
        }


def table(figures: Sequence[Figure]) -> str:
    """Markdown; medians of both sides, and of the ratios."""
    lines = ["| benchmark | ours | other | ratio | bar | pairs |", "| --- " * 6 + "|"]
    for f in figures:
        ours, other = (f"{statistics.median(side):.4g} {f.unit}" for side in (f.ours, f.other))
        bar = "" if f.bar is None else f"{f.bar:g}"
        name = f"`{f.name}`: {f.what}"
        lines.append(f"| {name} | {ours} | {other} | {f.ratio:.3f} | {bar} | {len(f.pairs)} |")
    return "\n".join(lines)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage tells there holds the parent's memory too, from before the exec.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
