"""Training state on disk: all that a resumed run needs to end with the same bits.

One safetensors file of the parts' `state_dict`s: tensors under their path in the nested mapping
("student/masters/..."), all else as JSON in its metadata.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..storage.output import megabytes
from ..storage.reading import read_metadata, read_tensors
from ..storage.writing import write_safetensors

FORMAT = "esd-training-state-2"

RESUMABLE = {
    f"training.{name}"
    for name in (
        *("steps", "save_every", "preview_every", "probe_every", "until", "max_drift"),
        *("save_dtype", "gradient_checkpointing", "deterministic"),
    )
}
"""Settings that may differ when a run goes on: when it ends or reports, not its result."""

_SEPARATOR = "/"

State = Mapping[str, Any]
"""Nested mappings of tensors and of what JSON knows."""


def resumable(settings: State) -> set[str]:
    """Those of them that may differ. settings: flat."""
    if settings.get("training.schedule") == "linear":  # which falls towards the last step
        return RESUMABLE - {"training.steps"}
    return RESUMABLE


SUFFIX = ".state.safetensors"


def state_path(erasure: Path) -> Path:
    """Where the state of the run that makes this erasure lies."""
    return erasure.with_name(f"{erasure.name.removesuffix('.safetensors')}{SUFFIX}")


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
        """FileError when the file is missing, damaged, of another version or another run, or of a
        step beyond the run's last."""
        state = read_state(self.path)
        if state.get("base") != self.base:
            raise FileError(
                f"{self.path} belongs to a run on another model, or in another precision: give "
                f"the same one, or {_ANEW}"
            )
        refuse_other_run(self.path, state.get("settings", {}), self.settings)
        step, last = state.get("step", 0), self.settings["training.steps"]
        if step > last:
            raise FileError(
                f"{self.path} holds {step} steps, more than `training.steps` = {last}: raise "
                f"`training.steps`, or {_ANEW}"
            )
        return state


@dataclass(frozen=True)
class Summary:
    """What a state file says of its run, without its tensors."""

    path: Path
    concepts: tuple[str, ...]
    step: int

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self.path.stat().st_size

    def __str__(self) -> str:
        name = ", ".join(self.concepts)
        return f"{name}, step {self.step}, {megabytes(self.size)}: {self.path}"


def summary(path: Path) -> Summary:
    """FileError as for `read_state`."""
    state = _values_of(path)
    try:
        return Summary(path, tuple(state["settings"]["concepts"]), int(state["step"]))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error


def listed(*folders: Path) -> list[Summary]:
    """The states in these folders, by name; other files, and folders that are not, are left out."""
    found = []
    for path in sorted(path for folder in folders for path in folder.glob(f"*{SUFFIX}")):
        with suppress(FileError):
            found.append(summary(path))
    return found


def read_state(path: Path) -> dict[str, Any]:
    """FileError when the file is missing, damaged, or of another version or kind."""
    state, tensors = _values_of(path), read_tensors(path)
    try:
        for name, tensor in tensors.items():
            *parents, leaf = name.split(_SEPARATOR)
            inner = state
            for parent in parents:
                inner = inner[parent]
            inner[leaf] = tensor
    except (KeyError, TypeError) as error:
        raise damaged(path) from error
    return state


def _values_of(path: Path) -> dict[str, Any]:
    """All of a state but its tensors."""
    metadata = read_metadata(path)
    found = metadata.get("format", "")
    if found != FORMAT:
        is_state = found.startswith(FORMAT.rpartition("-")[0])
        what = f"is of the version {found}" if is_state else "is not a training state"
        raise FileError(f"{path} {what}, and {FORMAT} is read: {_ANEW}")
    try:
        values: dict[str, Any] = json.loads(metadata["values"])
    except (KeyError, ValueError) as error:
        raise damaged(path) from error
    return values


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
    return FileError(f"{path} is damaged: delete it, or {_ANEW}")


def refuse_other_run(path: Path, before: State, now: State) -> None:
    """FileError, with the names, when settings that decide a run's result have changed.

    before, now: flat settings.
    """
    names = sorted({*before, *now} - resumable(now))
    changed = [f"`{name}`" for name in names if before.get(name) != now.get(name)]
    if changed:
        raise FileError(
            f"{path} belongs to a run with other settings ({', '.join(changed)}): give the same "
            f"ones, or {_ANEW}"
        )
