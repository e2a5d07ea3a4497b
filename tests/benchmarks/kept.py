"""Finished parts of a long benchmark, in a JSON file from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """Results by a key that names all that decides them; without a path they are not written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        has_file = path is not None and path.exists()
        self.results: dict[str, Any] = json.loads(path.read_text()) if has_file else {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept under the key, or is made now."""
        if key not in self.results:
            self.results[key] = make()
            self._write()
        return self.results[key]

    def _write(self) -> None:
        """Renamed into place, so that a run that is killed leaves a whole file."""
        if self._path:
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
            part.replace(self._path)
