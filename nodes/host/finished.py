"""Runs that have been made: their files, found again by what went into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from ...esd_core.errors import FileError
from ...esd_core.files.metadata import Key
from ...esd_core.storage.reading import read_metadata
from . import folders


def find(prefix: str, run: str, steps: int) -> Path | None:
    """A file that a run with that digest has made, if it is still there.

    Those of the prefix come first, the newest before all, then any below output/loras.
    """
    own = folders.numbered_files(folders.LORAS, prefix)
    paths = chain(own, folders.written_files(folders.LORAS))
    return next((path for path in paths if _is_made_by(path, run, steps)), None)


def _is_made_by(path: Path, run: str, steps: int) -> bool:
    try:
        metadata = read_metadata(path)
    except FileError:  # somebody else's
        return False
    return metadata.get(Key.RUN) == run and is_whole(metadata, steps)


def is_whole(metadata: Mapping[str, str], steps: int) -> bool:
    """Whether the file holds what was asked for: all steps, or a run that ended by itself."""
    ending = metadata.get(Key.ENDING)
    if ending == "done":
        return metadata.get(Key.STEPS) == str(steps)
    return ending in ("erased", "drifted")


class HandedOut:
    """Files that nodes have named in their outputs, which the host keeps and hands out again.

    A file that has been deleted since must not be: its prefix then counts as changed.
    """

    def __init__(self) -> None:
        self._files: dict[str, set[Path]] = {}
        self._losses = Counter[str]()

    def add(self, prefix: str, path: Path) -> None:
        self._files.setdefault(prefix, set()).add(path)

    def losses(self, prefix: str | None) -> int:
        """How often files of that prefix have been found missing; None: of any, as of a link."""
        for name, paths in self._files.items():
            missing = {path for path in paths if not path.is_file()}
            self._losses[name] += bool(missing)
            paths -= missing
        return self._losses.total() if prefix is None else self._losses[prefix]


handed_out = HandedOut()
