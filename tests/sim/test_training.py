"""Training on an accelerator, in every precision."""

import math
from dataclasses import replace

import pytest
import torch
from trainers import PLAN, run_of, trainer_of

from esd_core.files.apply import applied
from esd_core.files.native import read_erasure, write_erasure
from esd_core.training.checkpoint import read_state

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SHORT = {"training.steps": 3, "trajectory.steps": 1}
"""A CPU, whose kernels the pretend accelerator has, takes its time in fp16."""


@pytest.fixture(params=DTYPES)
def there(request, device, make_denoiser):
    """The model on the device."""
    if request.param == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        pytest.skip("the device has no bf16")
    return make_denoiser(DTYPES[request.param], device)


@pytest.mark.parametrize("overrides", [{}, {"training.rank": 4}, {"trajectory.source": "student"}])
def test_training_moves_the_student_and_not_the_teacher(
    there, device, settings, recorder, tmp_path, overrides
):
    """And what comes out of it is applied, and taken away again."""
    before, path = {n: p.clone() for n, p in there.parameters().items()}, tmp_path / "a.safetensors"
    row, x = there.encode(["Van Gogh"], 64, 64), torch.ones(1, 4, 8, 8, device=device)

    def predicted():
        with torch.no_grad():
            return there.predict(x, torch.ones(1, device=device), row)

    teacher, host = predicted(), recorder()
    result = run_of(there, settings({**SHORT, **overrides}), host)
    assert len(host.steps) == 3
    assert all(math.isfinite(loss) for loss in result.outcome.losses)
    assert any(change.any() for change in result.erasure.change().values())
    assert all(t.device.type == "cpu" for t in result.erasure.tensors.values())
    write_erasure(path, result.erasure)
    with applied(there, [(read_erasure(path), 1.0)]):
        assert not torch.equal(predicted(), teacher)
    assert torch.equal(predicted(), teacher)
    for name, parameter in there.parameters().items():
        assert torch.equal(parameter, before[name]), name


def test_fp16_scales_its_loss(device, make_denoiser, settings):
    """And the masters still get the gradients of the loss itself: a clipped step has its norm."""
    denoiser = make_denoiser(torch.float16, device)
    overrides = {"training.learning_rate": 1.0, "training.max_grad_norm": 1e-3}
    config = settings({**SHORT, **overrides})
    trainer = trainer_of(denoiser, config, plan=PLAN)
    # From its usual 65536 it would skip the first steps that overflow, and lower itself.
    trainer.update.scaler = torch.amp.GradScaler(device, init_scale=256.0)
    trainer.update.optimizer = torch.optim.SGD(trainer.student.masters.values(), 1.0)
    before = {n: m.detach().clone() for n, m in trainer.student.masters.items()}
    trainer.take_step()
    moved = [(m.detach() - before[n]).double() for n, m in trainer.student.masters.items()]
    norm = float(sum(m.square().sum() for m in moved)) ** 0.5
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_half_precision_learns_what_float32_learns(device, make_denoiser, settings):
    """First losses, before the runs part: within a hundredth."""
    losses = {}
    for name, dtype in DTYPES.items():
        trainer = trainer_of(make_denoiser(dtype, device), settings(SHORT), plan=PLAN)
        trainer.take_step()
        (losses[name],) = trainer.losses
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


def test_a_run_in_fp16_resumes(device, make_denoiser, settings, recorder, tmp_path):
    """With the scale of its loss."""
    path, there = tmp_path / "state.safetensors", make_denoiser(torch.float16, device)
    run_of(there, settings(SHORT), recorder(stop_at=2), path)
    assert read_state(path)["update"]["scaler"]["scale"] > 1
    host = recorder()
    result = run_of(there, settings(SHORT), host, path, resume=True)
    assert [p.step for p in host.steps] == [3]
    assert result.outcome.ending == "done"


def test_checkpointing_takes_less_memory(device, make_denoiser, settings):
    memory, peaks = torch.get_device_module(device), []
    for is_on in (False, True):
        denoiser = make_denoiser(torch.float32, device)
        config = settings({**SHORT, "width": 256, "height": 256})
        trainer = trainer_of(denoiser, config, plan=replace(PLAN, checkpointing=is_on))
        memory.reset_peak_memory_stats()
        with denoiser.checkpointed(is_on):
            trainer.take_step()
        peaks.append(memory.max_memory_allocated())
    assert peaks[1] < peaks[0]
