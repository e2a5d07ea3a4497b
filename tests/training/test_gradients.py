"""Gradients in 16 bits on their way to the optimizer, against what torch does in 32."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from trainers import trainer_of

from esd_core.training import plan as memory
from esd_core.training.gradients import Bf16Gradients, chunks, keeps_bf16


def masters_with(gradients):
    """Float32 masters, and the gradients that arrive at them through 16 bits."""
    torch.manual_seed(0)
    masters = [nn.Parameter(torch.randn(g.shape)) for g in gradients]

    def backward():
        total = sum((m.bfloat16() * g).sum() for m, g in zip(masters, gradients, strict=True))
        total.backward()

    return masters, backward


GRADIENTS = [torch.randn(5, 7).bfloat16() for _ in range(37)]


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("max_norm", [0.0, 1e9])
def test_a_step_has_the_bits_of_one_in_float32(make, max_norm):
    plain, backward = masters_with(GRADIENTS)
    optimizer = make(plain, lr=0.1)
    for _ in range(3):
        backward()
        optimizer.step()
        optimizer.zero_grad()
    short, backward = masters_with(GRADIENTS)
    held, optimizer = Bf16Gradients(short), make(short, lr=0.1)
    for _ in range(3):
        backward()
        assert all(m.grad is None for m in short)
        held.step(optimizer, max_norm)
    assert all(m.grad is None for m in short)
    assert all(torch.equal(a, b) for a, b in zip(plain, short, strict=True))


def test_they_are_clipped_by_the_norm_of_all():
    """Of gradient-only steps at rate 1, so that what moved is the clipped gradient."""
    plain, backward = masters_with(GRADIENTS)
    before = [m.detach().clone() for m in plain]
    backward()
    torch.nn.utils.clip_grad_norm_(plain, 0.5)
    short, backward = masters_with(GRADIENTS)
    held = Bf16Gradients(short)
    backward()
    held.step(torch.optim.SGD(short, lr=1.0), 0.5)
    for old, new, expected in zip(before, short, plain, strict=True):
        torch.testing.assert_close(new, old - expected.grad, rtol=1e-5, atol=1e-6)


def test_a_master_without_a_gradient_stays():
    masters, _ = masters_with(GRADIENTS[:3])
    before = [m.detach().clone() for m in masters]
    held = Bf16Gradients(masters)
    (masters[1].bfloat16() * GRADIENTS[1]).sum().backward()
    held.step(torch.optim.SGD(masters, lr=1.0), 0.0)
    moved = [not torch.equal(m, b) for m, b in zip(masters, before, strict=True)]
    assert moved == [False, True, False]


def test_what_is_forgotten_is_not_stepped():
    masters, backward = masters_with(GRADIENTS[:3])
    before = [m.detach().clone() for m in masters]
    held = Bf16Gradients(masters)
    backward()
    held.clear()
    held.step(torch.optim.SGD(masters, lr=1.0), 0.0)
    assert all(torch.equal(m, b) for m, b in zip(masters, before, strict=True))


def test_masters_go_with_their_last_user():
    """Without waiting for the garbage collector: they are gigabytes."""
    masters, backward = masters_with(GRADIENTS[:3])
    held = Bf16Gradients(masters)
    backward()
    references = [weakref.ref(master) for master in masters]
    gc.disable()
    try:
        del masters, backward
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()
    held.clear()


@pytest.mark.parametrize("count", [1, 2, 16, 17, 140, 1122])
def test_parts_are_all_of_it_in_order(count):
    parts = chunks(range(count))
    assert [item for part in parts for item in part] == list(range(count))
    assert len(parts) <= 16 and len(parts[0]) <= -(-count // 16)


@pytest.mark.parametrize(
    ("dtype", "rank", "passes", "expected"),
    [
        (torch.bfloat16, 0, 1, True),
        (torch.bfloat16, 0, 2, False),
        (torch.bfloat16, 4, 1, False),
        (torch.float16, 0, 1, False),
        (torch.float32, 0, 1, False),
    ],
)
def test_only_where_16_bits_hold_them(dtype, rank, passes, expected):
    assert keeps_bf16(dtype, rank, passes) == expected


# -- in a training ---------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_training_in_bf16_has_the_same_bits_either_way(make_denoiser, settings, checkpointing):
    """The same steps, with gradients in 16 bits and in 32."""
    denoiser, changes = make_denoiser(torch.bfloat16), []
    config = settings(
        {"training.max_grad_norm": 0.0, "training.gradient_checkpointing": checkpointing}
    )
    planned = memory.plan(denoiser, config)
    assert planned.keeps_bf16
    for short in (True, False):
        trainer = trainer_of(denoiser, config, plan=replace(planned, keeps_bf16=short))
        assert bool(trainer.update.bf16_gradients) == short
        with denoiser.checkpointed(trainer.plan.checkpointing):
            for _ in range(2):
                trainer.take_step()
        changes.append(trainer.student.change())
    assert all(torch.equal(changes[1][name], change) for name, change in changes[0].items())


def test_they_are_as_large_as_planned(make_denoiser, settings):
    """At the moment the optimizer first steps: what is held, and the part in float32."""
    trainer = trainer_of(make_denoiser(torch.bfloat16), settings({}))
    plan = trainer.plan
    masters, seen = list(trainer.student.masters.values()), []

    def note(*_):
        held = sum(g.nbytes for g in trainer.update.bf16_gradients._held.values())
        in_float = sum(m.grad.nbytes for m in masters if m.grad is not None)
        seen.append((held, in_float))

    trainer.update.optimizer.register_step_pre_hook(note)
    trainer.take_step()
    assert plan.gradients == 2 * sum(m.numel() for m in masters)
    assert len(seen) > 1 and seen[0][0] + seen[0][1] // 2 == plan.gradients
    assert max(in_float for _, in_float in seen) < 2 * plan.gradients / 4
