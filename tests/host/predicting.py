"""Runs in ComfyUI's own process: what transformers' files predict there, for test_names.py.

    python predicting.py COMFYUI PACK FOLDER...

A folder holds request.safetensors (x, sigma and the parts of a conditioning), weights.safetensors
and files of changes, *.change. Into answer.safetensors go parameters and predictions: "plain", and
with each change by the stock loader and by ours.
"""

import sys
from pathlib import Path

from host_process import enter

comfyui, pack, *folders = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from esd_pack.esd_core.models.denoiser import Conditioning  # noqa: E402
from esd_pack.nodes.host import erased, session  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def predicted(model, asked):
    with session.borrowed(model) as own, torch.no_grad():
        denoiser = HostDenoiser(own, None)
        given = {name: value for name, value in asked.items() if name not in ("x", "sigma")}
        return denoiser.predict(asked["x"], asked["sigma"], Conditioning(**given))


def answered(folder):
    asked = load_file(folder / "request.safetensors")
    options = {"dtype": torch.float32}
    model = comfy.sd.load_diffusion_model(str(folder / "weights.safetensors"), options)
    found = {f"parameters.{n}": p for n, p in model.model.diffusion_model.named_parameters()}
    found = {name: tensor.detach().clone() for name, tensor in found.items()}
    found["plain"] = predicted(model, asked)
    for path in folder.glob("*.change"):
        change = load_file(path)
        stock, _ = comfy.sd.load_lora_for_models(model, None, change, 1.0, 0.0)
        found[f"stock.{path.stem}"] = predicted(stock, asked)
        found[f"own.{path.stem}"] = predicted(erased.load(model, path, 1.0).model, asked)
    return found


for folder in folders:
    with torch.inference_mode():
        found = answered(folder)
    found = {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}
    save_file(found, folder / "answer.safetensors")
