"""The result: the change of the trained tensors, with its metadata."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError
from ..storage.lazy import LazyTensors, Spec, spec_of
from .lora import ALPHA, DOWN, UP
from .metadata import Key

_LEAVES = {".diff": ".weight", ".diff_b": ".bias"}


@dataclass(frozen=True)
class Erasure:
    """A change of weights and what is known of it.

    Attributes:
        tensors: as in the file, without the prefix: `<path>.diff` for a weight, `.diff_b` for a
            bias, or `.lora_up.weight`, `.lora_down.weight` and `.alpha`.
        metadata: text by key, as in the file.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    path: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path else "the erasure"

    @property
    def architecture(self) -> str:
        return self.metadata.get(Key.ARCHITECTURE, "")

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(json.loads(self.metadata.get(Key.CONCEPTS, "[]")))

    @property
    def fingerprint(self) -> list[float]:
        """Of the base that it was made for; empty when that is not known."""
        return [float(v) for v in self.metadata.get(Key.FINGERPRINT, "").split()]

    def change(self) -> LazyTensors:
        """float32 change by canonical name; low-rank ones are multiplied out.

        Made when asked for: one at a time is in memory where the tensors are lazy too.
        """
        specs: dict[str, Spec] = {}
        sources: dict[str, str] = {}
        for key in self.tensors:
            stem, dot, part = key.rpartition(".")
            shape = spec_of(self.tensors, key).shape
            if key.endswith(UP):
                name = f"{key.removesuffix(UP)}.weight"
                shape = (shape[0], *spec_of(self.tensors, key.removesuffix(UP) + DOWN).shape[1:])
            elif dot + part in _LEAVES:
                name = stem + _LEAVES[dot + part]
            else:
                continue
            specs[name], sources[name] = Spec(torch.float32, shape), key
        return LazyTensors(specs, lambda name: self._change_of(sources[name]))

    def _change_of(self, key: str) -> Tensor:
        value = self.tensors[key].float()
        if not key.endswith(UP):
            return value
        stem = key.removesuffix(UP)
        down = self.tensors[stem + DOWN].float()
        product = (value.flatten(1) @ down.flatten(1)).view(len(value), *down.shape[1:])
        return float(self.tensors[stem + ALPHA]) / len(down) * product

    def delta(self, base: Mapping[str, Tensor], strength: float = 1.0) -> LazyTensors:
        """strength * change, in the shapes of the base's tensors; it must fit them."""
        change = self.change()
        specs = {name: Spec(torch.float32, spec_of(base, name).shape) for name in change}
        return LazyTensors(specs, lambda n: strength * change[n].view(specs[n].shape))


def key_of(name: str) -> str:
    """What an erasure calls the full change of that canonical tensor."""
    stem, dot, leaf = name.rpartition(".")
    return stem + next(part for part, leaf_of in _LEAVES.items() if leaf_of == dot + leaf)


def checked_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """The same. FileError when what an Erasure reads from it is not what it should be."""
    probe = Erasure({}, metadata)
    try:
        is_read = all(isinstance(name, str) for name in probe.concepts)
        is_read &= all(map(math.isfinite, probe.fingerprint))
    except (TypeError, ValueError, RecursionError):
        is_read = False
    if not is_read or not isinstance(json.loads(metadata.get(Key.CONCEPTS, "[]")), list):
        raise FileError(f"{path} is damaged: its metadata cannot be read")
    return dict(metadata)
