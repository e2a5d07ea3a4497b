"""`esd history`: the runs that were made in a folder, and those that can go on."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import FileError
from ..files import history
from .console import say


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        nargs="?",
        default=Path(),
        help="Where erasures were written; ComfyUI's is its output folder. The current one unless "
        "given.",
    )
    parser.add_argument(
        "--json", action="store_true", help="A line of JSON for each, with all settings."
    )


def run(arguments: Namespace) -> int:
    from ..training.checkpoint import listed

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise FileError(f"there is no folder {folder}")
    stopped = listed(folder, folder / "esd_training")
    path = folder / history.NAME
    entries = history.read(path) if path.exists() or not stopped else []
    for entry in entries:
        say(json.dumps(entry, ensure_ascii=False) if arguments.json else history.described(entry))
    if stopped and not arguments.json:
        say("\n".join(["stopped runs, which can go on:", *(f"  {one}" for one in stopped)]))
    return 0
