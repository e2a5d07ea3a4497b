"""Training on an accelerator, in every precision."""

import math

import pytest
import torch
from trainers import trainer_of

from esd_core.files.apply import applied
from esd_core.files.native import read_erasure, write_erasure
from esd_core.training.run import erase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=DTYPES)
def there(request, device, make_denoiser):
    """The model on the device."""
    if request.param == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        pytest.skip("the device has no bf16")
    return make_denoiser(DTYPES[request.param], device)


@pytest.mark.parametrize("overrides", [{}, {"training.rank": 4}, {"trajectory.source": "student"}])
def test_training_moves_the_student_and_not_the_teacher(there, settings, recorder, overrides):
    before = {name: p.clone() for name, p in there.parameters().items()}
    host = recorder()
    result = erase(there, settings(overrides), host, host)
    assert len(host.steps) == 5
    assert all(math.isfinite(loss) for loss in result.outcome.losses)
    assert any(change.any() for change in result.erasure.change().values())
    assert all(t.device.type == "cpu" for t in result.erasure.tensors.values())
    for name, parameter in there.parameters().items():
        assert torch.equal(parameter, before[name]), name


def test_fp16_scales_its_loss(device, make_denoiser, settings, recorder):
    """And the masters still get the gradients of the loss itself: a clipped step has its norm."""
    denoiser = make_denoiser(torch.float16, device)
    overrides = {"training.steps": 1, "training.learning_rate": 1.0, "training.max_grad_norm": 1e-3}
    config = settings(overrides)
    trainer = trainer_of(denoiser, config)
    # From its usual 65536 it would skip the first steps that overflow, and lower itself.
    trainer.update.scaler = torch.amp.GradScaler(device, init_scale=256.0)
    trainer.update.optimizer = torch.optim.SGD(trainer.student.masters.values(), 1.0)
    before = {n: m.detach().clone() for n, m in trainer.student.masters.items()}
    host = recorder()
    trainer.run(host, host)
    moved = [(m.detach() - before[n]).double() for n, m in trainer.student.masters.items()]
    norm = float(sum(m.square().sum() for m in moved)) ** 0.5
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_half_precision_learns_what_float32_learns(device, make_denoiser, settings, recorder):
    """First losses, before the runs part: within a hundredth."""
    losses = {}
    for name, dtype in DTYPES.items():
        host = recorder()
        config = settings({"training.steps": 1})
        losses[name] = erase(make_denoiser(dtype, device), config, host, host).outcome.losses[0]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


def test_a_run_resumes(there, settings, recorder, tmp_path):
    host, path = recorder(stop_at=2), tmp_path / "state.safetensors"
    erase(there, settings(), host, host, path)
    host = recorder()
    result = erase(there, settings(), host, host, path, resume=True)
    assert [p.step for p in host.steps] == [3, 4, 5]
    assert result.outcome.ending == "done"


def test_a_result_is_applied(there, device, settings, recorder, tmp_path):
    host, path = recorder(), tmp_path / "a.safetensors"
    write_erasure(path, erase(there, settings(), host, host).erasure)
    row = there.encode(["Van Gogh"], 64, 64)
    x, sigma = torch.ones(1, 4, 8, 8, device=device), torch.ones(1, device=device)
    with torch.no_grad():
        before = there.predict(x, sigma, row)
        with applied(there, [(read_erasure(path), 1.0)]):
            assert not torch.equal(there.predict(x, sigma, row), before)
        assert torch.equal(there.predict(x, sigma, row), before)


def test_checkpointing_takes_less_memory(device, make_denoiser, settings, recorder):
    memory, peaks = torch.get_device_module(device), []
    for enabled in ("off", "on"):
        denoiser = make_denoiser(torch.float32, device)
        memory.reset_peak_memory_stats()
        large = {"width": 512, "height": 512, "training.steps": 1}
        host = recorder()
        config = settings({**large, "training.gradient_checkpointing": enabled})
        erase(denoiser, config, host, host)
        peaks.append(memory.max_memory_allocated())
    assert peaks[1] < peaks[0]
