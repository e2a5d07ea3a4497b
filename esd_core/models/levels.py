"""The levels of a UNet, as diffusers' config has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ESDError

_MOST = 100
"""Blocks in a row: SDXL has ten, and a damaged config may name any number."""

# Parts of a UNet that LDM has no names for, and the values that mean their absence.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text_time"),
    "attention_type": (None, "default"),
    "class_embed_type": (None, "timestep", "projection"),
    "class_embeddings_concat": (None, False),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (None, False),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": (None, "positional"),
}

# Block type -> whether its residual blocks are followed by transformers; diffusers' defaults.
_BLOCKS = {
    "down": {"DownBlock2D": False, "CrossAttnDownBlock2D": True},
    "up": {"UpBlock2D": False, "CrossAttnUpBlock2D": True},
}
_DEFAULTS = {
    "down": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
_MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)


@dataclass(frozen=True)
class Level:
    """One resolution: its residual blocks, each with a transformer's depth or None."""

    channels: int
    depths: tuple[int | None, ...]


def refuse_foreign_parts(config: Mapping[str, Any]) -> None:
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise ESDError(
                f"this UNet has {key}={config[key]!r}, a part that LDM and ComfyUI have no names "
                "for: only plain SD 1.x, SD 2.x and SDXL UNets can be used"
            )


def _channels(config: Mapping[str, Any]) -> list[int]:
    return list(config.get("block_out_channels", (320, 640, 1280, 1280)))


def _per_level(config: Mapping[str, Any], key: str, default: int) -> list[Any]:
    """A setting that diffusers takes either once for all levels or as a list."""
    value, count = config.get(key, default), len(_channels(config))
    levels = [value] * count if isinstance(value, int) else list(value)
    if len(levels) != count:
        raise ESDError(f"this UNet's config has {len(levels)} entries in {key} for {count} levels")
    return levels


def _depths(depth: int | Sequence[int], count: int) -> tuple[int, ...]:
    depths = (depth,) * count if isinstance(depth, int) else tuple(depth)
    _refuse_huge(depths, "transformer blocks in a row")
    if len(depths) != count:
        raise ESDError(
            f"this UNet's config gives {len(depths)} transformer depths for {count} blocks"
        )
    return depths


def middle(config: Mapping[str, Any]) -> Level | None:
    """The middle block: its transformer's depth, if it has one; None without a middle block."""
    kind = config.get("mid_block_type", _MID_BLOCKS[0])
    if kind not in _MID_BLOCKS:
        raise ESDError(f"this UNet has the mid block {kind}, which is not one of SD's or SDXL's")
    if kind is None:
        return None
    width = _channels(config)[-1]
    if kind != _MID_BLOCKS[0]:
        return Level(width, (None,))
    depth = _per_level(config, "transformer_layers_per_block", 1)[-1]
    return Level(width, _depths(depth if isinstance(depth, int) else depth[0], 1))


def _refuse_huge(counts: Sequence[int], what: str) -> None:
    """Before anything is built of them."""
    if not all(0 <= count <= _MOST for count in counts):
        raise ESDError(f"this UNet's config asks for {max(counts)} {what}, and {_MOST} is the most")


def levels(config: Mapping[str, Any], side: str) -> list[Level]:
    """The levels of the "down" or the "up" side, in the order of the forward pass."""
    down, known = side == "down", _BLOCKS[side]
    order = slice(None, None, 1 if down else -1)
    channels = _channels(config)[order]
    types = config.get(f"{side}_block_types", _DEFAULTS[side])
    if len(types) != len(channels) or not all(name in known for name in types):
        raise ESDError(
            f"this UNet has blocks {', '.join(types)} for {len(channels)} levels; only "
            f"{' and '.join(known)}, one a level, are those of SD 1.x, SD 2.x and SDXL"
        )
    layers = [count + (0 if down else 1) for count in _per_level(config, "layers_per_block", 2)]
    _refuse_huge(layers, "residual blocks a level")
    if down or config.get("reverse_transformer_layers_per_block") is None:
        depths = _per_level(config, "transformer_layers_per_block", 1)[order]
    else:  # it is in the order of the up blocks already
        depths = _per_level(config, "reverse_transformer_layers_per_block", 1)
    return [
        Level(width, _depths(depth, count) if known[name] else (None,) * count)
        for width, depth, name, count in zip(channels, depths, types, layers[order], strict=True)
    ]
