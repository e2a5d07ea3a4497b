"""Runs in ComfyUI's own process: what a transformer's file predicts there, for test_names.py.

    python predicting.py COMFYUI PACK REQUEST.safetensors ANSWER.safetensors

The request holds x, sigma and the parts of a conditioning, and in its metadata the file's path.
"""

import sys
from pathlib import Path

from host_process import enter

comfyui, pack, request, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from esd_pack.esd_core.models.denoiser import Conditioning  # noqa: E402
from esd_pack.nodes.host import session  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

with safe_open(request, "pt") as file:
    asked = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path = file.metadata()["path"]

with torch.inference_mode():
    model = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
    with session.borrowed(model) as own, torch.no_grad():
        denoiser = HostDenoiser(own, None)
        x, sigma = asked.pop("x"), asked.pop("sigma")
        found = {"prediction": denoiser.predict(x, sigma, Conditioning(**asked))}
        found |= {f"parameters.{name}": p for name, p in denoiser.parameters().items()}

found = {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}
save_file(found, answer, {"architecture": denoiser.architecture.name})
