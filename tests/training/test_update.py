"""A step of the optimizer in fp16, whose gradients may overflow; and what counts as no memory."""

import pytest
import torch
from trainers import trainer_of

from esd_core.config.settings import TrainingConfig
from esd_core.errors import ESDError
from esd_core.training.out_of_memory import is_oom
from esd_core.training.plan import Plan
from esd_core.training.update import Update

PLAN = Plan(0, 0, 0, 0, 0, 0, 0, 0, False, 4, False, 4)


def test_a_step_that_overflowed_is_taken_again(toy, settings, recorder, monkeypatch):
    """At a lower scale, with the same batch: all steps that are counted have been taken."""
    monkeypatch.setattr("esd_core.training.student.select", lambda *_: ("gain",))
    model = toy({"Van Gogh": (9.0, -9.0, 9.0, 9.0)})
    model.compute_dtype = torch.float16
    trainer, host = trainer_of(model, settings(), plan=PLAN), recorder()
    before = trainer.update.scaler.get_scale()
    trainer.run(host, host)
    assert trainer.update.scaler.get_scale() < before, "nothing has overflowed"
    (state,) = trainer.update.optimizer.state.values()
    assert int(state["step"]) == len(trainer.losses) == 5


def test_gradients_that_overflow_at_every_scale_are_told():
    master = torch.nn.Parameter(torch.ones(3))
    update = Update([master], TrainingConfig(), torch.float16, False)
    with pytest.raises(ESDError, match="gradients are not finite: set `training.precision`"):
        for _ in range(100):
            master.grad = torch.full((3,), float("inf"))
            update.backward(torch.zeros((), requires_grad=True))
            assert not update.step(0)
    assert torch.equal(master.detach(), torch.ones(3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("Unable to find a valid cuDNN algorithm to run convolution", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_what_counts_as_out_of_memory(text, expected):
    assert is_oom(RuntimeError(text)) == expected
