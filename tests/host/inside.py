"""Runs in ComfyUI's own process: what the host backend predicts, for test_backends.py.

    python inside.py COMFYUI PACK REQUEST.safetensors ANSWER.safetensors

The request holds x and sigma, and in its metadata the embedded model's name and prompts; the answer
holds predictions, gradients of a sum over them, the trajectory's latents, and the parameters.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, request, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import torch  # noqa: E402
from esd_pack.esd_core.method.sampling import sample  # noqa: E402
from esd_pack.nodes.host import pocket, session, text  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

with safe_open(request, "pt") as file:
    asked = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    given = file.metadata()
prompts, gradient_of = json.loads(given["prompts"]), given["gradient_of"]

with torch.inference_mode():  # as the server runs nodes
    model, clip = pocket.load_model(given["model"]), pocket.load_clip()
    before = {n: p.clone() for n, p in model.model.diffusion_model.named_parameters()}
    with session.borrowed(model) as own:
        denoiser = HostDenoiser(own, text.Texts(clip))
        rows = denoiser.encode(prompts, 128, 128)
        teacher = denoiser.parameters()
        found = {f"parameters.{name}": value.detach() for name, value in teacher.items()}
        found["context"], found["pooled"] = rows.context, rows.pooled
        with torch.no_grad():
            found["prediction"] = denoiser.predict(asked["x"], asked["sigma"], rows)
            pair = [rows.select([0]), rows.select([1])]
            schedule = denoiser.schedule(20, 64, 64)
            found["trajectory"] = sample(denoiser, asked["noise"], pair, schedule, 3.0)
            found["sigmas"] = schedule.sigmas
        for name, checkpointed in (("gradient", False), ("gradient_checkpointed", True)):
            master = teacher[gradient_of].detach().clone().requires_grad_()
            with denoiser.checkpointed(checkpointed), denoiser.swapped({gradient_of: master}):
                denoiser.predict(asked["x"], asked["sigma"], rows).sum().backward()
            found[name] = master.grad
    after = model.model.diffusion_model.named_parameters()
    untouched = all(value.is_inference() and value.equal(before[name]) for name, value in after)

found = {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}
save_file(found, answer, {"untouched": str(untouched)})
