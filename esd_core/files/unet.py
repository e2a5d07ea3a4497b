"""A whole UNet as a file for ComfyUI's UNETLoader.

The layout is that of ComfyUI's ModelSave: canonical names behind `model.diffusion_model.`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..models import keys
from ..storage.lazy import LazyTensors, renamed, spec_of, union
from ..storage.writing import write_safetensors

PREFIX = f"model.{keys.PREFIX}"
MARKERS = ("v_pred", "ztsnr")
"""Empty tensors by which ComfyUI tells v-prediction and zero-terminal SNR."""

_PREFIXES = (PREFIX, keys.PREFIX, "")
_PARTS = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")


def write_unet(
    path: Path,
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    prediction_markers: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Write a UNet's weights by canonical name, one tensor in memory at a time where they are lazy.

    prediction_markers: of MARKERS. They are written with the prefix and without: UNETLoader reads
    only what has it, CheckpointLoaderSimple looks for them without.
    Raises FileError as `write_safetensors` does.
    """
    dtype = next((spec_of(weights, name).dtype for name in weights), torch.float16)
    marks = [n for marker in prediction_markers for n in (marker, PREFIX + marker)]
    named = renamed(weights, {PREFIX + name: name for name in weights})
    tensors = union(named, dict.fromkeys(marks, torch.empty(0, dtype=dtype)))
    write_safetensors(path, tensors, metadata or {}, force)


def unet_names(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Those of a file's tensors that are a UNet's, by canonical name; empty without a UNet.

    What else a checkpoint holds is skipped. ComfyUI's ModelSave and checkpoints have the
    prefix, files of others lack a part or all of it.
    """
    for prefix in _PREFIXES:
        # What has the whole prefix can be nothing else, whichever network it is.
        starts = (prefix,) if prefix == PREFIX else tuple(prefix + part for part in _PARTS)
        names = {
            name.removeprefix(prefix): name
            for name in tensors
            if name.startswith(starts) and name.rpartition(".")[2] not in MARKERS
        }
        if names:
            return renamed(tensors, names)
    return renamed(tensors, {})
