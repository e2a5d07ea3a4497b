"""What a run tells its host, and what a host may ask of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..method.probes import ProbeReport
from ..models.swap import Weight


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    step: int
    total: int
    loss: float


class Events(Protocol):
    """What a host is told."""

    def on_step(self, progress: Progress) -> None: ...

    def on_preview(self, step: int, student: Mapping[str, Weight]) -> None:
        """Also at the end, of what comes out. A preview that fails is the host's to tell of."""

    def on_probe(self, step: int, report: ProbeReport) -> None: ...

    def on_save(self, step: int, path: Path) -> None: ...


class Control(Protocol):
    """What a host may ask."""

    def should_stop(self) -> bool:
        """Break off now; the state is saved, to be resumed."""

    def should_finish(self) -> bool:
        """End now, as if the step just made were the last; not asked before the first one."""


@dataclass
class Outcome:
    """How a run ended: "done", "erased" (until), "drifted" (max_drift), "by hand" (asked to
    finish early) or "stopped"."""

    ending: str
    step: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    probes: ProbeReport | None = None
