"""A whole UNet with an erasure merged into it, for ComfyUI's UNETLoader.

The layout is that of ComfyUI's ModelSave: canonical names behind `model.diffusion_model.`.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import FileError
from ..storage.lazy import LazyTensors, Spec, renamed, spec_of
from ..storage.writing import write_safetensors

PREFIX = "model.diffusion_model."
MARKS = ("v_pred", "ztsnr")
"""ComfyUI's signs for what the weights do not show: empty tensors of these names."""
CONFIG = "esd.unet_config"
"""Where our files have diffusers' config in their metadata: shapes do not show all of it."""

_PREFIXES = (PREFIX, "diffusion_model.", "")
_PARTS = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")


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

    marks: of MARKS. They are written with the prefix and without: UNETLoader reads nothing but
    what has it, CheckpointLoaderSimple looks for them without.
    Raises FileError if delta does not fit base, or as `write_safetensors` does.
    """
    check_fits(delta, base)
    specs = {PREFIX + name: merged_spec(base, name, dtype) for name in base}
    specs.update({name: Spec(dtype, (0,)) for mark in marks for name in (mark, PREFIX + mark)})

    def tensor(name: str) -> Tensor:
        inner = name.removeprefix(PREFIX)
        return torch.empty(0, dtype=dtype) if inner in marks else merged(base, delta, inner, dtype)

    write_safetensors(path, LazyTensors(specs, tensor), metadata or {}, force)


def unet_names(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Those of a file's tensors that are a UNet's, by canonical name; none if there is no UNet.

    What else a checkpoint holds is passed over. ComfyUI's ModelSave and checkpoints have the
    prefix, files of others lack a part or all of it.
    """
    for prefix in _PREFIXES:
        names = {
            name.removeprefix(prefix): name
            for name in tensors
            if name.startswith(tuple(prefix + part for part in _PARTS))
        }
        if names:
            return renamed(tensors, names)
    return renamed(tensors, {})


def check_fits(delta: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """Raises FileError unless base has every tensor of delta, in the same shape."""
    for name in delta:
        if name not in base:
            raise FileError(f"The erasure does not fit this model, which has no tensor {name}.")
        there, here = spec_of(delta, name).shape, spec_of(base, name).shape
        if there != here:
            raise FileError(
                f"The erasure does not fit this model: {name} has the shape {there} there and "
                f"{here} in the model."
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
    return Spec(dtype, spec_of(base, name).shape)
