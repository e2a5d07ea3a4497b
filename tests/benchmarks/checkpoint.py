"""A checkpoint of SDXL's real shape with random weights, written tensor by tensor: 7 GB in fp16.

In ComfyUI's process, whose modules tell the names and shapes of UNet and VAE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from esd_core.storage.lazy import LazyTensors, Spec
from esd_core.storage.writing import write_safetensors

from . import comfyui

Shape = tuple[int, ...]
_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}


def write(path: Path) -> None:
    """Whole or not at all."""
    specs = {name: Spec(torch.float16, shape) for name, shape in shapes().items()}
    generator = torch.Generator().manual_seed(0)
    tensors = LazyTensors(specs, lambda name: _random(name, specs[name].shape, generator))
    write_safetensors(path, tensors, {"format": "pt"})


def _random(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Norms pass things on as they are; what multiplies keeps their size."""
    if name.endswith("bias") or not shape:
        return torch.zeros(shape, dtype=torch.float16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16)
    scale = math.prod(shape[1:]) ** -0.5
    return torch.empty(shape, dtype=torch.float16).normal_(0, scale, generator=generator)


def shapes() -> dict[str, Shape]:
    """Of all tensors, by the names that SDXL's checkpoint has."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=_VAE, embed_dim=4)
        clip_l = CLIPTextModel(CLIPTextConfig(num_attention_heads=12, **_CLIP_L))
        clip_g = CLIPTextModelWithProjection(
            CLIPTextConfig(num_attention_heads=20, projection_dim=1280, **_CLIP_G)
        )
    unet = comfyui.unwritten_sdxl().model.diffusion_model
    first = "conditioner.embedders.0.transformer."
    return {
        **{f"model.diffusion_model.{n}": tuple(p.shape) for n, p in unet.named_parameters()},
        **{f"first_stage_model.{n}": tuple(p.shape) for n, p in vae.named_parameters()},
        **{first + _with_model(n): tuple(p.shape) for n, p in clip_l.named_parameters()},
        **{f"conditioner.embedders.1.model.{n}": s for n, s in _open_clip(clip_g)},
    }


def _with_model(name: str) -> str:
    return name if name.startswith("text_") else f"text_model.{name}"


def _open_clip(tower: Any) -> Iterator[tuple[str, Shape]]:
    """The second tower under OpenCLIP's names, in which query, key and value are one matrix."""
    held = {_with_model(name): tuple(p.shape) for name, p in tower.named_parameters()}
    width, length = _CLIP_G["hidden_size"], 77
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "positional_embedding", (length, width)
    yield "token_embedding.weight", held["text_model.embeddings.token_embedding.weight"]
    for leaf in ("weight", "bias"):
        yield f"ln_final.{leaf}", (width,)
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for i in range(_CLIP_G["num_hidden_layers"]):
        for leaf in ("weight", "bias"):
            block = f"transformer.resblocks.{i}"
            for theirs, ours in parts.items():
                layer = f"text_model.encoder.layers.{i}.{ours}"
                yield f"{block}.{theirs}.{leaf}", held[f"{layer}.{leaf}"]
            rows = (3 * width, width) if leaf == "weight" else (3 * width,)
            yield f"{block}.attn.in_proj_{leaf}", rows
