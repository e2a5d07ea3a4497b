"""The memory of a step on a miniature pipeline, planned and taken, for test_plan.py.

    python planned_step.py PIPELINE on|off

A process of its own, whose peak nothing else has raised. The first, small step is what libraries
hold; the process' peak is counted from there.
"""

import json
import sys
from pathlib import Path

import pipelines
import torch
from benchmarks.figure import peak_bytes

from esd_core.config.settings import ErasureConfig
from esd_core.method.objective import regression_loss
from esd_core.models.loading import denoiser_of
from esd_core.training.plan import Planner
from esd_core.training.student import make_student

BATCH, EDGE = 2, 512


def step(denoiser, config):
    """Forward and backward, and the optimizer's state beside."""
    with denoiser.checkpointed(config.training.gradient_checkpointing == "on"):
        student = make_student(denoiser, config)
        state = [torch.ones_like(m) for m in student.masters.values() for _ in range(2)]
        rows = denoiser.encode(["a house by Van Gogh"] * BATCH, EDGE, EDGE)
        x = torch.randn(BATCH, *denoiser.latent_shape(config.width, config.height))
        with denoiser.swapped(student.tensors()):
            predicted = denoiser.predict(x, torch.full((BATCH,), 0.5), rows)
            regression_loss(predicted, torch.zeros_like(x), torch.ones(BATCH)).backward()
        return state


name, switch = sys.argv[1:]
denoiser = denoiser_of(getattr(pipelines, name)())
asked = {"concepts": ["Van Gogh"], "contexts": [], "width": EDGE, "height": EDGE}
asked |= {"training.batch_size": BATCH, "trajectory.steps": 1, "trajectory.count": 1}
config = ErasureConfig.from_mapping({**asked, "training.gradient_checkpointing": switch})
step(denoiser, config.override({"width": 64, "height": 64}))
plan = Planner(denoiser, config).plan(config)
Path("/proc/self/clear_refs").write_text("5")
before = peak_bytes()
step(denoiser, config)
print(json.dumps({"planned": plan.needed, "taken": peak_bytes() - before}))
