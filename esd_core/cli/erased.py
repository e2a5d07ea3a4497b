"""Erasure files on a command line: FILE or FILE:STRENGTH."""

from __future__ import annotations

import math
import re
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, counted
from . import model as models
from .console import note

if TYPE_CHECKING:
    from ..files.base import Base
    from ..files.erasure import Erasure
    from ..files.open import Source
    from ..models.headless import Headless

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Erased:
    """An erasure file and how strongly it is applied."""

    path: Path
    strength: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.path.name.removesuffix('.safetensors')} x{self.strength:g}"


def add_argument(parser: ArgumentParser, required: bool, text: str) -> None:
    """--erased, which may be given several times."""
    parser.add_argument(
        "--erased",
        metavar="FILE[:STRENGTH]",
        type=parse,
        action="append",
        required=required,
        default=[],
        help=f"{text} STRENGTH is 1 unless given; 0.5 applies half of the change.",
    )


def add_file(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="An erasure, a LoRA, or weights of an erased UNet: a file or a diffusers folder.",
    )


def parse(word: str) -> Erased:
    """Split at the last colon, if a number follows it: a path may hold colons too."""
    path, colon, number = word.rpartition(":")
    if not colon or not _NUMBER.fullmatch(number) or Path(word).is_file():
        return Erased(Path(word))
    strength = float(number)
    if not path or not math.isfinite(strength):
        raise ConfigError(f'"{word}" is not an erasure: write FILE or FILE:STRENGTH')
    return Erased(Path(path), strength)


def load(arguments: Namespace) -> tuple[Headless, list[tuple[Erasure, float]]]:
    """The model, and the change that each --erased makes to it, with its strength.

    Files are checked before the model is loaded. FileError for one that does not fit; one made for
    other weights only gives a warning.
    """
    from ..files.base import Base
    from ..files.open import open_source

    sources = [open_source(file.path) for file in arguments.erased]
    denoiser = models.load(arguments.model, device=arguments.device)
    base = Base(denoiser.architecture, denoiser.config, denoiser.parameters())
    pairs = zip(arguments.erased, sources, strict=True)
    return denoiser, [(fitted_to(source, base), file.strength) for file, source in pairs]


def fitted_to(source: Source, base: Base) -> Erasure:
    """The change that a source makes to a base; notes what does not quite fit."""
    from ..files.apply import check_fits

    erasure = source.erasure(base)
    warning = check_fits(erasure, base)
    if warning:
        note(f"esd: warning: {warning}")
    if source.skipped:
        note(f"esd: {source.path.name}: {counted(source.skipped, 'tensor')} not of a UNet left out")
    return erasure
