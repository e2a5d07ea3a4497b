"""The weights that a change is taken from or laid over, and what has to be known of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..models.architectures import FLUX, SD3, Architecture, like
from ..models.parts import Part
from ..models.structure import unet_config
from ..models.transformer import TRANSFORMERS
from ..models.transformer_keys import POS_EMBED, is_transformer, transformer_parts
from ..models.transformer_structure import plain, transformer_config
from ..storage.lazy import LazyTensors, renamed, spec_of
from ..storage.reading import file_tensors, read_header
from .diffusers import read_unet_folder
from .metadata import Key
from .unet import MARKERS, unet_names

V_PREDICTION, ZERO_SNR = MARKERS


@dataclass(frozen=True)
class Base:
    """A UNet or transformer without the network around it.

    Attributes:
        architecture: the refiner too.
        config: diffusers' own of the network; empty for a transformer that is known by ComfyUI's
            names alone.
        weights: by canonical name.
        tables: what a file of the whole model holds beside its parameters.
        prediction_markers: of MARKERS, ComfyUI's signs for what weights do not show.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    prediction_markers: tuple[str, ...] = ()
    tables: Mapping[str, Tensor] = field(default_factory=dict)

    def parts(self) -> dict[str, Part]:
        """What of its tensors diffusers has in parts; nothing where those are not known."""
        if self.architecture not in (SD3, FLUX):
            return {}
        shapes = {name: spec_of(self.weights, name).shape for name in self.weights}
        try:
            return transformer_parts(transformer_config(shapes))
        except FileError:
            return {}

    def parameters(self) -> Mapping[str, Tensor]:
        """As a Denoiser's."""
        return self.weights


def open_base(path: Path) -> Base:
    """The UNet of a diffusers pipeline's folder, of a UNet's folder, of a checkpoint or a file.

    Its tensors stay on the disk and are read one at a time, when they are asked for.
    Raises FileError if it is missing, damaged or not a UNet.
    """
    if path.is_dir():
        config, weights = read_unet_folder(path)
        return _base(config, weights, markers_of(_scheduler(path)))
    header = read_header(path)
    weights = unet_names(file_tensors(header))
    if not weights:
        raise FileError(f"{path} holds no UNet, so it cannot be the base for an erasure")
    try:
        shapes = {name: spec.shape for name, spec in weights.specs.items()}
        read = transformer_config if _FIRST_BLOCKS & shapes.keys() else unet_config
        config = json.loads(header.metadata.get(Key.UNET_CONFIG, "null")) or read(shapes)
    except (ValueError, FileError) as error:
        raise FileError(f"{path} cannot be the base for an erasure: {error}") from error
    found = tuple(mark for mark in MARKERS if any(n.endswith(mark) for n in header.tensors))
    weights = renamed(weights, {plain(name): name for name in weights})
    return _base(config, weights, found)


_FIRST_BLOCKS = {
    "joint_blocks.0.x_block.attn.qkv.weight",
    "double_blocks.0.img_attn.qkv.weight",
}


def _base(config: Mapping[str, Any], weights: LazyTensors, markers: tuple[str, ...]) -> Base:
    tables = renamed(weights, {name: name for name in weights if name == POS_EMBED})
    own = renamed(weights, {name: name for name in weights if name != POS_EMBED})
    return Base(_architecture(config), config, own, markers, tables)


def markers_of(scheduler: Mapping[str, Any]) -> tuple[str, ...]:
    """The markers for a model with this scheduler's config."""
    is_v = scheduler.get("prediction_type") == "v_prediction"
    is_zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    return (V_PREDICTION,) * is_v + (ZERO_SNR,) * is_zero_snr


def _architecture(config: Mapping[str, Any]) -> Architecture:
    if is_transformer(config):
        return TRANSFORMERS[config["_class_name"]].architecture
    return like(config.get("cross_attention_dim") or 0, bool(config.get("addition_embed_type")))


def _scheduler(folder: Path) -> dict[str, Any]:
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FileError(f"{file} cannot be read: {error}") from error
    return found
