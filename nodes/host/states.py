"""States of stopped runs, in output/esd_training: which one a run goes on from, and which go.

A run is known by its course (a digest), which does not depend on its number of steps. A run that
goes on replaces the state it came from; one that starts anew writes beside it, so that a state is
never replaced by a shorter one.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

from ...esd_core.config.settings import ErasureConfig
from ...esd_core.errors import FileError
from ...esd_core.storage.output import megabytes
from ...esd_core.training.checkpoint import SUFFIX, Summary, listed, summary
from . import folders

_LONGEST = 40
_SHOWN = 5


def find(course: str, steps: int) -> tuple[Summary | None, list[Summary]]:
    """The longest state of a run that is to have so many steps, and those that lie beyond them."""
    states = _of(course)
    within = [state for state in states if state.step <= steps]
    longest = max(within, key=lambda state: state.step, default=None)
    return longest, [state for state in states if state.step > steps]


def new_file(course: str, config: ErasureConfig) -> Path:
    """A name that is not taken, with the concepts in it."""
    name = re.sub(r"\W+", "_", "_".join(concept.name for concept in config.concepts)).strip("_")
    stem = f"{name[:_LONGEST]}-{_key(course)}"
    names = (stem if not number else f"{stem}-{number + 1}" for number in count())
    paths = (folders.states_folder() / f"{name}{SUFFIX}" for name in names)
    return next(path for path in paths if not path.exists())


def clear(course: str, step: int) -> None:
    """Removes the states of a run that has got to that step and lies in a file."""
    for state in _of(course):
        if state.step <= step:
            state.path.unlink(missing_ok=True)


def told() -> str:
    """What stopped runs there are, and what they take; "" without any."""
    states = listed(folders.states_folder())
    if not states:
        return ""
    total = megabytes(sum(state.size for state in states))
    largest = sorted(states, key=lambda state: -state.size)[:_SHOWN]
    names = [
        f"{', '.join(s.concepts)} (step {s.step}, {megabytes(s.size)}, {s.path.name})"
        for s in largest
    ]
    more = f" and {len(states) - _SHOWN} more" if len(states) > _SHOWN else ""
    folder = folders.shown(folders.states_folder())
    return f"stopped runs in {folder}, {total}: {'; '.join(names)}{more}"


def _of(course: str) -> list[Summary]:
    """Unreadable ones are left out: they are in nobody's way, and nothing goes on from them."""
    found = []
    for path in sorted(folders.states_folder().glob(f"*{_key(course)}*{SUFFIX}")):
        try:
            found.append(summary(path))
        except FileError:
            continue
    return found


def _key(course: str) -> str:
    return course[:16]
