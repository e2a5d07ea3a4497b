"""`esd export`: an erasure in the forms that other programs read, from whatever file it is in."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..settings import Bounds, Field
from . import erased, models, outputs
from .flags import add_fields, given, reader

FORMS = ("erasure", "lora", "unet", "diffusers", "official")
FORMS_HELP = (
    "erasure: the change at full rank, for LoRA loaders of ComfyUI. lora: the change at low rank "
    "in kohya's names, for every loader of LoRAs. unet: a whole UNet as one file, for ComfyUI's "
    "UNETLoader. diffusers: a folder for UNet2DConditionModel.from_pretrained. official: the "
    "erased weights alone, as the official code loads them; --out may be a folder then."
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
    0,
    "Of a LoRA's layers; at 0 every layer has the rank that --energy needs.",
    bounds=Bounds(0, 4096),
)
ENERGY = Field(
    "energy",
    float,
    0.99,
    "Where --rank is 0, the part of a layer's squared change that a LoRA keeps at least.",
    bounds=Bounds(0, 1, exclusive=True),
)
_OPTIONS = (STRENGTH, DTYPE, RANK, ENERGY)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="An erasure, a LoRA, or weights of an erased UNet: a file or a diffusers folder.",
    )
    models.add_arguments(parser)
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
    in_folder = arguments.to == "official" and out.is_dir()
    if not in_folder:
        _check(out, arguments, is_folder)
    models.check_model(arguments.model)
    (source,) = erased.open_all([erased.Erased(arguments.file)])
    from ..export import Options, export, official_name

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
    return {
        field.name: field.default if word is None else word
        for field, word in zip(_OPTIONS, given(arguments, _OPTIONS).values(), strict=True)
    }
