"""Training state on disk: all that a resumed run needs to end with the same bits.

One safetensors file of the parts' `state_dict`s: tensors under their path in the nested mapping
("student/masters/..."), all else as JSON in its metadata.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..storage.reading import read_header, read_tensors
from ..storage.writing import write_safetensors

FORMAT = "esd-training-state-2"

RESUMABLE = {
    f"training.{name}"
    for name in (
        *("steps", "save_every", "preview_every", "probe_every", "until", "max_drift"),
        *("save_dtype", "gradient_checkpointing"),
    )
}
"""Settings that may differ when a run goes on: when it ends or reports, not its result."""

_SEPARATOR = "/"

State = Mapping[str, Any]
"""Nested mappings of tensors and of what JSON knows."""


def state_path(erasure: Path) -> Path:
    """Where the state of the run that makes this erasure lies."""
    return erasure.with_name(f"{erasure.name.removesuffix('.safetensors')}.state.safetensors")


@dataclass(frozen=True)
class StateFile:
    """The state of one run on the disk.

    Attributes:
        settings: of the run, by their dotted names. base: the fingerprint of its model's weights.
    """

    path: Path
    settings: Mapping[str, Any]
    base: str

    def write(self, state: State) -> None:
        """Replaces an older state of the same run at once, or leaves it as it was."""
        whole = {**state, "settings": self.settings, "base": self.base}
        metadata = {"format": FORMAT, "values": json.dumps(_values(whole))}
        write_safetensors(self.path, dict(_tensors(whole)), metadata, force=True)

    def read(self) -> dict[str, Any]:
        """FileError when the file is missing, damaged, of another version, or of another run."""
        state = read_state(self.path)
        if state.get("base") != self.base:
            raise FileError(
                f"{self.path} belongs to a run on another model, or in another precision: give "
                f"the same one, or {_ANEW}"
            )
        refuse_other_run(self.path, state.get("settings", {}), self.settings)
        return state


def read_state(path: Path) -> dict[str, Any]:
    """FileError when the file is missing, damaged, or of another version or kind."""
    metadata = read_header(path).metadata
    found = metadata.get("format", "")
    if found != FORMAT:
        is_state = found.startswith(FORMAT.rpartition("-")[0])
        what = f"is of the version {found}" if is_state else "is not a training state"
        raise FileError(f"{path} {what}, and {FORMAT} is read: {_ANEW}")
    try:
        return _nested(json.loads(metadata["values"]), read_tensors(path))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error


def _nested(state: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Undoes `_tensors` and `_values`."""
    for name, tensor in tensors.items():
        *parents, leaf = name.split(_SEPARATOR)
        inner = state
        for parent in parents:
            inner = inner[parent]
        inner[leaf] = tensor
    return state


def _tensors(state: State, path: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{path}{name}{_SEPARATOR}")
        elif isinstance(value, Tensor):
            yield f"{path}{name}", value


def _values(state: State) -> dict[str, Any]:
    return {
        name: _values(value) if isinstance(value, Mapping) else value
        for name, value in state.items()
        if not isinstance(value, Tensor)
    }


_ANEW = "start the run anew"


def damaged(path: Path) -> FileError:
    """What is said of a state file whose parts are missing or do not fit."""
    return FileError(f"{path} is damaged: {_ANEW}")


def refuse_other_run(path: Path, before: State, now: State) -> None:
    """FileError, with the names, when settings that decide a run's result have changed.

    before, now: flat settings.
    """
    resumable = RESUMABLE
    if now.get("training.schedule") == "linear":  # which falls towards the last step
        resumable = RESUMABLE - {"training.steps"}
    names = sorted({*before, *now} - resumable)
    changed = [f"`{name}`" for name in names if before.get(name) != now.get(name)]
    if changed:
        raise FileError(
            f"{path} belongs to a run with other settings ({', '.join(changed)}): give the same "
            f"ones, or {_ANEW}"
        )
