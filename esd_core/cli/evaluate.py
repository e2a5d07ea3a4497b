"""`esd evaluate`: what the embedded model shows before and after, as its oracle reads it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from pydantic import Field

from ..config.rules import Settings
from ..errors import ConfigError
from ..pocket import FIRST_SEED
from . import erased, outputs
from . import model as models
from .console import progress_bar, say
from .flags import add_flags, read
from .room import Room

_TOGETHER = 32
"""Pictures that are drawn side by side, where there is room for them."""


class Pictures(Settings):
    """Which pictures are drawn and read."""

    per_pair: int = Field(16, ge=1, le=10_000)
    """Pictures of every object in every style; a share has six times as many behind it."""
    steps: int = Field(20, ge=1, le=1000)
    """Euler steps."""
    seed: int = Field(FIRST_SEED, ge=0, le=2**62)
    """The first of as many seeds as there are pictures."""


def add_arguments(parser: ArgumentParser) -> None:
    models.add_arguments(parser)
    erased.add_argument(parser, False, "An erasure; several are applied together.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="Where to write the table.")
    outputs.add_force(parser)
    add_flags(parser, "pictures", Pictures.model_fields)


def run(arguments: Namespace) -> int:
    asked = read(Pictures, arguments)
    inputs = [file.path for file in arguments.erased]
    outputs.check_outputs([arguments.json], inputs, arguments.force)
    denoiser, erasures = erased.load(arguments)
    from ..pocket.judge import judge, table
    from ..pocket.world import LOOKS, OBJECTS, SIZE

    if models.native_size(denoiser) != SIZE:
        raise ConfigError(
            f"{arguments.model} is not an embedded model, whose drawn world is all that can be "
            "judged: give --model pocket or pocket-dit, or look at the pictures of `esd compare`"
        )
    total = asked.per_pair * len(OBJECTS) * len(LOOKS) * (2 if erasures else 1)
    with models.memory_told(), progress_bar(total, "pictures") as bar:
        batch = Room(denoiser, SIZE, SIZE).side_by_side(_TOGETHER, [e for e, _ in erasures])
        judged = judge(
            denoiser, erasures, **asked.model_dump(), on_progress=bar.update, batch=batch
        )
    result = judged.as_dict()
    say(table(result))
    if arguments.json:
        outputs.write_json(arguments.json, result, arguments.force)
    return 0
