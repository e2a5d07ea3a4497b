"""diffusers' own tests of LoRA on SDXL, on pocket in the place of what they download.

    cp tests/suites/diffusers_lora.py DIFFUSERS/tests/lora/test_pocket.py
    cd DIFFUSERS; POCKET=PACK/esd_core/pocket/weights python -m pytest tests/lora/test_pocket.py

DIFFUSERS is a checkout of its repository, PACK of this one.
"""

import os
import tempfile

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from . import test_lora_layers_sdxl as theirs

POCKET = os.environ["POCKET"]
WIDE = tempfile.mkdtemp()
"""pocket's text encoders in float32, which the suite computes in."""


def wide(kind: type, part: str) -> str:
    """The folder of that part."""
    model = kind.from_pretrained(POCKET, subfolder=part, dtype=torch.float32)
    model.save_pretrained(f"{WIDE}/{part}")
    return f"{WIDE}/{part}"


class PocketLoRATests(theirs.StableDiffusionXLLoRATests):
    unet_kwargs = dict(UNet2DConditionModel.load_config(POCKET, subfolder="unet"))
    vae_kwargs = dict(AutoencoderKL.load_config(POCKET, subfolder="vae"))
    text_encoder_id = wide(CLIPTextModel, "text_encoder")
    text_encoder_2_id = wide(CLIPTextModelWithProjection, "text_encoder_2")
    tokenizer_id, tokenizer_2_id = f"{POCKET}/tokenizer", f"{POCKET}/tokenizer_2"
    output_shape = (1, 128, 128, 3)
