"""Files and folders that appear whole under their name, or not at all.

They are written under a hidden name beside the target, flushed to the disk and renamed; on any
failure, an interruption by the person too, what was written is removed again.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import FileError


@contextmanager
def output_file(path: Path, needed: int, force: bool) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s name once the block has ended without an error.

    Missing parent folders are made. `needed`, in bytes, is in the error when the disk is full.
    Raises FileError if `path` exists (unless `force`) or cannot be written.
    """
    refuse_existing(path, force)
    temporary = _beside(path)
    with _failures_told(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                flush(file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def output_folder(
    path: Path, needed: int, force: bool, is_ours: Callable[[str], bool]
) -> Iterator[Path]:
    """A folder to fill that takes `path`'s name once the block has ended without an error.

    With `force` a folder that is there is replaced, but only if it holds nothing but files whose
    names satisfy `is_ours`: nobody's other files are lost. Errors are those of `output_file`.
    """
    refuse_existing(path, force)
    _refuse_other_contents(path, is_ours)
    temporary = _beside(path)
    with _failures_told(path, needed):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _replace_folder(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def flush(file: BinaryIO) -> None:
    """Have what was written on the disk before anything is renamed."""
    file.flush()
    os.fsync(file.fileno())


def refuse_existing(path: Path, force: bool) -> None:
    """Raises FileError if `path` is there already and may not be overwritten."""
    if not force and os.path.lexists(path):
        raise FileError(f"{path} exists already: choose another name, or force overwriting it")


def megabytes(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 1e6:.1f} MB"


def reason(error: OSError) -> str:
    """What went wrong, without the path."""
    return error.strerror or type(error).__name__


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder, thus on the same disk."""
    return path.parent / f".esd-{secrets.token_hex(6)}.partial"


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder; the one it replaces is gone only after that has worked."""
    if not target.exists():
        os.replace(source, target)
        return
    aside = _beside(target)
    os.replace(target, aside)
    try:
        os.replace(source, target)
    except BaseException:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _refuse_other_contents(folder: Path, is_ours: Callable[[str], bool]) -> None:
    if not os.path.lexists(folder):
        return
    with _failures_told(folder, 0):
        others = [
            entry.name
            for entry in folder.iterdir()
            if not (is_ours(entry.name) and entry.is_file())
        ]
    if others:
        raise FileError(
            f"{folder} holds other things ({min(others)}) and is not overwritten: choose another"
        )


@contextmanager
def _failures_told(path: Path, needed: int) -> Iterator[None]:
    """Turn an OSError in the block into a FileError that says what was needed and is free."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"{path} cannot be written: {reason(error)} "
            f"({megabytes(needed)} needed, {_free_space(path.parent)} free)"
        ) from error


def _free_space(folder: Path) -> str:
    try:
        return megabytes(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown amount"
