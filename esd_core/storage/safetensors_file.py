"""Safetensors files: tensors streamed in, and files written all or not at all.

The writer is our own because it has to stream, and to give the same bytes for the same content.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from io import FileIO
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import FileError
from .header import Header, Spec, encode_header, file_order, read_header
from .lazy import LazyTensors, spec_of
from .output import output_file, reason


def iterate_tensors(
    path: str | os.PathLike[str], names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Name and CPU tensor, one at a time, of all tensors or of those in `names`.

    The header is checked before the first tensor is read. Raises FileError as `read_header`.
    """
    header = read_header(path)
    for name in header.tensors:
        if names is None or name in names:
            yield name, read_tensor(header, name)


def read_tensor(header: Header, name: str) -> Tensor:
    """One tensor in memory of its own (not a map of the file, which may change or go away)."""
    entry = header.tensors[name]
    bytes_ = torch.empty(entry.end - entry.start, dtype=torch.uint8)  # a bytearray is zeroed first
    try:
        with header.path.open("rb", buffering=0) as file:
            file.seek(header.data_start + entry.start)
            count = _read_into(file, bytes_.numpy().data)
    except OSError as error:
        raise FileError(f"{header.path} cannot be read: {reason(error)}.") from error
    if count != len(bytes_):
        raise FileError(f"{header.path} has become shorter while it was read.")
    return bytes_.view(entry.dtype).reshape(entry.shape)


def _read_into(file: FileIO, buffer: memoryview) -> int:
    """Fills the buffer as far as the file goes: one call gives at most 2 GB on some systems."""
    filled = 0
    while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
        filled += count
    return filled


def file_tensors(header: Header) -> LazyTensors:
    """All tensors of a file, each read when it is asked for."""
    return LazyTensors(_specs(header), partial(read_tensor, header))


def mapped_tensors(header: Header) -> LazyTensors:
    """All tensors of a file as they lie in it, as stock loaders have them: nothing is copied.

    Nobody may write into the file while they live.
    """
    size = header.data_start + max((entry.end for entry in header.tensors.values()), default=0)
    try:
        # Private: who writes into a tensor does not write into the file.
        file = torch.from_file(str(header.path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise FileError(f"{header.path} cannot be read: {error}.") from error

    def part(name: str) -> Tensor:
        entry = header.tensors[name]
        bytes_ = file[header.data_start + entry.start : header.data_start + entry.end]
        if bytes_.storage_offset() % entry.dtype.itemsize:  # nothing makes a file align them
            bytes_ = bytes_.clone()
        return bytes_.view(entry.dtype).reshape(entry.shape)

    return LazyTensors(_specs(header), part)


def _specs(header: Header) -> dict[str, Spec]:
    return {name: Spec(entry.dtype, entry.shape) for name, entry in header.tensors.items()}


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    force: bool = False,
) -> None:
    """Write `tensors`, from any device. Otherwise as `stream_safetensors`."""
    specs = {name: spec_of(tensors, name) for name in tensors}
    stream_safetensors(path, specs, tensors.__getitem__, metadata, force)


def stream_safetensors(
    path: str | os.PathLike[str],
    specs: Mapping[str, Spec],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    force: bool = False,
) -> None:
    """Write a file of which only one tensor at a time is in memory: `tensor(name)` gives it.

    The file appears whole under its name or not at all; the same content gives the same bytes.
    Raises FileError if the target exists (unless `force`) or cannot be written.
    """
    needed = len(encode_header(specs, metadata)) + sum(spec.size for spec in specs.values())
    with output_file(path, needed, force) as file:
        write_into(file, specs, tensor, metadata)


def write_into(
    file: BinaryIO,
    specs: Mapping[str, Spec],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write header and tensors into an open file."""
    file.write(encode_header(specs, metadata))
    for name in file_order(specs):
        file.write(_bytes_of(tensor(name), specs[name]))


def _bytes_of(tensor: Tensor, spec: Spec) -> memoryview:
    """The tensor's bytes, row by row. Raises ValueError if it is not what was announced."""
    if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
        raise ValueError(f"a {tensor.dtype} of {tuple(tensor.shape)} came for {spec}")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
