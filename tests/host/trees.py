"""Runs in ComfyUI's own process: full-size UNets in its own modules, for test_models.py.

    python trees.py COMFYUI PACK CONFIGS.json ANSWER.json

CONFIGS has diffusers' configs by name. Nothing is loaded: all tensors are on the meta device.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, configs, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.model_detection  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from esd_pack.esd_core.config import METHODS, ErasureConfig  # noqa: E402
from esd_pack.esd_core.errors import ESDError  # noqa: E402
from esd_pack.esd_core.selection import select  # noqa: E402
from esd_pack.nodes.host import training  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402
from esd_pack.nodes.host.model import architecture, parameters  # noqa: E402


def model_of(config):
    """MODEL, as ComfyUI's own detection makes it of such a file."""
    with torch.device("meta"):
        state = UNet2DConditionModel.from_config(config).state_dict()
    found = comfy.model_detection.model_config_from_diffusers_unet(state)
    found.set_inference_dtype(torch.float16, None)
    model = found.get_model({}, device=torch.device("meta"))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def described(model):
    try:
        kind = architecture(model)
    except ESDError as error:
        return {"refused": str(error)}
    held = parameters(model)
    return {
        "architecture": kind,
        "parameters": {name: tensor.numel() for name, tensor in held.items()},
        "selected": {method: select(method, held, kind) for method in METHODS},
    }


class Giant(HostDenoiser):
    """A thousandfold, so that it fits nowhere."""

    def parameters(self):
        held = super().parameters()
        return {name: tensor.expand(1000, *tensor.shape) for name, tensor in held.items()}


def refusal(denoiser, **settings):
    config = ErasureConfig.from_mapping({"concepts": ["Van Gogh"], **settings})
    try:
        training.refuse_lack_of_memory(config, denoiser)
    except ESDError as error:
        return str(error)
    return ""


def used_up():
    """What is said when the CPU's own allocator gives up, at a petabyte."""
    try:
        with training.memory_told():
            torch.empty(1 << 50)
    except ESDError as error:
        return str(error)


asked = json.loads(configs.read_text())
models = {name: model_of(config) for name, config in asked.items()}
told = {name: described(model) for name, model in models.items()}
told["memory"] = {
    "sdxl esd-x": refusal(Giant(models["sdxl"], None)),
    "sdxl adafactor": refusal(
        Giant(models["sdxl"], None), method="esd-all", **{"training.optimizer": "adafactor"}
    ),
    "sd1 esd-x-strict": refusal(HostDenoiser(models["sd1"], None), method="esd-x-strict"),
    "used up": used_up(),
}
answer.write_text(json.dumps(told))
