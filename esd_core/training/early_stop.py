"""Ends a run before its last step, where its probes say so."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config.settings import TrainingConfig
from ..errors import ESDError
from ..method.probes import ProbeReport
from ..method.terms import Term
from .student import Student

RUNNING, ERASED, DRIFTED = "running", "erased", "drifted"


class EarlyStop:
    """Watches `until` (little enough of every concept is left) and `max_drift` (too much else has
    moved: the last state within it comes back).

    Attributes:
        status: RUNNING, ERASED or DRIFTED; a run that breaks off after its end is not trained
            further when it is resumed.
    """

    def __init__(self, training: TrainingConfig, preserved: tuple[Term, ...]) -> None:
        """preserved: those whose drift counts."""
        self._until, self._max_drift = training.until, training.max_drift
        self._preserved = preserved
        self.status = RUNNING
        self._was_below = False
        self._best: dict[str, Tensor] = {}
        self._best_step = 0

    def check(self, report: ProbeReport, student: Student, step: int) -> int:
        """Judges a probe; returns the step that the student's masters are of from now on."""
        step = self.check_drift(report, student, step)
        if self.status == DRIFTED:
            return step
        if self._max_drift:
            self._best = {name: m.clone() for name, m in student.state_dict().items()}
            self._best_step = step
        is_below = self._until > 0 and max(report.share.values()) <= self._until
        # One reading may be a dip of a noisy run: the share must stay there for a second one.
        if is_below and self._was_below:
            self.status = ERASED
        self._was_below = is_below
        return step

    def check_drift(self, report: ProbeReport, student: Student, step: int) -> int:
        """As `check`, of the drift alone; ESDError when no probe has been within it."""
        if not self._max_drift or self._drift(report) <= self._max_drift:
            return step
        if not self._best:
            raise ESDError(
                "the first probe already lies beyond `training.max_drift`: lower "
                "`training.learning_rate`, lower `training.probe_every`, or raise "
                "`training.max_drift`"
            )
        self.status = DRIFTED
        student.load_state_dict(self._best)
        return self._best_step

    def _drift(self, report: ProbeReport) -> float:
        return max(report.drift[term.student] for term in self._preserved)

    def state_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "was_below": self._was_below,
            "best": self._best,
            "best_step": self._best_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """KeyError when a part is missing."""
        self.status, self._was_below = state["status"], state["was_below"]
        self._best, self._best_step = dict(state["best"]), state["best_step"]
