"""Runs in ComfyUI's own process: its map from diffusers' names to its own, for test_save.py.

    python names.py COMFYUI PACK CONFIGS.json ANSWER.json

CONFIGS has diffusers' configs by name. All tensors are on the meta device.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, configs, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.model_detection  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402


def names_of(config):
    with torch.device("meta"):
        state = UNet2DConditionModel.from_config(config).state_dict()
    found = comfy.model_detection.model_config_from_diffusers_unet(state)
    return comfy.utils.unet_to_diffusers(found.unet_config)


asked = json.loads(configs.read_text())
answer.write_text(json.dumps({name: names_of(config) for name, config in asked.items()}))
