"""Runs in ComfyUI's own process: its map from diffusers' names to its own, for test_save.py.

    python names.py COMFYUI PACK SHAPES.json ANSWER.json

SHAPES has, by model, the shapes of a UNet's tensors by diffusers' names. All tensors are on the
meta device.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, question, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.model_detection  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402


def names_of(shapes):
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = comfy.model_detection.model_config_from_diffusers_unet(state)
    return comfy.utils.unet_to_diffusers(found.unet_config)


asked = json.loads(question.read_text())
answer.write_text(json.dumps({name: names_of(shapes) for name, shapes in asked.items()}))
