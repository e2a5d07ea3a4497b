"""`esd bench`: what the method costs beside other ways to the same end.

The benchmarks themselves lie in the repository, in tests/benchmarks, and are not installed.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.fields import Bounds, Field
from ..config.presets import load_preset
from ..config.settings import ErasureConfig, override
from ..errors import ConfigError, FileError
from . import erase, evaluate, outputs
from . import model as models
from .console import note
from .flags import add_fields, given, value

if TYPE_CHECKING:
    from types import ModuleType

NAMES = {
    "samples": "evaluations that a training sample costs",
    "erase": "a whole erasure on pocket",
    "memory": "the peak of a training step of SDXL (18 GB, an hour)",
    "step": "a training step, on pocket and SDXL (17 GB)",
    "concepts": "ten concepts in one run",
    "batching": "sampling as batches",
    "load": "ESDLoadErased in ComfyUI (6 GB)",
}
PAIRS = Field("pairs", int, None, "Pairs of runs (default: 3 or 5).", bounds=Bounds(1, 100))
DEFAULT_CONCEPT = "Van Gogh"
FOLDER = Path(__file__).resolve().parents[2] / "tests" / "benchmarks"


def add_arguments(parser: ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {text}" for name, text in NAMES.items())
    parser.add_argument("name", metavar="NAME", nargs="?", choices=[*NAMES], help=f"{listed}.")
    parser.add_argument(
        "--all", action="store_true", help="Run them all, one by one, and print a table."
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="JSON is what one benchmark prints; where to write it too.",
    )
    outputs.add_force(parser)
    add_fields(parser, "runs", [PAIRS])
    add_fields(parser, "pictures, of erase", [evaluate.PER_PAIR])
    erase.add_settings(parser)


def run(arguments: Namespace) -> int:
    """Prints {"name", "ours", "other", "pairs", "ratio", "versions", "threads", ...}.

    ratio is the median of pairs, which are ours / other. Further figures of the same benchmark
    stand below "also", in the same form.
    """
    if bool(arguments.name) == arguments.all:
        raise ConfigError(f"give one benchmark of {', '.join(NAMES)}, or --all")
    outputs.check_outputs([arguments.json], force=arguments.force)
    modules = _modules()
    from benchmarks.figure import table

    results, figures = [], []
    for name in NAMES if arguments.all else [arguments.name]:
        note(f"{name}: {NAMES[name]}")
        measured = _run(name, modules[name], arguments)
        figures += measured
        first, *further = (figure.as_dict() for figure in measured)
        results.append({**first, "also": further} if further else first)
    shown: Any = results if arguments.all else results[0]
    print(table(figures) if arguments.all else json.dumps(shown, indent=2))
    if arguments.json:
        outputs.write_json(arguments.json, shown, arguments.force)
    return 0


def _modules() -> dict[str, ModuleType]:
    """The benchmarks by name; FileError where they are not."""
    if not FOLDER.is_dir():
        raise FileError(
            "the benchmarks are not installed: they lie in tests/benchmarks of the repository, so "
            "run `pip install -e .` and `esd bench` there"
        )
    sys.path.insert(0, str(FOLDER.parent))
    from benchmarks import batching, concepts, load, memory, samples, step
    from benchmarks import erase as whole

    parts = (samples, whole, memory, step, concepts, batching, load)
    return dict(zip(NAMES, parts, strict=True))


def _run(name: str, module: ModuleType, arguments: Namespace) -> Any:
    pairs = value(arguments, PAIRS) or module.PAIRS
    if name != "erase":
        return module.run(pairs)
    settings = {"concepts": [DEFAULT_CONCEPT], **load_preset(models.POCKET)}
    config = ErasureConfig.from_mapping(override(settings, given(arguments, erase.FIELDS)))
    return module.run(pairs, config, value(arguments, evaluate.PER_PAIR))
