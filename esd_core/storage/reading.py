"""Safetensors files read through `safetensors`, whose own checks of the header are kept.

What it lets pass and the format or PyTorch does not is refused here: names that come twice,
shapes that overflow. Every failure is one sentence that names the file.
"""

import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileError
from .dtypes import DTYPES
from .lazy import LazyTensors, Spec
from .output import reason

MAX_DIMENSIONS = 8
MAX_STRIDE = 2**60  # above it PyTorch's sums overflow, also for a tensor without elements
_OPENINGS = b"{ \t\r\n"
"""What a header's JSON starts with: writers may pad it, to have their tensors lie at a page."""
_KEPT_OPEN = 16 * 2**20  # bytes: what was read of a map counts as memory until it is closed


@dataclass(frozen=True)
class Header:
    """A checked header: text by key, and what every tensor is."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Spec]


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises FileError for a file that is missing, is something else or is damaged.
    """
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        specs = {n: _spec(path, n, file.get_slice(n)) for n in file.keys()}  # noqa: SIM118
        _refuse_doubled_names(path)
    return Header(path, metadata, specs)


def read_metadata(path: Path) -> dict[str, str]:
    """The text by key alone, in a part of the time that a whole header takes.

    Raises FileError as `read_header`.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def tensor_names(path: Path) -> list[str]:
    """The names alone, unchecked, of a file that may be one of hundreds; FileError for another."""
    with _opened(path) as file:
        return list(file.keys())


def file_tensors(header: Header) -> LazyTensors:
    """All tensors of a file, each read when it is asked for, into memory of its own."""
    return LazyTensors(header.tensors, _Reader(header.path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in memory of their own. Raises FileError as `read_header`."""
    return dict(file_tensors(read_header(path)))


def mapped_tensors(header: Header) -> LazyTensors:
    """All tensors of a file as they lie in it, as stock loaders have them: nothing is copied.

    Nobody may write into the file while they live. Who writes into a tensor does not.
    """
    with _failures_told(header.path):
        file = safe_open(header.path, "pt")
    return LazyTensors(header.tensors, file.get_tensor)


class _Reader:
    """Copies tensors out of a mapped file, which is opened anew every so many bytes."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, 0

    def __call__(self, name: str) -> Tensor:
        with _failures_told(self._path):
            if self._left <= 0:
                self._file, self._left = safe_open(self._path, "pt"), _KEPT_OPEN
            tensor: Tensor = self._file.get_tensor(name).clone()
        self._left -= tensor.nbytes
        return tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file to read; what is wrong with it, in the block too, is told in one sentence."""
    with _failures_told(path):
        _refuse_foreign(path)
        with safe_open(path, "pt") as file:
            yield file


@contextmanager
def _failures_told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason(error)}") from error
    except (SafetensorError, ValueError) as error:
        what = str(error).removeprefix("Error while deserializing header: ")
        raise FileError(f"{path} is damaged or cut short ({what[:200]})") from error


def _refuse_foreign(path: Path) -> None:
    """FileError for what is not a file, or is a file of another kind: its JSON starts at byte 8."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise FileError(f"{path} is not a file")
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise FileError(f"{path} is empty")
    if len(start) < 9 or start[8] not in _OPENINGS:
        raise FileError(f"{path} is {_kind(start)}: only safetensors files are read")


def _kind(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "a zip archive, as .pt and .ckpt files are"
    if start.startswith(b"\x80"):
        return "serialized Python objects, as in old .pt and .ckpt files"
    return "not a safetensors file"


def _refuse_doubled_names(path: Path) -> None:
    """The format forbids them, and `safetensors` takes the last one."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise FileError(f"{path} is damaged: a name comes twice in its header")

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length), object_pairs_hook=unique)


def _spec(path: Path, name: str, part: Any) -> Spec:
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    if dtype not in DTYPES:
        raise FileError(f"{path} holds {dtype} numbers ({name[:200]!r}), which are not read")
    if len(shape) > MAX_DIMENSIONS or math.prod(max(1, size) for size in shape) > MAX_STRIDE:
        raise FileError(f"{path} is damaged: the tensor {name[:200]!r} has an invalid shape")
    return Spec(DTYPES[dtype], shape)
