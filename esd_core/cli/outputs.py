"""The files a command writes: checked before any work is done, and written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..storage.output import megabytes, output_file, reason, refuse_existing

if TYPE_CHECKING:
    from PIL.Image import Image


def add_out(parser: ArgumentParser, metavar: str, text: str) -> None:
    """--out, and --force to overwrite."""
    parser.add_argument("--out", metavar=metavar, type=Path, required=True, help=text)
    add_force(parser)


def add_force(parser: ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="Overwrite files that exist.")


def check_outputs(
    outputs: Iterable[Path | None],
    inputs: Iterable[str | Path] = (),
    force: bool = False,
    folder: bool = False,
) -> None:
    """FileError for an output that exists (unless `force`), cannot be written, or is given twice.

    Leaves nothing on the disk.

    Args:
        outputs: None for one that was not asked for.
        inputs: files that are read, and must not be overwritten.
        folder: whether the outputs are folders.
    """
    taken = {_resolved(Path(path)) for path in inputs}
    for path in outputs:
        if path is None:
            continue
        resolved = _resolved(path)
        if resolved in taken:
            raise FileError(f"{path} is given for two things at once: choose another name")
        taken.add(resolved)
        refuse_existing(path, force)
        check_writable(path)
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            raise FileError(f"{path} is there and is not a {'folder' if folder else 'file'}")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        raise FileError(
            f"{path} cannot be opened: its symbolic links go round in a loop"
        ) from error


def check_room(path: Path, needed: int) -> None:
    """FileError when the disk has no room for a file of so many bytes."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FileError(
            f"{path} needs {megabytes(needed)}, and {megabytes(free)} are free there: make room, "
            "or choose another --out"
        )


def check_writable(path: Path) -> None:
    """FileError when no such file can be made, as tried in the nearest existing folder."""
    try:
        for folder in (path, *path.absolute().parents):
            if _exists(folder) and folder != path:
                tempfile.TemporaryFile(dir=folder).close()
                return
    except OSError as error:
        raise FileError(f"{path} cannot be written: {reason(error)} ({folder})") from error


def _exists(path: Path) -> bool:
    """Unlike Path.exists, it raises OSError for a name that can never be."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_json(path: Path, value: Any, force: bool) -> None:
    """A report; NaN and infinities, which JSON does not have, become null."""
    plain = json.loads(json.dumps(value), parse_constant=lambda _: None)
    _write(path, (json.dumps(plain, indent=2) + "\n").encode("utf-8"), force)


def write_png(path: Path, image: Image, force: bool) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    _write(path, buffer.getvalue(), force)


def _write(path: Path, data: bytes, force: bool) -> None:
    with output_file(path, len(data), force) as file:
        file.write(data)
