"""The pretend accelerator refuses what CUDA refuses: mistakes that pass unseen on a CPU.

Each is planted in code that a run goes through; the run must break where it would on a GPU.
"""

from contextlib import nullcontext

import pytest
import torch
from simdev import failing_after, limited, ops
from trainers import PLAN, bank_of, trainer_of

from esd_core.method import bank
from esd_core.method.samples import Samples
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.training.student import FullStudent


def a_step(denoiser, settings):
    trainer_of(denoiser, settings(), plan=PLAN).take_step()


def a_round(denoiser, settings):
    bank_of(denoiser, settings()).sample_round(0, torch.Generator())


def unmoved_noise(shape, generator, device):
    return torch.randn(tuple(shape), generator=generator)


def noise_of_the_cpus_generator(shape, generator, device):
    return torch.randn(tuple(shape), generator=generator, device=device)


def masters_on_the_cpu(make):
    def made(self, *arguments):
        make(self, *arguments)
        for name, master in self.masters.items():
            self.masters[name] = torch.nn.Parameter(master.detach().cpu())

    return made


PLANTED = {
    "a batch": (Samples, "to", lambda self, device: self, a_step),
    "conditioning": (
        bank.Bank,
        "rows",
        lambda self, condition: self.conditioning.select(condition.cpu()),
        a_step,
    ),
    "time steps": (
        DiffusersDenoiser,
        "_timesteps",
        lambda self, sigma: torch.full((len(sigma),), 500.0),
        a_round,
    ),
    "noise": (bank, "unit_noise", unmoved_noise, a_round),
    "a generator": (bank, "unit_noise", noise_of_the_cpus_generator, a_round),
    "masters": (FullStudent, "__init__", masters_on_the_cpu(FullStudent.__init__), a_step),
}


@pytest.mark.parametrize("where", ["cpu", "sim"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_stays_on_the_cpu_by_mistake(sim, what, where, make_denoiser, settings, monkeypatch):
    owner, name, wrong, run = PLANTED[what]
    denoiser = make_denoiser(torch.float32, where)
    monkeypatch.setattr(owner, name, wrong)
    refusal = pytest.raises(RuntimeError, match="same device|device type for generator")
    with refusal if where == sim else nullcontext():
        run(denoiser, settings)


def test_fresh_memory_is_no_zero(sim):
    assert torch.empty(4, device=sim).isnan().all()
    kept = torch.ones(4, device=sim)
    del kept
    assert torch.empty(4, device=sim).isnan().all()


def test_cpu_code_cannot_read_its_memory(sim):
    with pytest.raises(TypeError, match="copy the tensor to host memory"):
        torch.ones(1, device=sim).numpy()
    assert torch.ones(1, device=sim).cpu().numpy() == 1


def test_memory_is_counted_and_runs_out(sim):
    before = ops.allocated()
    ops.reset_peak()
    kept = torch.ones(1000, device=sim)
    assert ops.allocated() - before == 4096
    (kept + kept).cpu()
    assert ops.peak() - before == 8192 and ops.allocated() - before == 4096
    with limited(ops.allocated() + 4096), pytest.raises(torch.OutOfMemoryError):
        torch.stack([kept, kept])
    with failing_after(1):
        torch.ones(1, device=sim)
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(1, device=sim)
        torch.ones(1, device=sim)
