"""Networks and erasures under diffusers' names.

A folder as a UNet's or a transformer's save_pretrained writes it; and the official code's file,
which holds the erased model's absolute weights of the trained layers (`esd-*.safetensors`, loaded
with `unet.load_state_dict(..., strict=False)`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from ..errors import ESDError, FileError
from ..models.parts import Part
from ..storage.lazy import LazyTensors, renamed, union
from ..storage.output import flush, output_folder
from ..storage.reading import file_tensors, read_header
from ..storage.writing import write_into, write_safetensors
from .parts import in_parts, joined, parts_of

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
INDEX_FILE = f"{WEIGHTS_STEM}.safetensors.index.json"
_NETWORKS = ("unet", "transformer")
"""Their folders in a pipeline's."""
SHARD_SIZE = 5_000_000_000  # bytes of tensors in a file, at most


def write_unet_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    force: bool = False,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write weights, by canonical names, so that the class's from_pretrained loads them.

    config: that of their UNet or transformer. One tensor at a time is in memory.
    Raises FileError if config does not fit the weights, if the folder exists (with `force`, if it
    holds anything but a network), or if it cannot be written.
    """
    parts = parts_of(config)
    _check_config_fits(parts, weights)
    tensors = in_parts(weights, parts)
    specs: dict[str, Any] = dict(tensors.specs)
    split = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda spec: spec.size,
        filename_pattern=f"{WEIGHTS_STEM}{{suffix}}.safetensors",
        max_shard_size=shard_size,
    )
    total = split.metadata["total_size"]
    with output_folder(folder, total, force, _is_of_a_unet_folder) as inside:
        for file_name, shard in split.filename_to_tensors.items():
            with (inside / file_name).open("xb") as file:
                write_into(file, renamed(tensors, {n: n for n in shard}), {"format": "pt"})
                flush(file)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            _write_json(inside / INDEX_FILE, index)
        _write_json(inside / CONFIG_FILE, plain_config(config))


def write_official(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write the erased weights, those of the trained tensors alone, in diffusers' names.

    Raises FileError as `write_unet_folder`.
    """
    parts = {name: part for name, part in parts_of(config).items() if name in weights}
    _check_config_fits(parts, weights)
    write_safetensors(path, in_parts(weights, parts), metadata or {"format": "pt"}, force)


def read_unet_folder(folder: Path) -> tuple[dict[str, Any], LazyTensors]:
    """Config, and tensors by canonical name, of the folder of a UNet or transformer, sharded or
    not, or of the one in a pipeline's.

    Raises FileError if it holds none, or a damaged one.
    """
    folder = next((folder / name for name in _NETWORKS if (folder / name).is_dir()), folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        parts = parts_of(config)
    except FileNotFoundError as error:
        raise FileError(f"{folder} is not the folder of a UNet: it lacks {CONFIG_FILE}") from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ESDError) as error:
        raise FileError(f"{folder / CONFIG_FILE} cannot be read: {error}") from error
    tensors = union(*(file_tensors(read_header(file)) for file in _weight_files(folder)))
    unexpected = tensors.keys() ^ {own for part in parts.values() for own in part.rows}
    if unexpected:
        raise FileError(
            f"{folder} is damaged: {min(unexpected)} is only in its config or only in its weights "
            f"({len(unexpected)} such tensors)"
        )
    return config, joined(tensors, parts)


def _weight_files(folder: Path) -> list[Path]:
    """Those that from_pretrained would take: the plain ones before a variant such as fp16."""
    plain = folder / f"{WEIGHTS_STEM}.safetensors"
    if plain.is_file():
        return [plain]
    shards = sorted(folder.glob(f"{WEIGHTS_STEM}-*.safetensors"))
    others = sorted(folder.glob(f"{WEIGHTS_STEM}.*.safetensors"))
    if not shards and not others:
        raise FileError(f"{folder} holds no {plain.name}: only safetensors files are read")
    return shards or others[:1]


def _check_config_fits(parts: Mapping[str, Part], base: Mapping[str, Tensor]) -> None:
    unexpected = parts.keys() ^ set(base)
    if unexpected:
        raise FileError(
            f"the model's config does not fit its UNet: {min(unexpected)} is only in one of "
            f"the two ({len(unexpected)} such tensors)"
        )


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as save_pretrained writes it: none of the entries that only live in memory."""
    saved = ("_class_name", "_diffusers_version")
    plain = {k: value for k, value in config.items() if k in saved or not k.startswith("_")}
    return {"_class_name": "UNet2DConditionModel", **plain}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("xb") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True).encode("utf-8") + b"\n")
        flush(file)


def _is_of_a_unet_folder(name: str) -> bool:
    return name == CONFIG_FILE or name.startswith(WEIGHTS_STEM)
