"""`esd export`: an erasure in the forms that other programs read, from whatever file it is in."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..config.rules import Settings
from ..config.settings import FileDtype, Number
from ..errors import ConfigError
from ..files.formats import FORMATS, LORA, OFFICIAL, WRITTEN
from . import erased, outputs
from . import model as models
from .console import say
from .flags import add_flags, read


class Form(Settings):
    """What is written, and how."""

    to: Literal["unet", "diffusers", "official", "lora", "erasure"] = Field(
        description="; ".join(f"{name}: {FORMATS[name].purpose}" for name in WRITTEN.values())
        + "; --out may be a folder for official."
    )
    strength: Number = Field(1.0, ge=-100, le=100)
    """How much of the change is taken."""
    dtype: FileDtype = "fp16"
    """Number format of what is written."""
    rank: int | None = Field(None, ge=1, le=4096)
    """Rank of a lora's layers, at most (default 16, or no bound with --energy)."""
    energy: float | None = Field(None, gt=0, le=1)
    """For a lora: the smallest rank that keeps this share of a layer's squared norm."""


DEFAULT_RANK = 16


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="An erasure, a LoRA, or weights of an erased UNet: a file or a diffusers folder.",
    )
    models.add_model(parser)
    parser.add_argument(
        "--out", metavar="PATH", type=Path, required=True, help="The file or folder to write."
    )
    outputs.add_force(parser)
    add_flags(parser, "form", Form.model_fields)


def run(arguments: Namespace) -> int:
    form = read(Form, arguments)
    out, is_folder = arguments.out, FORMATS[form.to].is_folder
    if form.to != LORA and (form.rank, form.energy) != (None, None):
        raise ConfigError("--rank and --energy are for --to lora")
    in_folder = form.to == OFFICIAL and out.is_dir()
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
    options = Options(**_chosen(form), force=arguments.force)
    report = export(form.to, out, erasure, base, options)
    say("\n".join(filter(None, (report, f"written to {out}"))))
    return 0


def _check(out: Path, arguments: Namespace, is_folder: bool) -> None:
    inputs = [arguments.file, arguments.model]
    outputs.check_outputs([out], inputs, arguments.force, is_folder)


def _chosen(form: Form) -> dict[str, Any]:
    from ..storage.dtypes import PRECISIONS

    chosen = form.model_dump(exclude={"to"}) | {"dtype": PRECISIONS[form.dtype]}
    if (form.rank, form.energy) == (None, None):
        chosen["rank"] = DEFAULT_RANK
    return chosen
