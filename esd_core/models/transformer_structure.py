"""A transformer's structure, read off the names and shapes of its tensors, as diffusers' config."""

from __future__ import annotations

import re
from typing import Any

from ..errors import FileError
from .structure import Shapes
from .transformer_keys import POS_EMBED, transformer_parts

_HEAD = 64
"""Width of SD3's heads; FLUX's norms show theirs."""
_LATENTS = 128
"""Along the edge of the pictures that the published models were trained on."""


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """The config of the SD3Transformer2DModel or FluxTransformer2DModel with these tensors, by
    canonical name.

    Raises FileError if they are not those of a whole one.
    """
    try:
        config = (_sd3 if "joint_blocks.0.x_block.attn.qkv.weight" in shapes else _flux)(shapes)
        fits = transformer_parts(config).keys() == {plain(n) for n in shapes} - {POS_EMBED}
    except (KeyError, IndexError):
        fits = False
    if not fits:
        raise FileError("these tensors are not those of a whole transformer of SD 3 or FLUX.1")
    return config


def plain(name: str) -> str:
    """A canonical name, where a host has another for FLUX's norms."""
    is_flux = name.startswith(("double_blocks.", "single_blocks."))
    return re.sub(r"(query|key)_norm\.weight$", r"\1_norm.scale", name) if is_flux else name


def _count(shapes: Shapes, path: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{path}.")})


def _sd3(shapes: Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    count = _count(shapes, "joint_blocks")
    dual = (i for i in range(count) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes)
    known = "joint_blocks.0.x_block.attn.ln_q.weight" in shapes
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": _LATENTS,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": count,
        "attention_head_dim": _HEAD,
        "num_attention_heads": width // _HEAD,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": round(shapes[POS_EMBED][1] ** 0.5) if POS_EMBED in shapes else None,
        "dual_attention_layers": [*dual],
        "qk_norm": "rms_norm" if known else None,
    }


def _flux(shapes: Shapes) -> dict[str, Any]:
    norms = {plain(name): shape for name, shape in shapes.items() if "_norm." in name}
    (head,) = norms["double_blocks.0.img_attn.norm.key_norm.scale"]
    width = shapes["img_in.weight"][0]
    return {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": shapes["img_in.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": _count(shapes, "double_blocks"),
        "num_single_layers": _count(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],
    }
