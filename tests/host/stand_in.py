"""Runs in ComfyUI's own process: writes a checkpoint that ComfyUI takes for Stable Diffusion 1.5.

    python stand_in.py COMFYUI PACK FILE.safetensors

Its UNet has one level of one block (26 million numbers), its text encoder is of full size, since
ComfyUI knows no other, and its autoencoder is that of TAESD. The numbers are random.
"""

import sys
from pathlib import Path

from host_process import enter

comfyui, pack, target = map(Path, sys.argv[1:])
enter(comfyui, pack)

import torch  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from esd_pack.esd_core.models.keys import diffusers_to_canonical  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

UNET = {
    "block_out_channels": [320],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TEXT = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)


def text_name(name):
    return name if name.startswith("text_model.") else f"text_model.{name}"


with torch.device("meta"):
    names = diffusers_to_canonical(UNET)
    unet = {names[n]: t for n, t in UNet2DConditionModel.from_config(UNET).state_dict().items()}
    text = {text_name(n): t for n, t in CLIPTextModel(TEXT).state_dict().items()}
    vae = TAESD().state_dict()

parts = {"model.diffusion_model": unet, "cond_stage_model.transformer": text}
parts["first_stage_model"] = vae
shapes = {f"{part}.{n}": t.shape for part, state in parts.items() for n, t in state.items()}
generator = torch.Generator().manual_seed(0)


def numbers(name, shape):
    """As layers begin: norms do nothing, the others keep the size of what goes through them."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")))
    return torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5


state = {name: numbers(name, shape).half() for name, shape in shapes.items()}
target.parent.mkdir(parents=True, exist_ok=True)
save_file(state, target)
