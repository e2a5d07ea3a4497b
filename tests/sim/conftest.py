"""The devices that these tests run on: CUDA where there is one, and the pretend accelerator."""

import os

import pytest
import simdev
import torch

from esd_core.method import probes

# For runs that are asked to be deterministic; cuBLAS reads it at its first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

WHY_NOT = simdev.missing()
if not WHY_NOT:
    simdev.load()

_NO_SIM = f"{simdev.MISSING}: {WHY_NOT}"
_DEVICES = {
    "cuda": [
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
    "sim": [pytest.mark.skipif(bool(WHY_NOT), reason=_NO_SIM)],
}


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in _DEVICES.items()])
def device(request):
    return request.param


@pytest.fixture(params=[pytest.param("cuda", marks=_DEVICES["cuda"])])
def cuda(request):
    """A real one alone, for what the CPU's kernels do in any case."""
    return request.param


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    """Without the prompts that every run watches alike: they are most of what a short one takes."""
    monkeypatch.setattr(probes, "CONTROL_PROMPTS", ())


@pytest.fixture
def sim():
    """The pretend accelerator alone, for what real ones cannot be asked."""
    if WHY_NOT:
        pytest.skip(_NO_SIM)
    return "sim"
