"""Training on an accelerator, in every precision."""

import math

import pytest
import torch
from trainers import trainer_of

from esd_core.files.apply import applied
from esd_core.files.native import read_erasure, write_erasure
from esd_core.training.run import erase

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=DTYPES)
def on_cuda(request, make_denoiser):
    if request.param == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("the device has no bf16")
    return make_denoiser(DTYPES[request.param], "cuda")


@pytest.mark.parametrize("overrides", [{}, {"training.rank": 4}, {"trajectory.source": "student"}])
def test_training_moves_the_student_and_not_the_teacher(on_cuda, settings, recorder, overrides):
    before = {name: p.clone() for name, p in on_cuda.parameters().items()}
    host = recorder()
    result = erase(on_cuda, settings(overrides), host, host)
    assert len(host.steps) == 5
    assert all(math.isfinite(loss) for loss in result.outcome.losses)
    assert any(change.any() for change in result.erasure.change().values())
    assert all(t.device.type == "cpu" for t in result.erasure.tensors.values())
    for name, parameter in on_cuda.parameters().items():
        assert torch.equal(parameter, before[name]), name


def test_fp16_scales_its_loss(make_denoiser, settings, recorder):
    """And the masters still get the gradients of the loss itself: a clipped step has its norm."""
    denoiser = make_denoiser(torch.float16, "cuda")
    overrides = {"training.steps": 1, "training.learning_rate": 1.0, "training.max_grad_norm": 1e-3}
    config = settings(overrides)
    trainer = trainer_of(denoiser, config)
    # From its usual 65536 it would skip the first steps that overflow, and lower itself.
    trainer.update.scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    trainer.update.optimizer = torch.optim.SGD(trainer.student.masters.values(), 1.0)
    before = {n: m.detach().clone() for n, m in trainer.student.masters.items()}
    host = recorder()
    trainer.run(host, host)
    moved = [(m.detach() - before[n]).double() for n, m in trainer.student.masters.items()]
    norm = float(sum(m.square().sum() for m in moved)) ** 0.5
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_half_precision_learns_what_float32_learns(make_denoiser, settings, recorder):
    """First losses, before the runs part: within a hundredth."""
    losses = {}
    for name, dtype in DTYPES.items():
        host = recorder()
        config = settings({"training.steps": 1})
        losses[name] = erase(make_denoiser(dtype, "cuda"), config, host, host).outcome.losses[0]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)


def test_a_run_resumes(on_cuda, settings, recorder, tmp_path):
    host, path = recorder(stop_at=2), tmp_path / "state.safetensors"
    erase(on_cuda, settings(), host, host, path)
    host = recorder()
    result = erase(on_cuda, settings(), host, host, path, resume=True)
    assert [p.step for p in host.steps] == [3, 4, 5]
    assert result.outcome.ending == "done"


def test_a_result_is_applied(on_cuda, settings, recorder, tmp_path):
    host, path = recorder(), tmp_path / "a.safetensors"
    write_erasure(path, erase(on_cuda, settings(), host, host).erasure)
    row = on_cuda.encode(["Van Gogh"], 64, 64)
    x, sigma = torch.ones(1, 4, 8, 8, device="cuda"), torch.ones(1, device="cuda")
    with torch.no_grad():
        before = on_cuda.predict(x, sigma, row)
        with applied(on_cuda, [(read_erasure(path), 1.0)]):
            assert not torch.equal(on_cuda.predict(x, sigma, row), before)
        assert torch.equal(on_cuda.predict(x, sigma, row), before)


def test_checkpointing_takes_less_memory(make_denoiser, settings, recorder):
    peaks = []
    for enabled in ("off", "on"):
        denoiser = make_denoiser(torch.float32, "cuda")
        torch.cuda.reset_peak_memory_stats()
        large = {"width": 512, "height": 512, "training.steps": 1}
        host = recorder()
        config = settings({**large, "training.gradient_checkpointing": enabled})
        erase(denoiser, config, host, host)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]
