"""Gradients in 16 bits on their way to the optimizer, against what torch does in 32."""

import gc
import weakref
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from trainers import planned, trainer_of

from esd_core.config.settings import TrainingConfig
from esd_core.training.gradients import Bf16Gradients, chunks, keeps_bf16
from esd_core.training.update import Update


def masters_with(gradients):
    """Float32 masters, and the gradients that arrive at them through 16 bits."""
    torch.manual_seed(0)
    masters = [nn.Parameter(torch.randn(g.shape)) for g in gradients]

    def backward():
        return sum((m.bfloat16() * g).sum() for m, g in zip(masters, gradients, strict=True))

    return masters, backward


GRADIENTS = [torch.randn(5, 7).bfloat16() for _ in range(37)]


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("max_norm", [0.0, 1e9])
def test_a_step_has_the_bits_of_one_in_float32(make, max_norm):
    plain, backward = masters_with(GRADIENTS)
    optimizer = make(plain, lr=0.1)
    for _ in range(3):
        backward().backward()
        optimizer.step()
        optimizer.zero_grad()
    short, backward = masters_with(GRADIENTS)
    held, optimizer = Bf16Gradients(short), make(short, lr=0.1)
    for _ in range(3):
        backward().backward()
        assert all(m.grad is None for m in short)
        held.step(optimizer, max_norm)
    assert all(m.grad is None for m in short)
    assert all(torch.equal(a, b) for a, b in zip(plain, short, strict=True))


def test_they_are_clipped_by_the_norm_of_all():
    """Of gradient-only steps at rate 1, so that what moved is the clipped gradient."""
    plain, backward = masters_with(GRADIENTS)
    before = [m.detach().clone() for m in plain]
    backward().backward()
    torch.nn.utils.clip_grad_norm_(plain, 0.5)
    short, backward = masters_with(GRADIENTS)
    held = Bf16Gradients(short)
    backward().backward()
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
    backward().backward()
    held.clear()
    held.step(torch.optim.SGD(masters, lr=1.0), 0.0)
    assert all(torch.equal(m, b) for m, b in zip(masters, before, strict=True))


def test_masters_go_with_their_last_user():
    """Without waiting for the garbage collector: they are gigabytes."""
    masters, backward = masters_with(GRADIENTS[:3])
    held = Bf16Gradients(masters)
    backward().backward()
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


# -- a step that runs out of memory ------------------------------------------------------------


class RunsOut(TorchDispatchMode):
    """Has no memory for the allocation of number `last`, counted from 0."""

    def __init__(self, last):
        super().__init__()
        self.last, self.count = last, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        there = {t.untyped_storage().data_ptr() for t in tensors_of((args, kwargs))}
        for tensor in tensors_of(result):
            if tensor.untyped_storage().data_ptr() not in there:
                self.count += 1
                if self.count > self.last:
                    raise torch.OutOfMemoryError("CUDA out of memory")
        return result


def tensors_of(tree):
    return [value for value in tree_iter(tree) if isinstance(value, torch.Tensor)]


def copied(optimizer):
    return deepcopy(optimizer.state_dict()["state"])


def same(one, other):
    pairs = zip(tree_iter(one), tree_iter(other), strict=True)
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_is_taken_whole_or_not_at_all(optimizer, dtype, steps):
    """Out of memory at every allocation of a step, the first or a later one, and then repeated."""
    training = TrainingConfig(optimizer=optimizer, max_grad_norm=0.5, weight_decay=0.1)
    masters, backward = masters_with(GRADIENTS)
    update = Update(masters, training, dtype, dtype == torch.bfloat16)

    def take(number):
        update.backward(backward())
        update.step(number)

    for number in range(steps):
        take(number)
    before, state = [m.detach().clone() for m in masters], copied(update.optimizer)
    refusals = 0
    while True:
        update.backward(backward())
        scaler = update.scaler.state_dict()
        try:
            with RunsOut(refusals):
                update.step(steps)
            break
        except torch.OutOfMemoryError:
            refusals += 1
            update.discard()
            assert all(m.grad is None for m in masters)
            assert same([m.detach() for m in masters], before)
            assert same(copied(update.optimizer), state)
            assert update.scaler.state_dict() == scaler
    assert refusals >= 3
    plain, backward = masters_with(GRADIENTS)
    update = Update(plain, training, dtype, dtype == torch.bfloat16)
    for number in range(steps + 1):
        take(number)
    assert all(torch.equal(a, b) for a, b in zip(masters, plain, strict=True))


# -- in a training ---------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_training_in_bf16_has_the_same_bits_either_way(make_denoiser, settings, checkpointing):
    """The same steps, with gradients in 16 bits and in 32."""
    denoiser, changes = make_denoiser(torch.bfloat16), []
    config = settings(
        {"training.max_grad_norm": 0.0, "training.gradient_checkpointing": checkpointing}
    )
    plan = planned(denoiser, config)
    assert plan.keeps_bf16
    for short in (True, False):
        trainer = trainer_of(denoiser, config, plan=replace(plan, keeps_bf16=short))
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
