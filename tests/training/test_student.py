"""The student: float32 masters over a teacher in 16 bits, full or of low rank."""

import pytest
import torch
import torch.nn.functional as F
from trainers import dense

from esd_core.errors import ConfigError
from esd_core.training.student import FullStudent, LowRankStudent

NAMES = ("linear.weight", "linear.bias", "conv.weight", "small.weight")
WEIGHTS = tuple(name for name in NAMES if name.endswith(".weight"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def teacher(dtype=torch.float32):
    noise = stream()
    shapes = [(6, 5), (6,), (8, 3, 3, 3), (2, 7)]
    tensors = {
        name: torch.randn(shape, generator=noise).to(dtype)
        for name, shape in zip(NAMES, shapes, strict=True)
    }
    return {**tensors, "frozen.weight": torch.ones(2, 2, dtype=dtype)}


def full(dtype=torch.float32):
    base = teacher(dtype)
    return base, FullStudent(base, NAMES, dtype)


def low_rank(dtype=torch.float32, rank=3, alpha=1.5):
    base = teacher(dtype)
    return base, LowRankStudent(base, NAMES, dtype, rank, alpha, stream(1))


# -- where it starts -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [full, low_rank])
def test_it_starts_as_the_teacher(make, dtype):
    base, student = make(dtype)
    tensors = dense(student)
    assert tuple(tensors) == (NAMES if make is full else WEIGHTS)
    for name, tensor in tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, base[name])
    for name, change in student.change().items():
        assert change.dtype == torch.float32 and change.shape == base[name].shape
        assert not change.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [full, low_rank])
def test_masters_are_float32_and_the_teachers_own_tensors_are_not_among_them(make, dtype):
    base, student = make(dtype)
    before = {name: tensor.clone() for name, tensor in base.items()}
    for master in student.masters.values():
        assert master.dtype == torch.float32 and master.requires_grad
        master.data.add_(1.0)
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [full, low_rank])
def test_what_a_layer_makes_is_the_students_tensor(make, dtype):
    """In a linear layer and in a convolution, with the same gradients, bit for bit."""
    _, student = make(dtype)
    for master in student.masters.values():
        master.data.add_(0.1)
    x, picture = torch.ones(2, 5, dtype=dtype), torch.ones(1, 3, 4, 4, dtype=dtype)
    results = []
    for tensors in (dense(student), student.tensors()):
        outputs = F.linear(x, tensors["linear.weight"]), F.conv2d(picture, tensors["conv.weight"])
        sum(out.float().square().sum() for out in outputs).backward()
        grads = [m.grad for m in student.masters.values() if m.grad is not None]
        results.append([*outputs, *grads])
        for master in student.masters.values():
            master.grad = None
    assert len(results[0]) == len(results[1]) > 2
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("make", [full, low_rank])
def test_a_teacher_in_eight_bits_is_met_exactly(make):
    """As ComfyUI holds weights in fp8 and computes in 16 bits: torch adds fp8 to nothing."""
    base = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in teacher(torch.float32).items()}
    names = NAMES if make is full else WEIGHTS
    rank = () if make is full else (3, 1.5, stream(1))
    student = (FullStudent if make is full else LowRankStudent)(base, names, torch.bfloat16, *rank)
    for name, tensor in dense(student).items():
        assert torch.equal(tensor, base[name].to(torch.bfloat16)), name
    dense(student)["conv.weight"].float().square().sum().backward()
    assert not any(change.any() for change in student.change().values())


def test_masters_are_contiguous():
    """Their optimizer's state is, once it was saved: fused kernels walk both in one order."""
    base = {"conv.weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)}
    (master,) = FullStudent(base, ["conv.weight"], torch.float32).masters.values()
    assert master.is_contiguous() and torch.equal(master.detach(), base["conv.weight"])


# -- steps that 16 bits would lose -----------------------------------------------------------


def test_a_step_of_1e_5_moves_the_masters_of_a_bf16_teacher():
    base = {"w.weight": torch.full((4, 4), 0.03, dtype=torch.bfloat16)}
    assert torch.equal(base["w.weight"] - 1e-5, base["w.weight"])  # what a bf16 master would do
    student = FullStudent(base, ["w.weight"], torch.bfloat16)
    optimizer = torch.optim.AdamW(student.masters.values(), lr=1e-5, weight_decay=0.0)
    for _ in range(20):
        dense(student)["w.weight"].float().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    # A constant gradient makes Adam move by its learning rate at every step; float32 holds a
    # weight of 0.03 to 2e-9.
    expected = torch.full((4, 4), -20e-5)
    torch.testing.assert_close(student.change()["w.weight"], expected, rtol=0, atol=20 * 2e-9)
    assert not torch.equal(dense(student)["w.weight"], base["w.weight"])


@pytest.mark.parametrize("make", [full, low_rank])
def test_gradients_reach_every_master(make):
    base, student = make(torch.bfloat16)
    for master in student.masters.values():
        master.data.add_(0.1)  # up is zero at first, and with it the gradient of down
    sum(t.float().square().sum() for t in dense(student).values()).backward()
    for name, master in student.masters.items():
        assert master.grad is not None and master.grad.abs().max() > 0, name
    assert all(tensor.grad is None for tensor in base.values())


def test_a_full_change_is_master_minus_teacher():
    base, student = full(torch.bfloat16)
    with torch.no_grad():
        student.masters["linear.bias"] += 0.25
    change = student.change()
    torch.testing.assert_close(change["linear.bias"], torch.full((6,), 0.25), rtol=0, atol=1e-6)
    assert not any(change[name].any() for name in WEIGHTS)
    assert not change["linear.bias"].requires_grad


# -- low rank --------------------------------------------------------------------------------


def test_a_low_rank_change_by_hand():
    """alpha / rank = 1/2; up (1, 2) and down (3, 4, 5) make the rows (3, 4, 5) and (6, 8, 10)."""
    base = {"w.weight": torch.zeros(2, 3)}
    student = LowRankStudent(base, ["w.weight"], torch.float32, 2, 1.0, stream())
    with torch.no_grad():
        student.masters["w.lora_up.weight"].copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        student.masters["w.lora_down.weight"].copy_(torch.tensor([[3.0, 4, 5], [9, 9, 9]]))
    expected = torch.tensor([[1.5, 2.0, 2.5], [3.0, 4.0, 5.0]])
    assert torch.equal(dense(student)["w.weight"], expected)
    assert torch.equal(student.change()["w.weight"], expected)


def test_the_rank_is_kept():
    base, student = low_rank(rank=3)
    with torch.no_grad():
        for index, master in enumerate(student.masters.values()):
            master.copy_(torch.randn(master.shape, generator=stream(index)))
    ranks = {
        name: int(torch.linalg.matrix_rank(change.double().flatten(1), rtol=1e-5))
        for name, change in student.change().items()
    }
    # the smallest weight, 2 x 7, has no more than two
    assert ranks == {"linear.weight": 3, "conv.weight": 3, "small.weight": 2}


def test_a_convolution_is_a_matrix_of_its_outputs():
    base, student = low_rank()
    down, up = (student.masters[f"conv.lora_{side}.weight"] for side in ("down", "up"))
    assert down.shape == (3, 3 * 3 * 3) and up.shape == (8, 3)
    with torch.no_grad():
        up[4, 1] = 2.0
    change = student.change()["conv.weight"]
    assert not change[[0, 1, 2, 3, 5, 6, 7]].any()
    torch.testing.assert_close(change[4].flatten(), (1.5 / 3) * 2.0 * down.detach()[1])


def test_where_down_starts_is_the_streams():
    starts = []
    for seed in (1, 1, 2):
        student = LowRankStudent(teacher(), NAMES, torch.float32, 2, 2.0, stream(seed))
        starts.append(student.masters["conv.lora_down.weight"].detach())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_biases_alone_cannot_be_of_low_rank():
    with pytest.raises(ConfigError, match=r"training\.rank"):
        LowRankStudent(teacher(), ["linear.bias"], torch.float32, 2, 2.0, stream())


# -- what stands in for a tensor ---------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_layers_and_lists_take_what_is_made(rank):
    """A layer, by place and by name, and a list, with the results and gradients of tensors."""
    base = teacher()
    student = (
        LowRankStudent(base, WEIGHTS, torch.float32, rank, 1.0, stream())
        if rank
        else FullStudent(base, WEIGHTS, torch.float32)
    )
    x, images = torch.randn(4, 5, generator=stream(1)), torch.randn(1, 3, 6, 6)

    def run(tensors):
        linear, small = tensors["linear.weight"], tensors["small.weight"]
        total = (
            F.linear(x, linear, None).sum() + F.linear(x, weight=linear, bias=None).square().sum()
        )
        total = total + F.conv2d(images, tensors["conv.weight"], None, 2, (1, 1)).square().sum()
        total = total + torch.cat([small, torch.ones(1, 7), small]).square().sum()
        gradients = torch.autograd.grad(total, [*student.masters.values()])
        return total, *gradients

    for made, expected in zip(run(student.tensors()), run(dense(student)), strict=True):
        torch.testing.assert_close(made, expected)
