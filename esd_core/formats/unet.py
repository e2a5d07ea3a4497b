"""A whole UNet with an erasure merged into it, for ComfyUI's UNETLoader.

The layout is that of ComfyUI's ModelSave: canonical names behind `model.diffusion_model.`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import FileError
from .header import Spec
from .safetensors_file import iterate_tensors, stream_safetensors

PREFIX = "model.diffusion_model."


def write_unet(
    path: str | os.PathLike[str],
    base: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
    marks: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Write base + delta, both by canonical name, as `dtype`, one tensor in memory at a time.

    marks: ComfyUI's signs for what the weights do not show, "v_pred" and "ztsnr": empty tensors.
    They are written with the prefix and without: UNETLoader reads nothing but what has it,
    CheckpointLoaderSimple looks for them without.
    Raises FileError if delta does not fit base, or as `stream_safetensors` does.
    """
    check_fits(delta, base)
    specs = {PREFIX + name: merged_spec(base, name, dtype) for name in base}
    specs.update({name: Spec(dtype, (0,)) for mark in marks for name in (mark, PREFIX + mark)})

    def tensor(name: str) -> Tensor:
        inner = name.removeprefix(PREFIX)
        return torch.empty(0, dtype=dtype) if inner in marks else merged(base, delta, inner, dtype)

    stream_safetensors(path, specs, tensor, metadata or {}, force)


def iterate_unet(path: str | os.PathLike[str]) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and tensor, one at a time; what else a checkpoint holds is passed over.

    Raises FileError for a damaged file, and at its end if nothing in it was a UNet's.
    """
    found = False
    for name, tensor in iterate_tensors(path):
        if name.startswith(PREFIX) and tensor.numel() > 0:
            found = True
            yield name.removeprefix(PREFIX), tensor
    if not found:
        raise FileError(f"{path} holds no UNet: no tensor's name starts with {PREFIX}.")


def check_fits(delta: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """Raises FileError unless base has every tensor of delta, in the same shape."""
    for name, change in delta.items():
        if name not in base:
            raise FileError(f"The erasure does not fit this model, which has no tensor {name}.")
        if change.shape != base[name].shape:
            raise FileError(
                f"The erasure does not fit this model: {name} has the shape "
                f"{tuple(change.shape)} there and {tuple(base[name].shape)} in the model."
            )


def merged(
    base: Mapping[str, Tensor], delta: Mapping[str, Tensor], name: str, dtype: torch.dtype
) -> Tensor:
    """base + delta on the CPU, summed in float32 and rounded once."""
    tensor = base[name].detach().to("cpu")
    if name in delta:
        tensor = tensor.to(torch.float32) + delta[name].detach().to("cpu", torch.float32)
    return tensor.to(dtype)


def merged_spec(base: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Spec:
    """What `merged` will give for that name."""
    return Spec(dtype, tuple(base[name].shape))
