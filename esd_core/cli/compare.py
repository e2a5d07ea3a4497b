"""`esd compare`: a labelled grid of pictures with and without erasures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from .. import pocket
from ..config.rules import Settings, Text
from ..config.settings import SIZES
from ..errors import FileError, counted
from ..models.embedded import EMBEDDED
from . import erased, outputs
from . import model as models
from .console import progress_bar, say
from .flags import add_flags, number, read
from .room import Room

if TYPE_CHECKING:
    from torch import Tensor

    from ..files.erasure import Erasure
    from ..models.headless import Headless


class Sampling(Settings):
    """How the pictures are drawn."""

    steps: int = Field(20, ge=1, le=1000)
    """Euler steps."""
    guidance: float | None = Field(None, ge=0, le=100)
    """Guidance; by default 3 for pocket, 3.5 for FLUX.1 dev, 1 for schnell, 4 for SD 3, 7 for
    others."""
    width: Annotated[int | None, SIZES] = None
    """In pixels; by default what the model was made for."""
    height: Annotated[int | None, SIZES] = None
    """In pixels; by default what the model was made for."""
    negative: Text = ""
    """What guidance leads away from."""


class Asked(Settings):
    """A row of the grid."""

    prompt: Text
    seed: int = Field(0, ge=0, le=2**63 - 1)


_PIXELS_AT_ONCE = 32 * 128 * 128
"""Side by side in a batch: what pocket draws well; at least one picture."""


def add_arguments(parser: ArgumentParser) -> None:
    models.add_arguments(parser)
    erased.add_argument(parser, True, "An erasure, for a column of its own.")
    parser.add_argument(
        "--prompt",
        metavar="PROMPT",
        action="append",
        required=True,
        help="A row for every seed.",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        action="append",
        type=number(int),
        help="A row for every prompt, with the same noise in all columns (default 0).",
    )
    outputs.add_out(parser, "FILE.png", "The grid to write.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="Where to write the measures.")
    add_flags(parser, "sampling", Sampling.model_fields)


def run(arguments: Namespace) -> int:
    asked = read(Sampling, arguments)
    rows = _rows(arguments)
    if arguments.out.suffix.lower() != ".png":
        raise FileError(f"{arguments.out} does not end in .png, the format that the grid is in")
    inputs = [file.path for file in arguments.erased]
    outputs.check_outputs([arguments.out, arguments.json], inputs, arguments.force)
    denoiser, erasures = erased.load(arguments)
    sampling = _sampling(asked, arguments.model, denoiser)
    with models.memory_told():
        columns = _render(denoiser, erasures, rows, sampling)
    from ..images import comparison

    measured = comparison.measure(columns)
    labels = [file.label for file in arguments.erased]
    footer = f"{counted(sampling['steps'], 'Euler step')}, guidance {sampling['guidance']:g}"
    grid = comparison.draw(rows, labels, columns, footer)
    outputs.write_png(arguments.out, grid, arguments.force)
    if arguments.json:
        report = _report(arguments, rows, measured, sampling)
        outputs.write_json(arguments.json, report, arguments.force)
    say(_summary(labels, measured, arguments.out))
    return 0


def _rows(arguments: Namespace) -> list[tuple[str, int]]:
    """Prompts and seeds."""
    seeds = arguments.seed or [0]
    words = [Namespace(prompt=prompt, seed=seed) for prompt in arguments.prompt for seed in seeds]
    return [(row.prompt, row.seed) for row in (read(Asked, word) for word in words)]


def _sampling(asked: Sampling, model: str, denoiser: Headless) -> dict[str, Any]:
    """How to render, by the names of `render`'s arguments."""
    size = models.native_size(denoiser)
    guidance = pocket.GUIDANCE if model in EMBEDDED else _guidance(denoiser)
    defaults = {"guidance": guidance, "width": size, "height": size}
    return defaults | asked.model_dump(exclude_none=True)


def _guidance(denoiser: Headless) -> float:
    """What its pictures are drawn with; of distilled models, what FLUX.1 dev is published with."""
    return 3.5 if denoiser.is_guided else denoiser.architecture.cfg


def _render(
    denoiser: Headless,
    erasures: list[tuple[Erasure, float]],
    rows: list[tuple[str, int]],
    sampling: dict[str, Any],
) -> list[Tensor]:
    """A column of pictures [N, 3, H, W] of the model itself, and one an erasure."""
    from ..files.apply import applied
    from ..images.render import render

    prompts, seeds = [prompt for prompt, _ in rows], [seed for _, seed in rows]
    size = sampling["width"], sampling["height"]
    wanted = min(len(rows), max(1, _PIXELS_AT_ONCE // (size[0] * size[1])))
    batch = Room(denoiser, *size).side_by_side(wanted, [erasure for erasure, _ in erasures])
    columns: list[Tensor] = []
    with progress_bar(len(rows) * (1 + len(erasures)), "pictures") as bar:
        for changes in ([], *([pair] for pair in erasures)):
            with applied(denoiser, changes):
                column = render(
                    denoiser, prompts, seeds, **sampling, batch=batch, on_picture=bar.update
                )
            columns.append(column)
    return columns


def _report(
    arguments: Namespace,
    rows: list[tuple[str, int]],
    measured: list[list[dict[str, float]]],
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """Measures are in the order of `erased`."""
    return {
        "model": arguments.model,
        "erased": [{"file": str(e.path), "strength": e.strength} for e in arguments.erased],
        "sampling": sampling,
        "rows": [
            {"prompt": prompt, "seed": seed, "measures": of_row}
            for (prompt, seed), of_row in zip(rows, measured, strict=True)
        ],
    }


def _summary(labels: list[str], measured: list[list[dict[str, float]]], out: Path) -> str:
    """The mean over all rows of every measure, a line an erasure."""
    from ..images.comparison import mean

    lines = []
    for label, of_erasure in zip(labels, zip(*measured, strict=True), strict=True):
        means = mean(of_erasure).items()
        lines.append(f"{label}: " + ", ".join(f"{name} {value:.3f}" for name, value in means))
    return "\n".join([*lines, f"written to {out}"])
