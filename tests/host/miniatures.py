"""Transformers in miniature, in ComfyUI's own classes, and a CLIP as wide as each wants its text.

Their files are as the published models' are, and stock loaders know them by themselves. Where those
take sizes for granted, `register` puts a config of ours, a subclass, before the published one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
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
        stock: the config in supported_models that takes sizes for granted; "" where all show.
        told: what of `config` tells it from others, beside the kind of network.
    """

    network: tuple[str, str]
    config: dict[str, Any]
    text: int
    pooled: int = 0
    is_ragged: bool = False
    stock: str = ""
    told: tuple[str, ...] = ()


_FLUX = {
    **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 16},
    **{"context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 2},
    **{"depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True},
    **{"guidance_embed": True, "txt_ids_dims": []},
}

_LUMINA = {"patch_size": 2, "in_channels": 16, "n_layers": 2, "qk_norm": True, "cap_feat_dim": 32}

MINIATURES = {
    "sd3": Miniature(
        ("modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper"),
        {
            **{"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2},
            **{"input_size": None, "adm_in_channels": 32, "num_patches": 4096},
            **{"pos_embed_max_size": 64, "pos_embed_scaling_factor": None, "qk_norm": "rms"},
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 128},
            },
            "x_block_self_attn_layers": [0],
        },
        text=32,
        pooled=32,
    ),
    "flux": Miniature(("flux.model", "Flux"), _FLUX, text=32, pooled=16),
    "flux-schnell": Miniature(
        ("flux.model", "Flux"), {**_FLUX, "guidance_embed": False}, text=32, pooled=16
    ),
    "flux2": Miniature(
        ("flux.model", "Flux"),
        {
            **_FLUX,
            **{"in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None},
            **{"axes_dim": [32, 32, 32, 32], "theta": 2000, "mlp_ratio": 3.0, "qkv_bias": False},
            **{"global_modulation": True, "mlp_silu_act": True, "ops_bias": False},
            "txt_ids_dims": [3],
        },
        text=32,
        is_ragged=True,
    ),
    "chroma": Miniature(
        ("chroma.model", "Chroma"),
        {
            **{n: v for n, v in _FLUX.items() if n != "guidance_embed"},
            **{"in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128},
            **{"hidden_dim": 64, "n_layers": 2, "vec_in_dim": None},
        },
        text=32,
        is_ragged=True,
        stock="Chroma",
    ),
    "qwen-image": Miniature(
        ("qwen_image.model", "QwenImageTransformer2DModel"),
        {
            **{"in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32},
            **{"num_attention_heads": 2, "axes_dims_rope": (8, 12, 12), "joint_attention_dim": 32},
        },
        text=32,
        is_ragged=True,
        stock="QwenImage",
    ),
    "z-image": Miniature(
        ("lumina.model", "NextDiT"),
        {
            **_LUMINA,
            **{"dim": 256, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48]},
            **{"axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3},
            **{"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
        },
        text=32,
        is_ragged=True,
        stock="ZImage",
        told=("dim",),
    ),
    "lumina2": Miniature(
        ("lumina.model", "NextDiT"),
        {
            **_LUMINA,
            **{"dim": 192, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [32, 32, 32]},
            **{"axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0},
        },
        text=32,
        is_ragged=True,
        stock="Lumina2",
        told=("dim",),
    ),
    "auraflow": Miniature(
        ("aura.mmdit", "MMDiT"),
        {
            **{"dim": 64, "n_heads": 2, "n_layers": 3, "n_double_layers": 2, "max_seq": 4096},
            **{"global_conddim": 64, "cond_seq_dim": 32},
        },
        text=32,
        stock="AuraFlow",
        told=("cond_seq_dim",),
    ),
    "krea2": Miniature(
        ("krea2.model", "SingleStreamDiT"),
        {
            **{"features": 128, "heads": 1, "kvheads": 1, "channels": 16, "patch": 2, "layers": 2},
            **{"txtlayers": 2, "txtdim": 32, "txtheads": 1, "txtkvheads": 1},
        },
        text=64,
        is_ragged=True,
        stock="Krea2",
    ),
    "anima": Miniature(
        ("anima.model", "Anima"),
        {
            **{"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "patch_spatial": 2},
            **{"patch_temporal": 1, "in_channels": 16, "out_channels": 16, "num_heads": 2},
            **{"model_channels": 64, "num_blocks": 2, "crossattn_emb_channels": 32},
            **{"pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 32},
            "rope_enable_fps_modulation": False,
        },
        text=32,
        is_ragged=True,
        stock="Anima",
    ),
    "hidream": Miniature(
        ("hidream.model", "HiDreamImageTransformer2DModel"),
        {
            **{"patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2},
            **{"num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2},
            **{"caption_channels": [32, 32], "text_emb_dim": 16, "num_routed_experts": 4},
            **{"num_activated_experts": 2, "axes_dims_rope": [16, 8, 8]},
            **{"max_resolution": [128, 128], "llama_layers": [0, 1, 2, 2]},
        },
        text=32,
        pooled=16,
        stock="HiDream",
    ),
    "wan": Miniature(
        ("wan.model", "WanModel"),
        {
            **{"model_type": "t2v", "dim": 128, "num_heads": 1, "ffn_dim": 256, "num_layers": 2},
            **{"in_dim": 16, "out_dim": 16, "cross_attn_norm": True},
        },
        text=4096,
    ),
    "wan22": Miniature(
        ("wan.model", "WanModel"),
        {
            **{"model_type": "t2v", "dim": 128, "num_heads": 1, "ffn_dim": 256, "num_layers": 2},
            **{"in_dim": 48, "out_dim": 48, "cross_attn_norm": True},
        },
        text=4096,
    ),
}


ADAPTER = {"source_dim": 32, "target_dim": 32, "model_dim": 32, "num_layers": 2, "num_heads": 2}
"""Of Anima, which makes its text states from others, and has this in one size alone."""


def register() -> None:
    """Lets the stock loaders know the sizes of those that need it."""
    anima = getattr(comfy.ldm, "anima", None)
    if anima and not isinstance(anima.model.LLMAdapter, partial):
        anima.model.LLMAdapter = partial(anima.model.LLMAdapter, **ADAPTER)
    known = {kind.__name__ for kind in comfy.supported_models.models}
    for miniature in MINIATURES.values():
        kind = getattr(comfy.supported_models, miniature.stock, None)
        if kind and f"Tiny{kind.__name__}" not in known:
            named = {n: v for n, v in kind.unet_config.items() if n == "image_model"}
            told = named | {name: miniature.config[name] for name in miniature.told}
            own = {"unet_config": told, "unet_extra_config": miniature.config}
            comfy.supported_models.models.insert(0, type(f"Tiny{kind.__name__}", (kind,), own))


def state_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    """A state dict with random weights, float32, of the names that a published file has."""
    miniature = MINIATURES[name]
    module, kind = miniature.network
    network = getattr(importlib.import_module(f"comfy.ldm.{module}"), kind)(
        **miniature.config,
        dtype=torch.float32,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(seed)
    return {n: _random(n, t.shape, generator) for n, t in network.state_dict().items()}


_KL = {
    **{"double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32},
    **{"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
}
_WAN = {
    **{"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []},
    **{"temperal_downsample": [False, True, True], "dropout": 0.0},
}
VAES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "sd3": ("taesd.taesd", "TAESD", "", {"latent_channels": 16}),
    "flux": (
        "ldm.modules.diffusionmodules.model",
        "Decoder",
        "decoder.",
        {**_KL, "z_channels": 16},
    ),
    "flux2": (
        "ldm.modules.diffusionmodules.model",
        "Decoder",
        "decoder.",
        {**_KL, "z_channels": 32},
    ),
    "wan": ("ldm.wan.vae", "WanVAE", "", _WAN),
    "wan22": ("taesd.taehv", "TAEHV", "", {"latent_channels": 48}),
}
"""By family: module and class of its VAE's network, or of the part that decodes, the prefix of that
in files, and arguments. The stock loader knows these by their tensors."""


def vae_of(name: str) -> dict[str, Tensor]:
    """A state dict of a VAE with random weights, of the names that a published file has."""
    module, kind, prefix, config = VAES[name]
    with torch.device("meta"):
        network = getattr(importlib.import_module(f"comfy.{module}"), kind)(**config)
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{prefix}{n}": t.shape for n, t in network.state_dict().items()}
    if name == "flux2":  # whose latents are normalised, four to a pixel of what is decoded
        channels = config["z_channels"]
        shapes |= {"post_quant_conv.weight": torch.Size([channels, channels, 1, 1])}
        shapes |= {"post_quant_conv.bias": torch.Size([channels])}
    state = {n: _random(n, shape, generator) for n, shape in shapes.items()}
    if name == "flux2":
        wide = torch.Size([4 * channels])
        state |= {"bn.running_mean": torch.zeros(wide), "bn.running_var": torch.ones(wide)}
    return state


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
        self._clip, self._name, self._miniature = clip, name, MINIATURES[name]

    def tokenize(self, text: str) -> Any:
        return self._clip.tokenize(text)

    def encode_from_tokens(
        self, tokens: Any, return_pooled: bool = False, return_dict: bool = False
    ) -> Any:
        found = self._clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        states, pooled = _wide(found["cond"], self._miniature.text), None
        (words,) = tokens["l"]
        end = max(1, sum(1 for token, *_ in words if token != words[-1][0]))
        own = states[:, : end + 1]
        if self._miniature.is_ragged:
            states = own
        if self._miniature.pooled:
            pooled = _wide(found["pooled_output"], self._miniature.pooled)
        assert return_dict
        given = {"cond": states, "pooled_output": pooled}
        if self._name == "hidream":  # which gives a second encoder's states too, of every layer
            layers = range(1 + max(self._miniature.config["llama_layers"]))
            given["conditioning_llama3"] = torch.stack([own.roll(n, -1) for n in layers], 1)
        if self._name == "anima":  # which gives the tokens of a second tokenizer too
            given["t5xxl_ids"] = torch.tensor([token for token, *_ in tokens["l"][0]]) % 32128
            given["t5xxl_weights"] = torch.ones(len(given["t5xxl_ids"]))
        return given

    def encode_from_tokens_scheduled(self, tokens: Any, **_: Any) -> Any:
        found = self.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        return [[found.pop("cond"), found]]


def _wide(tensor: Tensor, width: int) -> Tensor:
    times = -(-width // tensor.shape[-1])
    return torch.cat([tensor] * times, dim=-1)[..., :width]
