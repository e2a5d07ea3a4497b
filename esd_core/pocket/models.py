"""The modules of pocket: SDXL's architecture with small widths, and SD3's transformer, untrained.

The sizes hold for both hosts: channels are multiples of 32 (ComfyUI's GroupNorm has 32 groups),
text towers have three layers (their penultimate states are used), and the second tower's
projection is square.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import BatchNorm2d, Conv2d, Flatten, Linear, Module, Sequential, SiLU
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .world import LOOKS, NOTHING, OBJECTS, SIZE

LATENT_FACTOR = 8
TEXT_WIDTHS = (32, 64)
"""Hidden sizes of the two text towers; their sum is the UNet's context width."""

_BOS, _EOS, _VOCABULARY, _MAX_LENGTH = 49406, 49407, 49408, 77


def build_unet() -> UNet2DConditionModel:
    """SDXL's UNet: no attention at the first level, then transformers of depth 1 and 2."""
    channels, head_width, time_width = (32, 64, 96), 32, 32
    return UNet2DConditionModel(
        sample_size=SIZE // LATENT_FACTOR,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=tuple(width // head_width for width in channels),
        cross_attention_dim=sum(TEXT_WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=TEXT_WIDTHS[1] + 6 * time_width,
    )


def build_transformer() -> SD3Transformer2DModel:
    """SD3.5's transformer, which draws nothing yet: the embeddings of time and pooled text change
    nothing, and its output is 0 (Peebles and Xie, arXiv 2212.09748, section 3.2).

    ComfyUI reads both the number of blocks and that of heads, 64 wide each, off the width.
    """
    depth, head_width = 3, 64
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // LATENT_FACTOR,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=depth,
        num_attention_heads=depth,
        attention_head_dim=head_width,
        joint_attention_dim=sum(TEXT_WIDTHS),
        caption_projection_dim=depth * head_width,
        pooled_projection_dim=TEXT_WIDTHS[1],
        # In patches: pictures of twice the size can be asked for too.
        pos_embed_max_size=SIZE // LATENT_FACTOR,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            is_idle = "norm" in name or name == "proj_out"
            (nn.init.zeros_ if is_idle else nn.init.xavier_uniform_)(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def build_vae() -> AutoencoderKL:
    """An autoencoder of factor 8 with 4 latent channels, without attention in its middle."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def _text_config(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 16,
        max_position_embeddings=_MAX_LENGTH,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        pad_token_id=_EOS,
    )


def build_text_towers() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """CLIP-L's and CLIP-G's shapes, activations included."""
    return (
        CLIPTextModel(_text_config(TEXT_WIDTHS[0], "quick_gelu")),
        CLIPTextModelWithProjection(_text_config(TEXT_WIDTHS[1], "gelu")),
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's schedule."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


class Oracle(Module):
    """Reads object and look off a picture: [B, 3, SIZE, SIZE] in 0..1 -> two rows of logits.

    Attributes:
        SEEN: the names of what it tells apart beside the looks.
    """

    SEEN = (*OBJECTS, NOTHING)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 96)
        layers: list[Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [Conv2d(before, after, 4, 2, 1), BatchNorm2d(after), SiLU()]
        self.body = Sequential(*layers)
        self.objects = Sequential(
            Conv2d(widths[-1], 64, 3, 2, 1),
            SiLU(),
            Flatten(),
            Linear(64 * 16, len(self.SEEN)),
        )
        self.looks = Linear(widths[-1], len(LOOKS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(2 * pictures - 1)
        return self.objects(features), self.looks(features.mean((2, 3)))

    @torch.no_grad()
    def read(self, pictures: Tensor) -> tuple[list[str], list[str]]:
        """The object (or NOTHING) and the look of every picture, by name."""
        objects, looks = self(pictures)
        return [self.SEEN[i] for i in objects.argmax(1)], [LOOKS[i] for i in looks.argmax(1)]
