"""A log of runs: a line of JSON for each, in a file of its own beside what they make.

It tells the time, which the files of erasures do not: those are the same bytes whenever they are
made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..config.settings import ErasureConfig
from ..errors import FileError, counted
from ..storage.output import reason

NAME = "esd_history.jsonl"

Record = Mapping[str, Any]


def record(
    config: ErasureConfig,
    model: str,
    ending: str,
    step: int,
    probes: Mapping[str, Any],
    file: str,
) -> dict[str, Any]:
    """What is remembered of a run that has ended now.

    Args:
        model: what it was trained on, as a person knows it.
        ending: of an Outcome.
        probes: of its last report; empty when there is none.
        file: the erasure, or the state of a run that was stopped; "" for neither.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "concepts": [str(concept) for concept in config.concepts],
        "model": model,
        "ending": ending,
        "steps": step,
        "left": probes.get("share", {}),
        "drift": probes.get("drift", {}),
        "file": file,
        "settings": config.flat(),
    }


def append(path: Path, entry: Record) -> None:
    """Adds a line to the log, which is made if there is none. FileError if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except OSError as error:
        raise FileError(f"{path} cannot be written: {reason(error)}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """All runs, the oldest first; lines that were cut short are left out.

    Raises FileError when there is no log, or it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError as error:
        raise FileError(f"there is no history at {path}") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason(error)}") from error
    return [entry for entry in map(_parsed, lines) if entry]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    needed = {"time", "concepts", "model", "ending", "steps", "file"}
    return entry if isinstance(entry, dict) and needed <= entry.keys() else None


def described(entry: Record) -> str:
    """A run on one line: when, what, on what, how, what was left, and where it is."""
    settings = entry.get("settings", {})
    how = f"{settings.get('method', '?')}, {counted(entry['steps'], 'step')}"
    rate = settings.get("training.learning_rate")
    parts = [
        str(entry["time"])[:16].replace("T", " "),
        ", ".join(entry["concepts"]),
        entry["model"],
        f"{how} at {rate:g}" if isinstance(rate, (int, float)) else how,
        *_measured("left", entry.get("left", {}).values()),
        *_measured("drift", entry.get("drift", {}).values()),
        entry["ending"],
        entry["file"] or "no file",
    ]
    return " | ".join(map(str, parts))


def _measured(name: str, values: Iterable[float]) -> list[str]:
    """The worst of what was measured, as far as it is a number."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    return [f"{name} {max(numbers):.1%}"] if numbers else []
