"""Runs in ComfyUI's own process: the memory of miniatures' steps, planned and taken, for
test_planned.py.

    python planned.py COMFYUI PACK FAMILIES.json ANSWER.json

Each in a process of its own, whose peak nothing else has raised: forked, since what takes longest
is to start. The first, small run is what libraries hold; a process' peak is counted from there.
"""

import json
import os
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, question, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.sd  # noqa: E402
import miniatures  # noqa: E402
import torch  # noqa: E402
from esd_pack.esd_core.config.settings import ErasureConfig  # noqa: E402
from esd_pack.esd_core.method.objective import regression_loss  # noqa: E402
from esd_pack.esd_core.training.plan import Planner  # noqa: E402
from esd_pack.esd_core.training.student import make_student  # noqa: E402
from esd_pack.nodes.host import pocket, session, text  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402

BATCH, EDGE = 2, 1024


def peak():
    """Of the process, in bytes, since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def step(denoiser, config):
    """Forward and backward, and the optimizer's state beside."""
    with denoiser.checkpointed(config.training.gradient_checkpointing == "on"):
        student = make_student(denoiser, config)
        state = [torch.zeros_like(m) for m in student.masters.values() for _ in range(2)]
        for tensor in state:
            tensor.add_(1)
        rows = denoiser.encode(["a house in the style of Van Gogh"] * BATCH, EDGE, EDGE)
        x = torch.randn(BATCH, *denoiser.latent_shape(config.width, config.height))
        with denoiser.swapped(student.tensors()):
            predicted = denoiser.predict(x, torch.full((BATCH,), 0.5), rows)
            regression_loss(predicted, torch.zeros_like(x), torch.ones(BATCH)).backward()


def measured(family, switch):
    with torch.inference_mode():
        wide = miniatures.WideClip(pocket.load_clip(), family)
        model = comfy.sd.load_diffusion_model_state_dict(miniatures.state_of(family))
        with session.borrowed(model) as own:
            denoiser = HostDenoiser(own, text.Texts(wide))
            asked = {"concepts": ["Van Gogh"], "contexts": [], "width": EDGE, "height": EDGE}
            asked |= {"training.batch_size": BATCH, "trajectory.steps": 1, "trajectory.count": 1}
            asked["training.gradient_checkpointing"] = switch
            config = ErasureConfig.from_mapping(asked)
            step(denoiser, config.override({"width": 64, "height": 64}))
            plan = Planner(denoiser, config).plan(config)
            Path("/proc/self/clear_refs").write_text("5")
            before = peak()
            step(denoiser, config)
    return {"planned": plan.needed, "taken": peak() - before}


def forked(*case):
    """What `measured` says of it in a child."""
    child = os.fork()
    if not child:
        answer.write_text(json.dumps(measured(*case)))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, case
    return json.loads(answer.read_text())


miniatures.register()
told = {
    family: {s: forked(family, s) for s in ("off", "on")}
    for family in json.loads(question.read_text())
}
answer.write_text(json.dumps(told))
