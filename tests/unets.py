"""UNets of published structures, and how many tensors each method trains in them."""

import functools
from typing import Any

import torch
from diffusers import UNet2DConditionModel

_SDXL_PARTS = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
_SDXL_BLOCKS = {
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL = {**_SDXL_PARTS, **_SDXL_BLOCKS, "transformer_layers_per_block": [1, 2, 10]}
CONFIGS = {
    "sd1": SD1,
    "sd2": SD2,
    "sd2-unclip": {
        **SD2,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2048,
    },
    "sd2-upscaler": {
        **SD2,
        "in_channels": 7,
        "block_out_channels": [256, 512, 512, 1024],
        "attention_head_dim": 8,
        "num_class_embeds": 1000,
        "only_cross_attention": [True, True, True, False],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
    },
    "sdxl": SDXL,
    "refiner": {
        **_SDXL_PARTS,
        "block_out_channels": [384, 768, 1536, 1536],
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    },
    "ssd-1b": {
        **_SDXL_PARTS,
        **_SDXL_BLOCKS,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [[1], [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "vega": {
        **_SDXL_PARTS,
        **_SDXL_BLOCKS,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [[1], [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    },
    "koala-700m": {
        **_SDXL_PARTS,
        **_SDXL_BLOCKS,
        "mid_block_type": None,
        "layers_per_block": 1,
        "transformer_layers_per_block": [0, 2, 5],
    },
    "small-sdxl": {
        **_SDXL_PARTS,
        **_SDXL_BLOCKS,
        "block_out_channels": [32, 64, 128],
        "attention_head_dim": [2, 4, 8],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 48,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 72,
    },
    "uneven-layers": {
        **_SDXL_PARTS,
        **_SDXL_BLOCKS,
        "block_out_channels": [32, 64, 64],
        "attention_head_dim": 8,
        "layers_per_block": [1, 3, 2],
        "transformer_layers_per_block": [1, 2, 3],
    },
}

SDXL_COUNTS = {
    "esd-x": (350, 545.67),
    "esd-x-strict": (140, 340.79),
    "esd-u": (772, 1996.26),
    "esd-all": (1122, 2541.93),
    "selfattn": (350, 409.68),
}
SD1_COUNTS = {
    "esd-x": (80, 43.96),
    "esd-x-strict": (32, 19.17),
    "esd-u": (388, 815.36),
    "esd-all": (468, 859.32),
    "selfattn": (80, 49.57),
}
"""Tensors and millions of values by method, as the official code has them."""


def shapes_of(config: dict[str, Any]) -> dict[str, list[int]]:
    """Of the tensors of the UNet with this config, by diffusers' names."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return {name: list(tensor.shape) for name, tensor in unet.state_dict().items()}


@functools.cache
def meta_unet(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(CONFIGS[name])
