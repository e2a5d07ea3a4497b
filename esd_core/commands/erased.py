"""Erasure files on a command line: FILE or FILE:STRENGTH."""

from __future__ import annotations

import math
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .console import note

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..erasure import Erasure

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
        action="append",
        required=required,
        default=[],
        help=f"{text} STRENGTH is 1 unless given; 0.5 applies half of the change.",
    )


def parse(word: str) -> Erased:
    """Split at the last colon, if a number follows it: a path may hold colons too."""
    path, colon, number = word.rpartition(":")
    if not colon or not _NUMBER.fullmatch(number) or Path(word).is_file():
        return Erased(Path(word))
    strength = float(number)
    if not path or not math.isfinite(strength):
        raise ConfigError(f'"{word}" is no erasure: write FILE or FILE:STRENGTH')
    return Erased(Path(path), strength)


def read(files: Sequence[Erased]) -> list[tuple[Erasure, float]]:
    """All of them, each with its strength; FileError as `read_erasure`."""
    from ..erasure import read_erasure

    return [(read_erasure(file.path), file.strength) for file in files]


def check_fit(erasures: Sequence[tuple[Erasure, float]], denoiser: Denoiser) -> None:
    """FileError for one of another model's shape; one of other weights is only warned about."""
    from ..erasure import check_fits

    for erasure, _ in erasures:
        warning = check_fits(erasure, denoiser)
        if warning:
            note(f"esd: warning: {warning}")
