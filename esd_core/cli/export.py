"""`esd export`: an erasure in the forms that other programs read, from whatever file it is in."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Literal

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
    erased.add_file(parser)
    models.add_arguments(parser, device=False)
    outputs.add_out(parser, "PATH", "The file or folder to write.")
    add_flags(parser, "form", Form.model_fields)


def run(arguments: Namespace) -> int:
    form = read(Form, arguments)
    if form.to != LORA and (form.rank or form.energy):
        raise ConfigError("--rank and --energy are for --to lora")
    from ..files.export import export, official_name
    from ..files.open import open_source
    from ..storage.dtypes import PRECISIONS

    source = open_source(arguments.file)
    out: Path = arguments.out
    if form.to == OFFICIAL and out.is_dir():
        out = out / official_name(source.metadata)
    inputs = [arguments.file, arguments.model]
    outputs.check_outputs([out], inputs, arguments.force, FORMATS[form.to].is_folder)
    base = models.base(arguments.model)
    erasure = erased.fitted_to(source, base)
    rank = form.rank if form.rank or form.energy else DEFAULT_RANK
    dtype, energy, force = PRECISIONS[form.dtype], form.energy, arguments.force
    report = export(form.to, out, erasure, base, form.strength, dtype, rank, energy, force)
    say("\n".join(filter(None, (report, f"written to {out}"))))
    return 0
