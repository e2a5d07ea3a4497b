"""Training state on disk: all that a resumed run needs to end with the same bits.

One safetensors file: masters, optimizer state, random streams, and the samples of the round that
is under way; numbers travel as JSON in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..storage.reading import read_header, read_tensors
from ..storage.writing import write_safetensors

FORMAT = "esd-training-state-1"

FREE = {
    f"training.{name}"
    for name in (
        *("steps", "save_every", "preview_every", "probe_every", "until", "max_drift"),
        *("save_dtype", "gradient_checkpointing"),
    )
}
"""Settings that may differ when a run goes on: when it ends or reports, not its course."""


@dataclass
class TrainingState:
    """Named tensors and JSON values; names are grouped by dots ("optimizer.0.exp_avg")."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name.`, without it."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def state_path(erasure: Path) -> Path:
    """Where the state of the run that makes this erasure lies."""
    return erasure.with_name(f"{erasure.name.removesuffix('.safetensors')}.state.safetensors")


def write_state(path: Path, state: TrainingState) -> None:
    """Replaces an older state of the same run at once, or leaves it as it was."""
    write_safetensors(
        path, state.tensors, {"format": FORMAT, "values": json.dumps(state.values)}, force=True
    )


def read_state(path: Path) -> TrainingState:
    """FileError when the file is missing, damaged or something else."""
    metadata = read_header(path).metadata
    if metadata.get("format") != FORMAT:
        raise FileError(f"{path} is no training state of this version: start without --resume")
    try:
        values = json.loads(metadata["values"])
    except (KeyError, ValueError) as error:
        raise damaged(path) from error
    return TrainingState(read_tensors(path), values)


def damaged(path: Path) -> FileError:
    """What is said of a state file whose parts are missing or do not fit."""
    return FileError(f"{path} is damaged: start without --resume")


def refuse_other_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """FileError, with the names, when settings that decide a run's course have changed."""
    changed = [
        f"{prefix}{key}"
        for prefix, old, new in _tables(before, now)
        for key in sorted(set(old) | set(new))
        if f"{prefix}{key}" not in FREE
        and not isinstance(new.get(key), dict)
        and old.get(key) != new.get(key)
    ]
    if changed:
        raise FileError(
            f"{path} belongs to a run with other settings ({', '.join(changed)}): "
            "give the same ones, or start without --resume"
        )


def _tables(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    inner = [k for k, v in now.items() if isinstance(v, dict)]
    return [("", before, now), *((f"{k}.", before.get(k, {}), now[k]) for k in inner)]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Undoes `optimizer_tensors`."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
