"""What makes a step cheap, held by counts: no clock and no free memory comes into them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from trainers import trainer_of


@pytest.mark.parametrize(("method", "begins"), [("esd-x", 1), ("esd-u", 0)])
def test_backward_stops_where_nothing_is_trained(denoiser, settings, method, begins):
    """pocket's first level has no attention: with esd-x it needs no graph."""
    graphs = []
    trainer = trainer_of(denoiser, settings({"method": method}))
    trainer.take_step()
    blocks = denoiser.network.down_blocks
    handles = [
        block.register_forward_hook(lambda _, __, out: graphs.append(out[0].requires_grad))
        for block in blocks
    ]
    try:
        trainer.take_step()
    finally:
        for handle in handles:
            handle.remove()
    assert graphs == [i >= begins for i in range(len(blocks))]


class Copies(TorchDispatchMode):
    """Counts what is made of frozen weights: copies, casts and gradients."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = {tensor.untyped_storage().data_ptr() for tensor in frozen}
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._opname in ("_to_copy", "clone", "copy_", "contiguous", "empty_like"):
            sources = [t for t in tree_iter(args) if isinstance(t, torch.Tensor)]
            if any(t.numel() and t.untyped_storage().data_ptr() in self.frozen for t in sources):
                self.made.append(func._opname)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_frozen_weights_are_not_copied(make_denoiser, settings, dtype, checkpointed):
    """Neither by a round nor by a step, and they have no gradients."""
    denoiser = make_denoiser(dtype)
    trainer = trainer_of(denoiser, settings({"training.batch_size": 2}))
    base = denoiser.parameters()
    frozen = [tensor for name, tensor in base.items() if name not in trainer.student.masters]
    with Copies(frozen) as copies, denoiser.checkpointed(checkpointed):
        trainer.take_step()
        trainer.take_step()
    assert copies.made == []
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in base.values())


def test_the_counter_sees_a_copy():
    tensor = torch.ones(4)
    with Copies([tensor]) as copies:
        tensor.to(torch.bfloat16)
        tensor.view(2, 2).clone()
    assert copies.made == ["_to_copy", "clone"]


def test_a_rate_of_1e_5_trains_with_bf16_compute(make_denoiser, settings):
    """Every step of Adam moves a master by about its rate, which bf16 weights would not show."""
    denoiser = make_denoiser(torch.bfloat16)
    trainer = trainer_of(denoiser, settings({"training.learning_rate": 1e-5}))
    name = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    before = trainer.student.masters[name].detach().clone()
    for _ in range(3):
        trainer.take_step()
    moved = (trainer.student.masters[name].detach() - before).abs()
    assert 0.5e-5 < moved.median() < 4e-5
    large = before.abs() > 0.02
    stored = before[large].bfloat16()
    assert large.any() and torch.equal(stored - 1e-5, stored)


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_round_and_its_steps_take_as_many_evaluations_as_they_must(denoiser, settings, reuse):
    """2 trajectories of 3 steps, a pair each; then one for every sample of every step."""
    trainer, rows = trainer_of(denoiser, settings({"trajectory.reuse": reuse})), []
    handle = denoiser.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        for _ in range(3 * reuse):  # 6 samples that erase, 2 of them a batch
            trainer.take_step()
    finally:
        handle.remove()
    assert rows == [4, 4, 4] + [4] * 3 * reuse
