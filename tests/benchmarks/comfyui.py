"""This process as ComfyUI's own, without its server."""

from __future__ import annotations

import sys
from typing import Any

from .worker import TESTS

SDXL = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
"""What the host finds out about SDXL's UNet from its weights."""


def enter() -> None:
    """Makes it a ComfyUI on the CPU, with the pack under the name esd_pack."""
    sys.path.insert(0, str(TESTS / "host"))
    from comfy_server import find_comfyui

    folder = find_comfyui()
    if folder is None:
        sys.exit("no ComfyUI is here: `make host` installs one, or set COMFYUI_PATH")
    from host_process import enter as enter_host

    enter_host(folder, TESTS.parent)


def unwritten_sdxl() -> Any:
    """An SDXL MODEL in fp16 whose weights nobody has written."""
    import comfy.model_detection
    import comfy.model_patcher
    import torch

    config = comfy.model_detection.model_config_from_unet_config(dict(SDXL), {})
    config.set_inference_dtype(torch.float16, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, ""), cpu, cpu)
