"""Safetensors files written tensor by tensor, all or not at all.

The writer is our own because it has to stream, and to give the same bytes for the same content.
The format (github.com/huggingface/safetensors): eight bytes with the header's length, little
endian; JSON that gives every tensor's dtype, shape and byte range; then the bytes of the tensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import FileError
from .dtypes import DTYPE_NAMES
from .lazy import Spec, spec_of
from .output import megabytes, output_file

MAX_HEADER = 100_000_000  # bytes: a longer one nobody reads


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    force: bool = False,
) -> None:
    """Write `tensors`, from any device, of which one at a time is in memory where they are lazy.

    The file appears whole under its name or not at all; the same content gives the same bytes.
    Raises FileError if the target exists (unless `force`) or cannot be written.
    """
    specs = _specs(tensors)
    needed = len(_header(specs, metadata)) + sum(spec.size for spec in specs.values())
    with output_file(path, needed, force) as file:
        write_into(file, tensors, metadata)


def write_into(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write header and tensors into an open file."""
    specs = _specs(tensors)
    file.write(_header(specs, metadata))
    for name, spec in specs.items():
        file.write(_bytes_of(tensors[name], spec))


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON, padded with spaces to a multiple of eight bytes.

    Raises FileError if the metadata is longer than the format allows.
    """
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size
        fields[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise FileError(f"the metadata to be written is too long ({megabytes(len(text))})")
    return len(text).to_bytes(8, "little") + text


def _specs(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Widest dtype first, so that every tensor is aligned; then by name."""
    specs = {name: spec_of(tensors, name) for name in tensors}
    return dict(sorted(specs.items(), key=lambda pair: (-pair[1].dtype.itemsize, pair[0])))


def _bytes_of(tensor: Tensor, spec: Spec) -> memoryview:
    """The tensor's bytes, row by row. Raises ValueError if it is not what was announced."""
    if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
        raise ValueError(f"a {tensor.dtype} of {tuple(tensor.shape)} came for {spec}")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
