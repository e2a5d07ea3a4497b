"""Runs in ComfyUI's own process: full-size UNets in its own modules, for test_models.py.

    python trees.py COMFYUI PACK SHAPES.json ANSWER.json

SHAPES has, by model, the shapes of a UNet's tensors by diffusers' names. Nothing is loaded: all
tensors are on the meta device.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, question, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.model_detection  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from esd_pack.esd_core.config.settings import METHODS, ErasureConfig  # noqa: E402
from esd_pack.esd_core.errors import ESDError  # noqa: E402
from esd_pack.esd_core.models.denoiser import Conditioning  # noqa: E402
from esd_pack.esd_core.training import plan as memory  # noqa: E402
from esd_pack.esd_core.training.out_of_memory import oom_as_error  # noqa: E402
from esd_pack.esd_core.training.selection import select  # noqa: E402
from esd_pack.nodes.defaults import resolved  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402
from esd_pack.nodes.host.model import architecture, parameters, preset  # noqa: E402


def model_of(shapes):
    """MODEL, as ComfyUI's own detection makes it of such a file."""
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
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
        "architecture": kind.name,
        "parameters": {name: tensor.numel() for name, tensor in held.items()},
        "selected": {method: select(method, held, kind) for method in METHODS},
        "auto": {method: automatic(model, method) for method in METHODS},
    }


def automatic(model, method):
    """What widgets that say auto stand for."""
    asked = {"concepts": ["Van Gogh"], "method": method, "width": None, "training.steps": None}
    return resolved(asked, preset(model, method)).flat()


class OnFourGigabytes(HostDenoiser):
    def free_memory(self):
        return 4_000_000_000

    def encode(self, prompts, width, height):
        """As a CLIP would give it, of which there is none here."""
        unet = self.model.model.model_config.unet_config
        pooled = [torch.zeros(1, unet[key]) for key in ("adm_in_channels",) if unet.get(key)]
        return Conditioning(torch.zeros(1, 77, unet["context_dim"]), *pooled)


def planned(model, **settings):
    """Bytes for masters, gradients and optimizer at 256x256, and whether all of it fits."""
    shared = {"concepts": ["Van Gogh"], "width": 256, "height": 256}
    # Parts of a batch, each of which would be tried, are tried elsewhere.
    alone = {"contexts": [], "preserve_empty": False, "training.batch_size": 1}
    switch = {"training.gradient_checkpointing": "on"}
    config = ErasureConfig.from_mapping({**shared, **alone, **switch, **settings})
    plan = memory.Planner(OnFourGigabytes(model, None), config).plan(config)
    return {"trained": plan.masters + plan.gradients + plan.optimizer, "fits": plan.fits}


def used_up():
    """What is said when the CPU's own allocator gives up, at a petabyte."""
    try:
        with oom_as_error():
            torch.empty(1 << 50)
    except ESDError as error:
        return str(error)


asked = json.loads(question.read_text())
models = {name: model_of(shapes) for name, shapes in asked.items()}
told = {name: described(model) for name, model in models.items()}
told["memory"] = {
    "sdxl esd-x": planned(models["sdxl"]),
    "sdxl adafactor": planned(models["sdxl"], **{"training.optimizer": "adafactor"}),
    "sd1 esd-x-strict": planned(models["sd1"], method="esd-x-strict"),
    "used up": used_up(),
}
answer.write_text(json.dumps(told))
