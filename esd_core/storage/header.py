"""The header of a safetensors file: checked when read, the same bytes whenever written.

The format (github.com/huggingface/safetensors): eight bytes with the header's length N, little
endian; N bytes of JSON that give every tensor's dtype, shape and byte range; then the bytes of
the tensors, without gap or overlap.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import FileError
from .output import megabytes, reason

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 32 * 2**20  # bytes; that of an SDXL checkpoint with its metadata has well under one
MAX_DIMENSIONS = 8
MAX_STRIDE = 2**60  # above it PyTorch's sums overflow, also for a tensor without elements


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `start` and `end` count from the end of the header, in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header. `tensors` are in the order in which they lie in the file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Entry]
    data_start: int


@dataclass(frozen=True)
class Spec:
    """What a tensor to be written will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a safetensors file, with every size, range and shape checked.

    Raises FileError, one sentence, for a file that is missing, is something else or is damaged.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise FileError(f"There is no file {path}.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            length = _header_length(path, start, size)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason(error)}.") from error
    fields = _parse(path, text)
    metadata = _metadata(path, fields.pop("__metadata__", {}))
    entries = {name: _entry(path, name, field) for name, field in fields.items()}
    entries = dict(sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].end)))
    _check_layout(path, entries, size - 8 - length)
    return Header(path, metadata, entries, 8 + length)


def file_order(specs: Mapping[str, Spec]) -> Iterable[str]:
    """Widest dtype first, so that every tensor is aligned; then by name."""
    return sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))


def encode_header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON, padded with spaces to a multiple of eight bytes.

    Raises FileError if the metadata is longer than `read_header` takes.
    """
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in file_order(specs):
        spec, start = specs[name], end
        end += spec.size
        fields[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise FileError(f"The metadata to be written is too long ({megabytes(len(text))}).")
    return len(text).to_bytes(8, "little") + text


def _header_length(path: Path, start: bytes, size: int) -> int:
    """N, from the first nine bytes, the ninth of which opens the JSON."""
    if size == 0:
        raise FileError(f"{path} is empty.")
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{":
        raise FileError(f"{path} is {_kind(start)}; only safetensors files are read.")
    if length > MAX_HEADER:
        raise FileError(f"{path} is damaged: it claims a header of {megabytes(length)}.")
    if length < 2 or length > size - 8:
        raise FileError(f"{path} is damaged or cut short: its header does not fit into the file.")
    return length


def _kind(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "a zip archive, as .pt and .ckpt files are"
    if start.startswith(b"\x80"):
        return "serialized Python objects, as in old .pt and .ckpt files"
    return "not a safetensors file"


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    def integer(digits: str) -> int:
        if len(digits) > 19:  # also keeps a long one from taking minutes to convert
            raise ValueError("a number has too many digits")
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a name comes twice")
        for word in (*fields, *fields.values()):
            if isinstance(word, str):
                word.encode("utf-8")  # half a surrogate pair is a ValueError
        return fields

    try:
        fields: dict[str, Any] = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=refuse,
            parse_float=refuse,
            parse_int=integer,
        )
    except (ValueError, RecursionError) as error:
        why = "it nests too deep" if isinstance(error, RecursionError) else str(error)
        raise FileError(f"{path} is damaged: its header is not valid ({why}).") from error
    return fields


def _metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError(f"{path} is damaged: its metadata is not a table of texts.")
    return metadata


def _entry(path: Path, name: str, field: Any) -> Entry:
    def damaged(what: str) -> FileError:
        return FileError(f"{path} is damaged: the tensor {name[:200]!r} has {what}.")

    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged("not just a dtype, a shape and its offsets")
    dtype_name, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise damaged(f"the unknown dtype {str(dtype_name)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or _stride(shape) > MAX_STRIDE:
        raise damaged("a shape that is none")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged("offsets that are none")
    spec = Spec(DTYPES[dtype_name], tuple(shape))
    if spec.size != offsets[1] - offsets[0]:
        raise damaged(f"{offsets[1] - offsets[0]} bytes where its shape needs {spec.size}")
    return Entry(spec.dtype, spec.shape, *offsets)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _stride(shape: list[int]) -> int:
    """Of a dimension before these: more than 0 for empty tensors too."""
    return math.prod(max(1, size) for size in shape)


def _check_layout(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """`entries`, sorted, must fill the `size` bytes behind the header, each byte once."""
    end = 0
    for name, entry in entries.items():
        if entry.start != end:
            fault = "overlaps the one before it" if entry.start < end else "leaves a gap before it"
            raise FileError(f"{path} is damaged: the tensor {name[:200]!r} {fault}.")
        end = entry.end
    if end > size:
        raise FileError(f"{path} is cut short: {end} bytes of tensors are announced, {size} there.")
    if end < size:
        raise FileError(f"{path} is damaged: {size - end} bytes follow its last tensor.")
