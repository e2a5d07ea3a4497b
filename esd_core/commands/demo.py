"""`esd demo`: the whole way on the embedded model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=Path("out/demo"),
        help="Where the erasure, comparison.png and report.json go (default out/demo).",
    )


def run(arguments: Namespace) -> int:
    from .console import hush

    hush()
    from ..demo import run_demo

    return run_demo(arguments.out)
