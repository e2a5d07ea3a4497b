"""An erasure laid over a MODEL, by the host's own patches."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.lora
import comfy.lora_convert
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...esd_core.errors import FileError
from ...esd_core.files.adapters import part_of
from ...esd_core.models.keys import PREFIX


def patched(model: ModelPatcher, tensors: Mapping[str, Tensor], strength: float) -> ModelPatcher:
    """A clone with the change of a LoRA-like file added, as the stock loaders add it.

    Args:
        tensors: by the names in the file, of any kind that the host knows.

    Raises:
        FileError: the MODEL has no place for one of them.
    """
    return _added(model, tensors, comfy.lora.model_lora_keys_unet(model.model, {}), strength)


def erased(model: ModelPatcher, tensors: Mapping[str, Tensor], strength: float) -> ModelPatcher:
    """As `patched`, of an erasure's tensors, whose names need no search among all kinds."""
    parts = filter(None, map(part_of, tensors))
    keys = {f"{PREFIX}{module}": f"{PREFIX}{module}.weight" for module, _ in parts}
    named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    return _added(model, named, keys, strength)


def _added(
    model: ModelPatcher,
    tensors: Mapping[str, Tensor],
    keys: Mapping[str, str],
    strength: float,
) -> ModelPatcher:
    clone = model.clone()
    if strength == 0:
        return clone
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), keys)
    added = clone.add_patches(patches, strength)
    if not patches or len(added) != len(patches):
        unexpected = sorted(set(patches) - set(added)) or sorted(tensors)
        raise FileError(
            f"the MODEL has no place for {unexpected[0]}: connect the kind of model that the file "
            "was made for"
        )
    return clone
