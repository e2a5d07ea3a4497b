"""What diffusers calls the parts of a UNet, from what the host calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_base
import comfy.model_patcher


def diffusers_config(model: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """The config of the UNet2DConditionModel that has this MODEL's weights.

    The host lists the depths of transformers a residual block, diffusers lists them a level, and
    the last is the middle's too.
    """
    unet = model.model.model_config.unet_config
    blocks = unet["num_res_blocks"]
    channels = [unet["model_channels"] * factor for factor in unet["channel_mult"]]
    down = _by_level(unet["transformer_depth"], blocks)
    up = _by_level(unet["transformer_depth_output"], [count + 1 for count in blocks])
    config = {
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": list(blocks),
        "down_block_types": [_type("Down", depth) for depth in down],
        "up_block_types": [_type("Up", depth) for depth in reversed(up)],
        "transformer_layers_per_block": [
            *(depth or 1 for depth in down[:-1]),
            unet["transformer_depth_middle"],
        ],
        "cross_attention_dim": unet["context_dim"],
        "attention_head_dim": _heads(unet, channels),
        "use_linear_projection": unet["use_linear_in_transformer"],
    }
    if isinstance(model.model, comfy.model_base.SDXL):
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": model.model.embedder.dim,
            "projection_class_embeddings_input_dim": unet["adm_in_channels"],
        }
    return config


def _by_level(depths: Sequence[int], blocks: Sequence[int]) -> list[int]:
    """The depth of every level's first block: they are the same within a level."""
    return [depths[sum(blocks[:level])] for level in range(len(blocks))]


def _type(side: str, depth: int) -> str:
    return f"CrossAttn{side}Block2D" if depth else f"{side}Block2D"


def _heads(unet: Mapping[str, Any], channels: Sequence[int]) -> list[int]:
    """The number of heads a level, which diffusers has under the name of their width."""
    if unet.get("num_heads", -1) != -1:
        return [unet["num_heads"]] * len(channels)
    return [width // unet["num_head_channels"] for width in channels]
