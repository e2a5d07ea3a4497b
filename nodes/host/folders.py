"""Where files are read and written: never outside of the host's own folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import folder_paths

from ...esd_core.errors import ConfigError, ESDError, FileError
from ...esd_core.files import history
from ...esd_core.files.open import is_official
from ...esd_core.storage.reading import tensor_names

LORAS = "loras"
"""The host's kind of folder that erasures live in, so that stock LoRA loaders list them."""
STATES = "esd_training"

_OFFICIAL = " (official format)"
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')


def check_prefix(prefix: str) -> None:
    """ConfigError for a file name prefix that is not a name, or leads elsewhere."""
    parts = prefix.replace("\\", "/").split("/")
    if not all(part.strip(" .") for part in parts) or _FORBIDDEN.search(prefix):
        raise ConfigError(
            f'filename_prefix "{prefix}" is not valid: write NAME or FOLDER/NAME, without .. or '
            "any of < > : | ? *"
        )


def next_file(folder: str, prefix: str) -> Path:
    """A numbered name below output/`folder` that is not taken; its folder is made."""
    inside, name, number = _numbered(folder, prefix)
    return inside / f"{name}_{number:05}_.safetensors"


def numbered_files(folder: str, prefix: str) -> Iterator[Path]:
    """What `next_file` has been written to for that prefix, newest first."""
    inside, name, number = _numbered(folder, prefix)
    for before in range(number - 1, 0, -1):
        path = inside / f"{name}_{before:05}_.safetensors"
        if path.is_file():
            yield path


def _numbered(folder: str, prefix: str) -> tuple[Path, str, int]:
    check_prefix(prefix)
    inside, name, number, *_ = folder_paths.get_save_image_path(
        f"{folder}/{prefix}", folder_paths.get_output_directory()
    )
    return Path(inside), name, number


def written_files(folder: str) -> Iterator[Path]:
    """All files of weights below output/`folder`."""
    yield from sorted(Path(folder_paths.get_output_directory(), folder).rglob("*.safetensors"))


def states_folder() -> Path:
    """Where the states of stopped runs lie."""
    return Path(folder_paths.get_output_directory()) / STATES


def history_file() -> Path:
    """The log of all runs."""
    return Path(folder_paths.get_output_directory()) / history.NAME


def lora_names() -> list[str]:
    """What loaders of LoRAs list; behind the official code's files, which no stock one reads, it
    says so."""
    names: list[str] = folder_paths.get_filename_list(LORAS)
    return [f"{name}{_OFFICIAL}" if _is_official(name) else name for name in names]


@cache
def _is_official(name: str) -> bool:
    """Asked once for every name: the host asks for the list many times, and may have hundreds."""
    path = folder_paths.get_full_path(LORAS, name)
    try:
        return path is not None and is_official(tensor_names(Path(path)))
    except ESDError:  # what is wrong with the file is said when it is loaded
        return False


def lora_path(name: str) -> Path:
    """The file of that name, as listed; FileError when it is in none of the host's folders."""
    path = folder_paths.get_full_path(LORAS, name.removesuffix(_OFFICIAL))
    if path is None:
        raise FileError(
            f'there is no file "{name}" in the folders for LoRAs: press R to read them again, and '
            "choose one that is listed"
        )
    return Path(path)


def without_folders(text: str) -> str:
    """The text with files as a person finds them, and not from the root of the disk on."""
    output, models = folder_paths.get_output_directory(), folder_paths.models_dir
    places = {output: "output", models: "models"}
    places |= {folder: LORAS for folder in folder_paths.get_folder_paths(LORAS)}
    for place in sorted(places, key=len):  # models/loras as such, where it is in models
        for separator in {"/", os.sep}:
            text = text.replace(f"{place}{separator}", f"{places[place]}/")
    return text


def shown(path: Path) -> str:
    """A path as a person finds it: from the output folder on, where it lies in there."""
    output = Path(folder_paths.get_output_directory())
    return f"output/{path.relative_to(output).as_posix()}" if output in path.parents else str(path)
