"""Pipelines of SD3's and FLUX.1's kind in miniature: diffusers' own classes, random weights."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from esd_core.pocket.build.text import tokenizers
from esd_core.pocket.models import build_text_towers

WORDS = ("a", "house", "boat", "red", "in", "the", "style", "of", "Van", "Gogh", "painting", "by")
CLIP, T5 = 96, 128
"""Widths: of both CLIP towers together, and of T5's states."""
SD3 = {
    **{"sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16},
    **{"num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2},
    **{"caption_projection_dim": 128, "pooled_projection_dim": CLIP, "pos_embed_max_size": 32},
    **{"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
}
FLUX = {
    **{"in_channels": 64, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 1},
    **{"joint_attention_dim": T5, "pooled_projection_dim": 32, "axes_dims_rope": (16, 56, 56)},
}
"""Heads 128 wide, as the published ones."""


def sd3_pipeline(with_t5: bool = False, seed: int = 0, **config: Any) -> StableDiffusion3Pipeline:
    """3.5 medium's kind; without T5 unless asked, as it is often run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = _projecting_towers()
        width = T5 if with_t5 else CLIP
        pair = _clip_tokenizers()
        network = SD3Transformer2DModel(**{**SD3, "joint_attention_dim": width, **config})
        made = StableDiffusion3Pipeline(
            transformer=_spread(network),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(1.5305, 0.0609),
            text_encoder=first,
            tokenizer=pair[0],
            text_encoder_2=second,
            tokenizer_2=pair[1],
            text_encoder_3=_t5() if with_t5 else None,
            tokenizer_3=t5_tokenizer() if with_t5 else None,
        )
    made.set_progress_bar_config(disable=True)
    return made


def flux_pipeline(guided: bool = True, seed: int = 0, **config: Any) -> FluxPipeline:
    """dev's kind, or schnell's, whose schedule is the same for all sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, _ = build_text_towers()
        dynamic = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        network = FluxTransformer2DModel(**{**FLUX, "guidance_embeds": guided, **config})
        made = FluxPipeline(
            transformer=_spread(network),
            scheduler=dynamic if guided else FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=_vae(0.3611, 0.1159),
            text_encoder=first,
            tokenizer=_clip_tokenizers()[0],
            text_encoder_2=_t5(),
            tokenizer_2=t5_tokenizer(),
        )
    made.set_progress_bar_config(disable=True)
    return made


_clip_tokenizers = cache(tokenizers)
"""Slow to make."""


def copied(pipeline: Any) -> Any:
    """One with weights of its own in the transformer, and all else shared."""
    parts = {**pipeline.components, "transformer": deepcopy(pipeline.transformer)}
    made = type(pipeline)(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def _projecting_towers() -> tuple[torch.nn.Module, torch.nn.Module]:
    """SD3 takes pooled text of both through a projection."""
    first, second = build_text_towers()
    return CLIPTextModelWithProjection(first.config), second


def _vae(scale: float, shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=scale,
        shift_factor=shift,
    )


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=32,
        d_model=T5,
        d_kv=32,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()  # it drops out else


def t5_tokenizer() -> T5TokenizerFast:
    """That knows a dozen words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -5.0)]
    words = [(f"\u2581{word}", -1.0) for word in WORDS]
    return T5TokenizerFast(vocab=[*special, *words], extra_ids=0)


@torch.no_grad()
def _spread(network: torch.nn.Module) -> torch.nn.Module:
    """With modulations as large as a trained network's, so that every part counts."""
    for name, tensor in network.named_parameters():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.normal_(near, 0.1)
    return network
