"""How much of a run is done, and how long the rest takes."""

from __future__ import annotations

import time

_TRAINED_ROW = 3.0
"""What a trained row takes, in evaluations, until the first has been timed: forward, and back."""


class Clock:
    """Counts rows of the network, evaluated and trained on, and the time that either kind takes.

    A kind's time runs until the other one begins: by then a GPU has finished it, since what comes
    of it was read.
    """

    def __init__(self) -> None:
        self.left = {False: 0, True: 0}
        """Rows to come, by whether they are trained on."""
        self._done = {False: 0, True: 0}
        self._seconds = {False: 0.0, True: 0.0}
        self._kind, self._since = False, time.monotonic()

    def expect(self, evaluations: int, trained: int) -> None:
        """The rows that are left from here on."""
        self.left = {False: evaluations, True: trained}

    def count(self, rows: int, is_trained: bool) -> None:
        """Rows that go through the network now."""
        self._note()
        self._kind = is_trained
        self._done[is_trained] += rows
        self.left[is_trained] = max(0, self.left[is_trained] - rows)

    @property
    def share_done(self) -> float:
        """Of the whole run, 0..1."""
        done, left = (rows[False] + _TRAINED_ROW * rows[True] for rows in (self._done, self.left))
        return done / (done + left) if done else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None before anything was timed."""
        self._note()
        row = self._row(False)
        if not row:
            return None
        trained = self._row(True) or _TRAINED_ROW * row
        return self.left[False] * row + self.left[True] * trained

    def _note(self) -> None:
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        self._since = now

    def _row(self, is_trained: bool) -> float:
        """Seconds, on average."""
        done = self._done[is_trained]
        return self._seconds[is_trained] / done if done else 0.0


def written(seconds: float) -> str:
    """1:23, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
