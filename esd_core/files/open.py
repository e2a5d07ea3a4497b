"""Erasures in whatever file they come: recognised by names and shapes, never by the file's name.

Two families: files of changes (our own, LoRAs, full differences), and files of absolute weights
(the official code's, whole UNets, checkpoints, diffusers' folders), whose change is what they
differ by from a base. Either becomes an `Erasure`, whose tensors stay on the disk until used.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError
from ..models.keys import DIFFUSERS_PARTS, PREFIX, diffusers_to_canonical
from ..models.structure import architecture_of
from ..models.transformer_keys import POS_EMBED, is_transformer
from ..models.transformer_structure import plain
from ..storage.lazy import LazyTensors, Spec, renamed, spec_of, union
from ..storage.reading import Header, file_tensors, mapped_tensors, read_header
from .adapters import (
    check_tensors,
    foreign_part,
    is_of_text,
    modules,
    part_of,
    parts_by_module,
    with_alphas,
)
from .apply import check_architecture
from .base import Base
from .diffusers import read_unet_folder
from .erasure import Erasure, checked_metadata, key_of
from .finite import check_finite
from .formats import (
    CHECKPOINT,
    DIFFERENCE,
    DIFFUSERS,
    ERASURE,
    FOREIGN,
    FORMATS,
    LORA,
    OFFICIAL,
    UNET,
)
from .lora import UP
from .metadata import FORMAT, Key
from .parts import joined_changes
from .unet import MARKERS, unet_names

_UNET_STEM = {"conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight"}


@dataclass(frozen=True)
class Source:
    """A file or folder that an erasure can be had from.

    Attributes:
        kind: of FORMATS.
        tensors: the UNet's: LoRA's parts by "<module>.<part>"; of absolute weights a UNet's own
            names, canonical or diffusers'.
        skipped: how many tensors belong to something else than a UNet.
    """

    path: Path
    kind: str
    tensors: LazyTensors
    metadata: Mapping[str, str]
    skipped: int = 0

    @property
    def needs_base(self) -> bool:
        return FORMATS[self.kind].has_weights

    @property
    def architecture(self) -> str:
        """As it says itself, else as its shapes show; "" where neither tells."""
        said = self.metadata.get(Key.ARCHITECTURE, "")
        return said or architecture_of({n: s.shape for n, s in self.tensors.specs.items()})

    def erasure(self, base: Base) -> Erasure:
        """The change that it makes of this base.

        Raises:
            FileError: it was made for another model, or holds what cannot be used.
        """
        if self.kind == FOREIGN:
            raise FileError(
                f"{self.path} is {FORMATS[FOREIGN].title} ({foreign_part(self.tensors)}): "
                "ComfyUI's own LoRA loaders read it, and this command does not"
            )
        check_architecture(self.path.name, self.architecture, base.architecture)
        tensors = self._difference(base) if self.needs_base else self._renamed(base)
        return Erasure(tensors, self.metadata, self.path)

    def _renamed(self, base: Base) -> LazyTensors:
        """Changes, by canonical names."""
        known, parts = modules(base.config, base.weights), base.parts()
        theirs = parts_by_module(parts)
        names: dict[str, str] = {}
        partial: dict[str, str] = {}
        for name in self.tensors:
            module, part = part_of(name) or (name, "")
            if module in theirs and module not in known:
                partial[theirs[module] + part] = name
                continue
            if module not in known and not module.startswith(PREFIX):
                raise FileError(
                    f"{self.path.name} changes {module}, which this model does not have"
                )
            names[known.get(module, module.removeprefix(PREFIX)) + part] = name
        own = renamed(self.tensors, names)
        if not partial:
            return own
        change = Erasure(renamed(self.tensors, partial), {}).change()
        return union(own, joined_changes(self.path.name, change, parts, base.weights))

    def _difference(self, base: Base) -> LazyTensors:
        """file - base in float32; of a whole UNet only what it has changed."""
        is_unet = base.config and not is_transformer(base.config)
        known = diffusers_to_canonical(base.config) if is_unet else {}
        names = {plain(name): name for name in base.weights}
        specs: dict[str, Spec] = {}
        sources: dict[str, tuple[str, str]] = {}
        for name, tensor in self.tensors.items():
            canonical = known.get(name, names.get(plain(name), name))
            if (
                canonical not in base.weights
                or tensor.shape != spec_of(base.weights, canonical).shape
            ):
                raise FileError(
                    f"{self.path} was made for another model: its tensor {name} has no place in "
                    "this one"
                )
            check_finite(self.path, name, tensor)
            if self.kind != OFFICIAL and _rounded(base.weights[canonical], tensor).equal(tensor):
                continue
            key = key_of(canonical)
            specs[key], sources[key] = Spec(torch.float32, tuple(tensor.shape)), (name, canonical)

        def difference(key: str) -> Tensor:
            name, canonical = sources[key]
            own = base.weights[canonical].detach().to("cpu", torch.float32)
            return self.tensors[name].to(torch.float32) - own

        return LazyTensors(specs, difference)


def _rounded(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.detach().to("cpu", like.dtype)


def open_source(path: Path, mapped: bool = False) -> Source:
    """Recognises a file or folder and checks it as far as that goes without a base.

    mapped: leave a file of changes where it is, for a caller that keeps all of its tensors; it must
        not be written into while they live.

    Raises:
        FileError: it is missing or damaged, holds NaN or infinity, or nothing of a UNet.
    """
    if path.is_dir():
        weights = read_unet_folder(path)[1]
        own = renamed(weights, {name: name for name in weights if name != POS_EMBED})
        return Source(path, DIFFUSERS, own, {})
    header = read_header(path)
    checked_metadata(path, header.metadata)
    return _of_changes(header, mapped) or _of_weights(header)


def _of_changes(header: Header, mapped: bool) -> Source | None:
    """A file of changes; None if it holds something else."""
    tensors = mapped_tensors(header) if mapped else file_tensors(header)
    if foreign_part(tensors):
        return Source(header.path, FOREIGN, tensors, header.metadata)
    parts = {name: part_of(name) for name in tensors if not is_of_text(name)}
    if not parts or not all(parts.values()):
        return None
    own = renamed(tensors, {"".join(part): name for name, part in parts.items() if part})
    changes = with_alphas(own)
    check_tensors(header.path, changes)
    kind = LORA if any(name.endswith(UP) for name in changes) else DIFFERENCE
    if header.metadata.get(Key.FORMAT) == FORMAT:
        kind = ERASURE
    return Source(header.path, kind, changes, header.metadata, len(tensors) - len(parts))


def is_official(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a part of a UNet, as the official code writes it."""
    parts = {name.removeprefix("unet.") for name in names}
    return (
        bool(parts)
        and all(part.startswith(DIFFUSERS_PARTS) for part in parts)
        and not any(map(part_of, parts))
        and not parts >= _UNET_STEM
    )


def _of_weights(header: Header) -> Source:
    tensors = file_tensors(header)
    found = unet_names(tensors)
    if found:
        unet = renamed(found, {name: name for name in found if name != POS_EMBED})
        markers = [name for name in tensors if name.rpartition(".")[2] in MARKERS]
        others = len(tensors) - len(found) - len(markers)
        kind = CHECKPOINT if others else UNET
        return Source(header.path, kind, unet, header.metadata, others)
    names = {name.removeprefix("unet."): name for name in tensors}
    if names and all(name.startswith(DIFFUSERS_PARTS) for name in names):
        kind = OFFICIAL if is_official(tensors) else DIFFUSERS
        return Source(header.path, kind, renamed(tensors, names), header.metadata)
    known = [n for n in names if part_of(n) or is_of_text(n) or n.startswith(DIFFUSERS_PARTS)]
    unexpected = sorted(names.keys() - known) or sorted(names)
    what = f'"{unexpected[0][:200]}"' if unexpected else "no tensor"
    raise FileError(
        f"{header.path} is not an erasure file (it holds {what}): give an erasure, a LoRA, "
        "or weights of an erased UNet"
    )
