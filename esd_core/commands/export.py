"""`esd export`: an erasure merged into its model, in the forms that other programs read."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..settings import Bounds, Field
from . import erased, models, outputs
from .flags import add_fields, reader, value

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..diffusers_denoiser import DiffusersDenoiser
    from ..erasure import Erasure

FORMS = ("unet", "diffusers", "official", "lora")
FORMS_HELP = (
    "unet: a whole UNet as one file, for ComfyUI's UNETLoader. diffusers: a folder for "
    "UNet2DConditionModel.from_pretrained. official: the erased weights alone, as the official "
    "code loads them. lora: the change at a low rank, for every loader of LoRAs."
)
TO = Field("to", str, None, FORMS_HELP, FORMS)
DTYPE = Field(
    "dtype", str, "fp16", "Number format of what is written.", choices=("fp16", "bf16", "fp32")
)
STRENGTH = Field(
    "strength", float, 1.0, "How much of the change is merged in.", bounds=Bounds(-100, 100)
)
RANK = Field(
    "rank",
    int,
    None,
    "Rank of a lora's layers, at most (default 16, or no bound with --energy).",
    bounds=Bounds(1, 4096),
)
ENERGY = Field(
    "energy",
    float,
    None,
    "For a lora: the smallest rank that keeps this share of a layer's squared norm.",
    bounds=Bounds(0, 1, exclusive=True),
)
DEFAULT_RANK = 16


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="An erasure file.")
    models.add_arguments(parser)
    parser.add_argument(
        "--to", metavar="|".join(FORMS), required=True, type=reader(TO), help=FORMS_HELP
    )
    parser.add_argument(
        "--out", metavar="PATH", type=Path, required=True, help="The file or folder to write."
    )
    outputs.add_force(parser)
    add_fields(parser, "form", [STRENGTH, DTYPE, RANK, ENERGY])


def run(arguments: Namespace) -> int:
    inputs = [arguments.file, arguments.model]
    is_folder = arguments.to == "diffusers"
    if arguments.to != "lora" and not (arguments.rank is arguments.energy is None):
        raise ConfigError("--rank and --energy are for --to lora")
    outputs.check_outputs([arguments.out], inputs, arguments.force, is_folder)
    models.check_model(arguments.model)
    strength = value(arguments, STRENGTH)
    erasures = erased.read([erased.Erased(arguments.file, strength)])
    # In fp32, so that base and change are summed exactly and rounded once.
    denoiser = models.load(arguments.model, "fp32", arguments.device or "cpu")
    erased.check_fit(erasures, denoiser)
    _write(arguments, denoiser, erasures[0][0], strength)
    print(f"written to {arguments.out}")
    return 0


def _write(
    arguments: Namespace, denoiser: DiffusersDenoiser, erasure: Erasure, strength: float
) -> None:
    from ..erasure import SAVE_DTYPES
    from ..formats.diffusers import write_official, write_unet_folder
    from ..formats.unet import write_unet

    base, out, force = denoiser.parameters(), arguments.out, arguments.force
    delta = _delta(base, erasure, strength)
    dtype = SAVE_DTYPES[value(arguments, DTYPE)]
    if arguments.to == "unet":
        metadata = _provenance(erasure, strength)
        write_unet(out, base, delta, dtype, metadata, _marks(denoiser), force)
    elif arguments.to == "lora":
        about = {**erasure.metadata, **_provenance(erasure, strength)}
        _write_lora(arguments, delta, denoiser.architecture, about, dtype)
    elif arguments.to == "diffusers":
        write_unet_folder(out, denoiser.unet.config, base, delta, dtype, force)
    else:
        write_official(out, denoiser.unet.config, base, delta, dtype, force)


def _write_lora(
    arguments: Namespace,
    delta: Mapping[str, Tensor],
    architecture: str,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
) -> None:
    from ..formats.lora import low_rank, write_lora

    rank, energy = value(arguments, RANK), value(arguments, ENERGY)
    if rank is None and energy is None:
        rank = DEFAULT_RANK
    lora = low_rank(delta, rank, energy)
    write_lora(arguments.out, lora, architecture, metadata, dtype, arguments.force)
    print(f"rank {lora.rank} keeps {lora.kept_in_all:.1%} of the change's norm")


def _delta(base: Mapping[str, Tensor], erasure: Erasure, strength: float) -> dict[str, Tensor]:
    """The change in the base's shapes; a low-rank one of a convolution comes as a matrix."""
    return {name: strength * c.view(base[name].shape) for name, c in erasure.change().items()}


def _marks(denoiser: DiffusersDenoiser) -> list[str]:
    """ComfyUI's signs for what a UNet's weights do not show."""
    marks = ["v_pred"] if denoiser.prediction_type == "v_prediction" else []
    is_zero_snr = denoiser.pipeline.scheduler.config.get("rescale_betas_zero_snr", False)
    return [*marks, "ztsnr"] if is_zero_snr else marks


def _provenance(erasure: Erasure, strength: float) -> dict[str, str]:
    """What the erasure says of itself, but that it is one."""
    own = {key: text for key, text in erasure.metadata.items() if key.startswith("esd.")}
    own.pop("esd.format", None)
    return {"format": "pt", **own, "esd.strength": f"{strength:g}"}
