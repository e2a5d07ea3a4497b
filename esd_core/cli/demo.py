"""`esd demo`: the whole way on the embedded model, from the concept's name to measures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.presets import settled
from ..errors import ConfigError
from ..models.embedded import POCKET
from ..pocket import GUIDANCE
from . import model as models
from . import outputs
from .console import StopRequest, progress_bar
from .events import TerminalEvents

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..files.erasure import Erasure
    from ..models.headless import Headless
    from ..pocket.judge import Judgement, Reading

CONCEPT = "Van Gogh"
FILES = ("erasure.safetensors", "comparison.png", "report.json")
FIRST_SEED, STEPS = 500, 20
PER_PAIR, EVALUATION_STEPS = 12, 12
"""Of pictures that are only read, 432 before and as many after each erasure: fewer steps than of
those to look at and, where it is quicker, fewer bits, which saves a minute and a half."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--concept",
        metavar="NAME",
        action="append",
        help="What to erase of the objects and styles that pocket knows; repeat it for several"
        f" erasures (default {CONCEPT}).",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=Path("out/demo"),
        help="Where erasure.safetensors, comparison.png and report.json go, of several concepts"
        " into a folder each (default out/demo).",
    )
    models.add_device(parser)


def run(arguments: Namespace) -> int:
    """An older demo in the folder is replaced."""
    concepts = list(dict.fromkeys(arguments.concept or [CONCEPT]))
    folders = {
        name: arguments.out / name if len(concepts) > 1 else arguments.out for name in concepts
    }
    for concept, folder in folders.items():
        _check_concept(concept)
        outputs.check_outputs([folder / name for name in FILES], force=True)
    denoiser = models.load(POCKET, device=arguments.device)
    artist = models.load_artist(POCKET, arguments.device)
    before = None
    for concept, folder in folders.items():
        before = _show(denoiser, artist, concept, folder, before)
    return 0


def _show(
    denoiser: Headless,
    artist: Headless,
    concept: str,
    folder: Path,
    before: tuple[Reading, ...] | None,
) -> tuple[Reading, ...]:
    """Writes one erasure with its pictures and measures, and returns the untouched model's."""
    from ..files.native import write_erasure
    from ..pocket.judge import table
    from ..training.run import erase

    files = [folder / name for name in FILES]
    config = settled(POCKET, {"concepts": [concept]})
    print(f'Erasing "{concept}" from pocket by {config.method}', flush=True)
    events = TerminalEvents(denoiser, config, files[0])
    with events.bar, StopRequest() as control:
        result = erase(denoiser, config, events, control)
    if result.outcome.ending == "stopped":
        raise KeyboardInterrupt
    write_erasure(files[0], result.erasure, force=True)
    print("Drawing and reading pictures, before and after", flush=True)
    judged = _judge(artist, result.erasure, before)
    evaluation = judged.as_dict()
    outputs.write_png(files[1], _comparison(denoiser, result.erasure, concept), force=True)
    report = {"evaluation": evaluation, "training": result.report, "config": config.to_mapping()}
    outputs.write_json(files[2], report, force=True)
    print(table(evaluation))
    print("\n".join(["Written:", *(f"  {path}" for path in files)]))
    return judged.before


def _check_concept(name: str) -> None:
    from ..pocket.world import OBJECTS, STYLES

    if name not in (*STYLES, *OBJECTS):
        raise ConfigError(
            f'pocket does not know "{name}": give --concept one of {", ".join((*STYLES, *OBJECTS))}'
        )


def _judge(artist: Headless, erasure: Erasure, before: tuple[Reading, ...] | None) -> Judgement:
    from ..pocket.judge import judge
    from ..pocket.world import LOOKS, OBJECTS

    total = (1 + (before is None)) * PER_PAIR * len(OBJECTS) * len(LOOKS)
    with progress_bar(total, "pictures") as bar:
        return judge(
            artist,
            [(erasure, 1.0)],
            PER_PAIR,
            EVALUATION_STEPS,
            on_progress=bar.update,
            before=before,
        )


def _comparison(denoiser: Headless, erasure: Erasure, concept: str) -> Image:
    from ..files.apply import applied
    from ..images.grid import DIFFERENCE_HEADER, Row, comparison_grid, difference
    from ..images.render import render
    from ..pocket.captions import held_out_prompt
    from ..pocket.world import SIZE

    labels = [
        (heading, held_out_prompt(*pair, index))
        for heading, pairs in compared(concept).items()
        for index, pair in enumerate(pairs)
    ]
    prompts = [prompt for _, prompt in labels]
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(labels)))
    before = render(denoiser, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)
    with applied(denoiser, [(erasure, 1.0)]):
        after = render(denoiser, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)
    rows = [
        Row(prompt, [a, b, difference(a, b)], f"seed {seed}", heading)
        for (heading, prompt), seed, a, b in zip(labels, seeds, before, after, strict=True)
    ]
    columns = ["original", f"{concept} erased", DIFFERENCE_HEADER]
    return comparison_grid(rows, columns, f'"{concept}" erased from pocket')


def compared(concept: str) -> dict[str, list[tuple[str, str]]]:
    """By heading, the objects and looks of the pictures to look at."""
    from ..pocket.world import OBJECTS, PLAIN, STYLES

    objects = [name for name in OBJECTS if name != concept]
    looks = [name for name in STYLES if name != concept]
    styled = list(zip(objects, looks, strict=False))  # there are more objects
    own = [(concept, look) for look in (*looks[:2], PLAIN)]
    if concept in STYLES:
        own = [(name, concept) for name in objects[:3]]
    return {
        f"names {concept}": own,
        "other styles" if concept in STYLES else "other objects": styled,
        "plain objects": [(name, PLAIN) for name in objects[:3]],
    }
