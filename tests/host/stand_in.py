"""Runs in ComfyUI's own process: writes a checkpoint that ComfyUI takes for Stable Diffusion 1.5.

    python stand_in.py COMFYUI PACK SHAPES.json FILE.safetensors

SHAPES has the shapes of the UNet's tensors by canonical names. The text encoder is of full size,
since ComfyUI knows no other, and the autoencoder is that of TAESD. The numbers are random.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, shapes, target = map(Path, sys.argv[1:])
enter(comfyui, pack)

import torch  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

TEXT = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)


def text_name(name):
    return name if name.startswith("text_model.") else f"text_model.{name}"


with torch.device("meta"):
    unet = {n: torch.empty(shape) for n, shape in json.loads(shapes.read_text()).items()}
    text = {text_name(n): t for n, t in CLIPTextModel(TEXT).state_dict().items()}
    vae = TAESD().state_dict()

parts = {"model.diffusion_model": unet, "cond_stage_model.transformer": text}
parts["first_stage_model"] = vae
all_shapes = {f"{part}.{n}": t.shape for part, state in parts.items() for n, t in state.items()}
generator = torch.Generator().manual_seed(0)


def numbers(name, shape):
    """As layers begin: norms do nothing, the others keep the size of what goes through them."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")))
    return torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5


state = {name: numbers(name, shape).half() for name, shape in all_shapes.items()}
target.parent.mkdir(parents=True, exist_ok=True)
save_file(state, target)
