"""Whole runs on the device: they end with the CPU's bits, and one that was stopped does too."""

from dataclasses import replace

import pytest
import torch
from simdev import ops
from trainers import PLAN, run_of

from esd_core.training.optimizer import make_optimizer

SHORT = {"training.steps": 3, "trajectory.steps": 2}
"""Of two batches a round: all stop in the midst of the first."""
RUNS = {
    "esd-x, deterministic": {"training.deterministic": True},
    "esd-x-strict, low rank, adafactor": {
        "method": "esd-x-strict",
        "training.rank": 4,
        "training.optimizer": "adafactor",
    },
    "esd-u, on policy, checkpointing, robust": {
        "method": "esd-u",
        "trajectory.source": "student",
        "training.robust": True,
    },
    "selfattn, several concepts, no clipping": {
        "method": "selfattn",
        "concepts": ["Van Gogh -> Mondrian", "red house <- house"],
        "preserve": ["a dog"],
        "training.max_grad_norm": 0.0,
    },
    "esd-all, bf16, adafactor, robust": {
        "method": "esd-all",
        "training.optimizer": "adafactor",
        "training.robust": True,
    },
    "esd-x, bf16": {"trajectory.guidance": 1.0, "training.schedule": "linear"},
}


def model(make_denoiser, name, device):
    """In channels_last where the student is on policy: as trainers hold convolutions."""
    denoiser = make_denoiser(torch.bfloat16 if "bf16" in name else torch.float32, device)
    if "on policy" in name:
        denoiser.pipeline.unet.to(memory_format=torch.channels_last)
    return denoiser


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one_on_the_cpu(
    sim, name, make_denoiser, settings, recorder, tmp_path
):
    config = settings({**SHORT, **RUNS[name]})
    short, recomputes = "bf16" in name, "checkpointing" in name
    plan = replace(PLAN, keeps_bf16=short, checkpointing=recomputes)
    expected = run_of(model(make_denoiser, name, "cpu"), config, recorder(), plan=plan)
    denoiser, file = model(make_denoiser, name, sim), tmp_path / "state.safetensors"
    before = {n: p.clone() for n, p in denoiser.parameters().items()}
    stopped = run_of(denoiser, config, recorder(stop_at=1), file, plan=plan)
    assert stopped.outcome.ending == "stopped" and stopped.outcome.step == 1
    result = run_of(denoiser, config, recorder(), file, resume=True, plan=plan)
    assert result.outcome.losses == expected.outcome.losses
    for key, tensor in expected.erasure.tensors.items():
        assert torch.equal(result.erasure.tensors[key], tensor), key
    assert all(torch.equal(p, before[n]) for n, p in denoiser.parameters().items())


def test_the_optimizer_steps_in_place_there(sim, settings):
    """By a kernel of its own, which needs no memory halfway."""
    master = torch.nn.Parameter(torch.ones(4, device=sim))
    optimizer = make_optimizer(settings().training, [master])
    master.grad = torch.ones_like(master)
    made = ops.allocations()
    optimizer.step()
    assert ops.allocations() == made
    assert not torch.equal(master.detach().cpu(), torch.ones(4))


def test_two_runs_have_the_same_bits_if_that_is_asked_for(
    cuda, make_denoiser, settings, recorder, tmp_path
):
    """Of which the second was stopped. By themselves they would differ."""
    config = settings({**SHORT, "training.deterministic": True})
    whole = run_of(make_denoiser(torch.float32, cuda), config, recorder())
    denoiser, file = make_denoiser(torch.float32, cuda), tmp_path / "state.safetensors"
    run_of(denoiser, config, recorder(stop_at=1), file)
    result = run_of(denoiser, config, recorder(), file, resume=True)
    assert result.outcome.losses == whole.outcome.losses
    assert all(t.equal(whole.erasure.tensors[n]) for n, t in result.erasure.tensors.items())
