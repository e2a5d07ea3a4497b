"""Transformers in miniature, in ComfyUI's own classes, and a CLIP as wide as each wants its text.

Their files are as the published models' are, and stock loaders know them by themselves. Where those
take sizes for granted, `register` puts a config of ours, a subclass, before the published one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import comfy.ops
import comfy.supported_models
import torch
from torch import Tensor


@dataclass(frozen=True)
class Miniature:
    """A family.

    Attributes:
        network: the module and class of its network. config: its arguments.
        text: the width of its text states. pooled: that of pooled text, or 0.
        is_ragged: whether its text states are as many as a prompt has tokens.
        stock: the config in supported_models whose sizes do not show in a file, and which are told
            by `config`; "" where all do.
        extra: what the family's CLIP gives beside.
    """

    network: tuple[str, str]
    config: dict[str, Any]
    text: int
    pooled: int = 0
    is_ragged: bool = False
    stock: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


_FLUX = {
    **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 16},
    **{"context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 2},
    **{"depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True},
    **{"guidance_embed": True, "txt_ids_dims": []},
}

MINIATURES = {
    "sd3": Miniature(
        ("comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper"),
        {
            **{"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2},
            **{"input_size": None, "adm_in_channels": 32, "num_patches": 256},
            **{"pos_embed_max_size": 16, "pos_embed_scaling_factor": None, "qk_norm": "rms"},
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 128},
            },
            "x_block_self_attn_layers": [0],
        },
        text=32,
        pooled=32,
    ),
    "flux": Miniature(("comfy.ldm.flux.model", "Flux"), _FLUX, text=32, pooled=16),
    "flux-schnell": Miniature(
        ("comfy.ldm.flux.model", "Flux"),
        {**_FLUX, "guidance_embed": False},
        text=32,
        pooled=16,
    ),
}


def register() -> None:
    """Lets the stock loaders know the sizes of those that need it."""
    known = {kind.__name__ for kind in comfy.supported_models.models}
    for name, miniature in MINIATURES.items():
        kind = getattr(comfy.supported_models, miniature.stock, None)
        if kind and f"Tiny{kind.__name__}" not in known:
            own = {"unet_config": _told(kind), "unet_extra_config": miniature.config}
            tiny = type(f"Tiny{kind.__name__}", (kind,), {"__doc__": name, **own})
            comfy.supported_models.models.insert(0, tiny)


def _told(kind: Any) -> dict[str, Any]:
    """What a config tells models by, without sizes."""
    return {name: value for name, value in kind.unet_config.items() if name == "image_model"}


def state_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    """A state dict with random weights, float32, of the names that a published file has."""
    miniature = MINIATURES[name]
    module, kind = miniature.network
    build = getattr(importlib.import_module(module), kind)
    config = {n: v for n, v in miniature.config.items() if n != "image_model"}
    network = build(
        **config, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(seed)
    return {n: _random(n, t.shape, generator) for n, t in network.state_dict().items()}


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise / shape[1:].numel() ** 0.5
    is_norm = "norm" in name or "ln_" in name or name.endswith("scale")
    return 1 + noise / 10 if is_norm and not name.endswith("bias") else noise / 10


class WideClip:
    """A CLIP whose text is made as wide as a family's is, by repetition.

    What it says of prompts is the other's; so are its tokens, of which `is_ragged` keeps as many as
    the prompt has.
    """

    def __init__(self, clip: Any, name: str) -> None:
        self._clip, self._miniature = clip, MINIATURES[name]

    def tokenize(self, text: str) -> Any:
        return self._clip.tokenize(text)

    def encode_from_tokens(
        self, tokens: Any, return_pooled: bool = False, return_dict: bool = False
    ) -> Any:
        found = self._clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        states, pooled = _wide(found["cond"], self._miniature.text), None
        if self._miniature.is_ragged:
            (words,) = tokens["l"]
            end = max(1, sum(1 for token, *_ in words if token != words[-1][0]))
            states = states[:, : end + 1]
        if self._miniature.pooled:
            pooled = _wide(found["pooled_output"], self._miniature.pooled)
        assert return_dict
        return {"cond": states, "pooled_output": pooled, **self._miniature.extra}

    def encode_from_tokens_scheduled(self, tokens: Any, **_: Any) -> Any:
        found = self.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        return [[found.pop("cond"), found]]


def _wide(tensor: Tensor, width: int) -> Tensor:
    times = -(-width // tensor.shape[-1])
    return torch.cat([tensor] * times, dim=-1)[..., :width]
