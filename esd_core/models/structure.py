"""A UNet's structure, read off the names and shapes of its tensors.

So that a file needs no config beside it. What shapes do not show, the number of attention heads
and the width of the embedding of sizes, is what the published models have.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import FileError
from .architectures import SDXL, Architecture, by_width
from .keys import diffusers_to_canonical

Shapes = Mapping[str, tuple[int, ...]]

_ATTENDS = re.compile(
    r"attn2[._](processor\.)?to_k\.(weight|diff|lora_down\.weight|lora_A\.weight|lora\.down\.weight)$"
)


def architecture_of(shapes: Shapes) -> str:
    """The name of an Architecture, whatever naming the tensors have; "" if none of them tells."""
    for name, shape in shapes.items():
        if _ATTENDS.search(name) and len(shape) > 1:
            known = by_width(shape[1])
            return known.name if known else ""
    return ""


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """The config of the UNet2DConditionModel with these tensors, given by canonical name.

    Raises FileError if they are not those of one whole UNet of SD 1.x, SD 2.x or SDXL.
    """
    try:
        config = _config(shapes)
        fits = set(diffusers_to_canonical(config).values()) == set(shapes)
    except (KeyError, IndexError, StopIteration):
        fits = False
    if not fits:
        raise FileError("these tensors are not those of a whole UNet of SD 1.x, SD 2.x or SDXL")
    return config


def _config(shapes: Shapes) -> dict[str, Any]:
    down, up = _levels(shapes, "input_blocks", 1), _levels(shapes, "output_blocks", 0)
    middle = _depth(shapes, "middle_block")
    channels = [level[-1][0] for level in down]
    depths: list[Any] = [[depth or 1 for _, depth in level] for level in down]
    if not down[-1][0][1] and middle:
        depths[-1] = [middle] * len(depths[-1])
    mirrored = [[depth or 1 for _, depth in level] for level in up]
    is_plain = all(len(set(level)) == 1 for level in depths) and all(
        not after[0][1] or set(there) == set(here)
        for after, there, here in zip(up, mirrored, reversed(depths), strict=True)
    )
    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": _once([len(level) for level in down]),
        "down_block_types": [_type("Down", level) for level in down],
        "up_block_types": [_type("Up", level) for level in up],
        "transformer_layers_per_block": [d[0] for d in depths] if is_plain else depths,
        "cross_attention_dim": _first(shapes, "attn2.to_k.weight")[1],
        "use_linear_projection": len(_first(shapes, ".proj_in.weight")) == 2,
    }
    if not is_plain:
        config["reverse_transformer_layers_per_block"] = mirrored
    if not middle:
        has_middle = "middle_block.0.in_layers.0.weight" in shapes
        config["mid_block_type"] = "UNetMidBlock2D" if has_middle else None
    known = by_width(config["cross_attention_dim"]) or SDXL
    config["attention_head_dim"] = known.heads or [max(1, width // 64) for width in channels]
    return config | _labels(shapes, known)


def _once(counts: list[int]) -> int | list[int]:
    """One number where all are equal: diffusers' loader of LoRAs cannot take a list."""
    return counts[0] if len(set(counts)) == 1 else counts


Level = list[tuple[int, int | None]]
"""The residual blocks of a resolution: width, and depth of the transformer behind it."""


def _levels(shapes: Shapes, side: str, block: int) -> list[Level]:
    levels: list[Level] = [[]]
    while True:
        path = f"{side}.{block}"
        if f"{path}.0.op.weight" in shapes:
            levels.append([])
        elif f"{path}.0.out_layers.3.weight" in shapes:
            width = shapes[f"{path}.0.out_layers.3.weight"][0]
            levels[-1].append((width, _depth(shapes, path)))
            if any(f"{path}.{index}.conv.weight" in shapes for index in (1, 2)):
                levels.append([])
        else:
            return levels
        block += 1


def _depth(shapes: Shapes, path: str) -> int | None:
    count = 0
    while f"{path}.1.transformer_blocks.{count}.norm1.weight" in shapes:
        count += 1
    return count or None


def _type(side: str, level: Level) -> str:
    return f"CrossAttn{side}Block2D" if level[0][1] else f"{side}Block2D"


def _first(shapes: Shapes, end: str) -> tuple[int, ...]:
    return next(shape for name, shape in shapes.items() if name.endswith(end))


def _labels(shapes: Shapes, known: Architecture) -> dict[str, Any]:
    if "label_emb.weight" in shapes:
        return {"num_class_embeds": shapes["label_emb.weight"][0]}
    if "label_emb.0.0.weight" not in shapes:
        return {}
    inputs = {"projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1]}
    return {**known.label_config, **inputs}
