"""Files of erasures.

They are LoRA files in ComfyUI's own layout, names behind `diffusion_model.`, so that stock loaders
apply them with a strength and nobody needs this code to use a result.
"""

from pathlib import Path

from ..errors import FileError
from ..models.keys import PREFIX
from ..storage.lazy import renamed
from ..storage.reading import file_tensors, read_header
from ..storage.writing import write_safetensors
from .adapters import check_tensors
from .erasure import Erasure, checked_metadata
from .lora import ALPHA, DOWN, UP


def write_erasure(path: Path, erasure: Erasure, force: bool = False) -> None:
    """Whole or not at all; FileError when the file exists (unless `force`) or cannot be written."""
    tensors = renamed(erasure.tensors, {f"{PREFIX}{key}": key for key in erasure.tensors})
    write_safetensors(path, tensors, erasure.metadata, force)


def read_erasure(path: Path) -> Erasure:
    """FileError when the file is missing, damaged, not an erasure, or holds NaN or infinity."""
    header = read_header(path)
    foreign = [key for key in header.tensors if not _is_ours(key)]
    if foreign or not header.tensors:
        what = f'"{foreign[0]}"' if foreign else "no tensor"
        raise FileError(
            f"{path} is not an erasure file (it holds {what}): give one that a training wrote"
        )
    stored = file_tensors(header)
    tensors = renamed(stored, {key.removeprefix(PREFIX): key for key in stored})
    check_tensors(path, tensors)
    return Erasure(tensors, checked_metadata(path, header.metadata), path)


def _is_ours(key: str) -> bool:
    return key.startswith(PREFIX) and key.endswith((".diff", ".diff_b", UP, DOWN, ALPHA))
