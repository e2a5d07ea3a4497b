"""The weights that a change is taken from or laid over, and what has to be known of them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..models.architectures import Architecture, like
from ..models.structure import unet_config
from ..storage.reading import file_tensors, read_header
from .diffusers import read_unet_folder
from .metadata import Key
from .unet import MARKERS, unet_names

V_PREDICTION, ZERO_SNR = MARKERS


@dataclass(frozen=True)
class Base:
    """A UNet without the network around it.

    Attributes:
        architecture: the refiner too.
        config: of the UNet2DConditionModel; empty for a transformer, which is known by ComfyUI's
            names alone.
        weights: by canonical name.
        prediction_markers: of MARKERS, ComfyUI's signs for what weights do not show.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    prediction_markers: tuple[str, ...] = ()

    def parameters(self) -> Mapping[str, Tensor]:
        """As a Denoiser's."""
        return self.weights


def open_base(path: str | os.PathLike[str]) -> Base:
    """The UNet of a diffusers pipeline's folder, of a UNet's folder, of a checkpoint or a file.

    Its tensors stay on the disk and are read one at a time, when they are asked for.
    Raises FileError if it is missing, damaged or not a UNet.
    """
    path = Path(path)
    if path.is_dir():
        config, weights = read_unet_folder(path)
        return Base(_architecture(config), config, weights, markers_of(_scheduler(path)))
    header = read_header(path)
    weights = unet_names(file_tensors(header))
    if not weights:
        raise FileError(f"{path} holds no UNet, so it cannot be the base for an erasure")
    try:
        config = json.loads(header.metadata.get(Key.UNET_CONFIG, "null")) or unet_config(
            {name: spec.shape for name, spec in weights.specs.items()}
        )
    except (ValueError, FileError) as error:
        raise FileError(f"{path} cannot be the base for an erasure: {error}") from error
    found = tuple(mark for mark in MARKERS if any(n.endswith(mark) for n in header.tensors))
    return Base(_architecture(config), config, weights, found)


def markers_of(scheduler: Mapping[str, Any]) -> tuple[str, ...]:
    """The markers for a model with this scheduler's config."""
    is_v = scheduler.get("prediction_type") == "v_prediction"
    is_zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    return (V_PREDICTION,) * is_v + (ZERO_SNR,) * is_zero_snr


def _architecture(config: Mapping[str, Any]) -> Architecture:
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
