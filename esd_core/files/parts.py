"""Files under diffusers' names, whose tensors are parts of canonical ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..models.keys import diffusers_to_canonical
from ..models.parts import Part
from ..models.transformer_keys import POS_EMBED, is_transformer, transformer_parts
from ..storage.lazy import LazyTensors, Spec, spec_of
from .erasure import key_of


def parts_of(config: Mapping[str, Any]) -> dict[str, Part]:
    """What every canonical tensor of a network's file is made of, in model order.

    config: diffusers' own. KeyError or ESDError for one that is not of a known network.
    """
    if not is_transformer(config):
        return {ours: Part({own: 0}) for own, ours in diffusers_to_canonical(config).items()}
    found = transformer_parts(config)
    if config.get("pos_embed_max_size"):
        found[POS_EMBED] = Part({"pos_embed.pos_embed": 0})
    return found


def in_parts(weights: Mapping[str, Tensor], parts: Mapping[str, Part]) -> LazyTensors:
    """Canonical tensors under diffusers' names, each made when it is asked for."""
    owners = {own: n for n, part in parts.items() if n in weights for own in part.rows}
    specs = {own: _cut(spec_of(weights, n), parts[n])[own] for own, n in owners.items()}
    return LazyTensors(specs, lambda own: parts[owners[own]].cut(weights[owners[own]])[own])


def _cut(whole: Spec, part: Part) -> dict[str, Spec]:
    """What diffusers' tensors of a canonical one are."""
    rows, *others = whole.shape
    counts = part.rows if len(part.rows) > 1 else dict.fromkeys(part.rows, rows)
    return {own: Spec(whole.dtype, (count, *others)) for own, count in counts.items()}


def joined(tensors: LazyTensors, parts: Mapping[str, Part]) -> LazyTensors:
    """diffusers' tensors under canonical names, each made when it is asked for.

    FileError for parts that do not make one tensor.
    """
    specs = {}
    for name, part in parts.items():
        own = {own: tensors.specs[own] for own in part.rows}
        first = next(iter(own.values()))
        specs[name] = first
        if len(own) > 1:
            specs[name] = Spec(first.dtype, (sum(part.rows.values()), *first.shape[1:]))
            for theirs, spec in own.items():
                if spec != Spec(first.dtype, (part.rows[theirs], *first.shape[1:])):
                    raise FileError(f"{theirs} does not fit the others that it belongs to")

    def tensor(name: str) -> Tensor:
        return parts[name].joined({own: tensors[own] for own in parts[name].rows})

    return LazyTensors(specs, tensor)


def joined_changes(
    file: str, change: LazyTensors, parts: Mapping[str, Part], weights: Mapping[str, Tensor]
) -> LazyTensors:
    """Changes of diffusers' tensors as an erasure's of canonical ones, float32, by its keys; parts
    that nothing changes are zeros.

    FileError, which names the file, for one that has not the shape of a part.
    """
    owners = {own: name for name, part in parts.items() for own in part.rows}
    touched = {owners[own] for own in change}
    names = {key_of(name): name for name in parts if name in touched}
    specs = {key: Spec(torch.float32, spec_of(weights, n).shape) for key, n in names.items()}
    own_specs = {key: _cut(specs[key], parts[name]) for key, name in names.items()}
    for own in change:
        if change.specs[own] != own_specs[key_of(owners[own])][own]:
            raise FileError(f"{file} was made for another model: {own} has another shape here")

    def tensor(key: str) -> Tensor:
        own = own_specs[key].items()
        return parts[names[key]].joined(
            {n: change[n] if n in change else torch.zeros(spec.shape) for n, spec in own}
        )

    return LazyTensors(specs, tensor)
