"""`esd demo`: the whole way on the embedded model, from the concept's name to measures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.mappings import override
from ..config.presets import load_preset
from ..config.settings import ErasureConfig
from ..pocket import GUIDANCE
from . import evaluate, outputs
from . import model as models
from .console import StopRequest, pictures
from .events import TerminalEvents

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..files.erasure import Erasure
    from ..models.diffusers_backend import DiffusersDenoiser

CONCEPT = "Van Gogh"
PROMPTS = {
    "names the erased style": (
        "a drawing of a house in the style of Van Gogh",
        "Van Gogh artwork showing a flower",
        "a lovely boat, painted in Van Gogh style",
    ),
    "other styles": (
        "Mondrian artwork showing a house",
        "a drawing of a fish in the style of Hokusai",
        "a lovely tree, painted in Seurat style",
        "pixel art artwork showing a car",
    ),
    "plain objects": ("an image of a house", "a photograph of a flower", "one boat"),
}
FIRST_SEED, STEPS = 500, 20
EVALUATION_STEPS = 12
"""Of the 1152 pictures that are only read: fewer than of those to look at, to save a minute."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=Path("out/demo"),
        help="Where erasure.safetensors, comparison.png and report.json go (default out/demo).",
    )


def run(arguments: Namespace) -> int:
    """An older demo in the folder is replaced."""
    out: Path = arguments.out
    files = [out / name for name in ("erasure.safetensors", "comparison.png", "report.json")]
    outputs.check_outputs(files, force=True)
    denoiser = models.load(models.POCKET)
    from ..files.native import write_erasure
    from ..pocket.judge import table
    from ..training.run import erase

    settings = override(load_preset(models.POCKET), {"concepts": [CONCEPT]})
    config = ErasureConfig.from_mapping(settings)
    print(f'Erasing "{CONCEPT}" from pocket by {config.method}', flush=True)
    events = TerminalEvents(denoiser, config, files[0])
    with events.bar, StopRequest() as control:
        result = erase(denoiser, config, events, control)
    if result.outcome.ending == "stopped":
        raise KeyboardInterrupt
    write_erasure(files[0], result.erasure, force=True)
    print("Drawing and reading pictures, before and after", flush=True)
    evaluation = _evaluate(denoiser, result.erasure)
    outputs.write_png(files[1], _comparison(denoiser, result.erasure), force=True)
    report = {"evaluation": evaluation, "training": result.report, "config": config.to_mapping()}
    outputs.write_json(files[2], report, force=True)
    print(table(evaluation))
    print("\n".join(["Written:", *(f"  {path}" for path in files)]))
    return 0


def _evaluate(denoiser: DiffusersDenoiser, erasure: Erasure) -> dict[str, Any]:
    from ..pocket.judge import judge
    from ..pocket.world import LOOKS, OBJECTS

    per_pair = evaluate.Pictures().per_pair
    with pictures(2 * per_pair * len(OBJECTS) * len(LOOKS)) as report:
        judged = judge(denoiser, [(erasure, 1.0)], per_pair, EVALUATION_STEPS, on_progress=report)
    return judged.as_dict()


def _comparison(denoiser: DiffusersDenoiser, erasure: Erasure) -> Image:
    from ..files.apply import applied
    from ..images.grid import DIFFERENCE_HEADER, Row, comparison_grid, difference
    from ..images.render import render
    from ..pocket.world import SIZE

    labels = [(heading, prompt) for heading, prompts in PROMPTS.items() for prompt in prompts]
    prompts = [prompt for _, prompt in labels]
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(labels)))
    before = render(denoiser, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)
    with applied(denoiser, [(erasure, 1.0)]):
        after = render(denoiser, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)
    rows = [
        Row(prompt, [a, b, difference(a, b)], f"seed {seed}", heading)
        for (heading, prompt), seed, a, b in zip(labels, seeds, before, after, strict=True)
    ]
    columns = ["original", f"{CONCEPT} erased", DIFFERENCE_HEADER]
    return comparison_grid(rows, columns, f'"{CONCEPT}" erased from pocket')
