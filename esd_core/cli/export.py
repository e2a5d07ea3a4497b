"""`esd export`: an erasure in the forms that other programs read, from whatever file it is in."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..config.fields import Bounds, Field
from ..errors import ConfigError
from . import erased, outputs
from . import model as models
from .flags import add_fields, reader, value

FORMS = ("unet", "diffusers", "official", "lora", "erasure")  # as in ..export, too heavy to import
FORMS_HELP = (
    "unet: a whole UNet as one file, for ComfyUI's UNETLoader. diffusers: a folder for "
    "UNet2DConditionModel.from_pretrained. official: the erased weights alone, as the official "
    "code loads them; --out may be a folder then. lora: the change at a low rank, for every loader "
    "of LoRAs. erasure: the change itself, for ComfyUI's LoRA loaders."
)
TO = Field("to", str, None, FORMS_HELP, FORMS)
DTYPE = Field(
    "dtype", str, "fp16", "Number format of what is written.", choices=("fp16", "bf16", "fp32")
)
STRENGTH = Field(
    "strength", float, 1.0, "How much of the change is taken.", bounds=Bounds(-100, 100)
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
_OPTIONS = (STRENGTH, DTYPE, RANK, ENERGY)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="An erasure, a LoRA, or weights of an erased UNet: a file or a diffusers folder.",
    )
    models.add_model(parser)
    parser.add_argument(
        "--to", metavar="|".join(FORMS), required=True, type=reader(TO), help=FORMS_HELP
    )
    parser.add_argument(
        "--out", metavar="PATH", type=Path, required=True, help="The file or folder to write."
    )
    outputs.add_force(parser)
    add_fields(parser, "form", _OPTIONS)


def run(arguments: Namespace) -> int:
    out, is_folder = arguments.out, arguments.to == "diffusers"
    if arguments.to != "lora" and not (arguments.rank is arguments.energy is None):
        raise ConfigError("--rank and --energy are for --to lora")
    in_folder = arguments.to == "official" and out.is_dir()
    if not in_folder:
        _check(out, arguments, is_folder)
    models.check_model(arguments.model)
    (source,) = erased.open_all([erased.Erased(arguments.file)])
    from ..files.export import Options, export, official_name

    if in_folder:
        out = out / official_name(source.metadata)
        _check(out, arguments, is_folder)
    base = models.base(arguments.model)
    erasure = erased.fitted_to(source, base)
    options = Options(**_chosen(arguments), force=arguments.force)
    report = export(arguments.to, out, erasure, base, options)
    print(*filter(None, (report, f"written to {out}")), sep="\n")
    return 0


def _check(out: Path, arguments: Namespace, is_folder: bool) -> None:
    inputs = [arguments.file, arguments.model]
    outputs.check_outputs([out], inputs, arguments.force, is_folder)


def _chosen(arguments: Namespace) -> dict[str, Any]:
    chosen = {field.name: value(arguments, field) for field in _OPTIONS}
    if chosen["rank"] is chosen["energy"] is None:
        chosen["rank"] = DEFAULT_RANK
    return chosen
