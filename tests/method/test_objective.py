"""Guidance and the loss against sums done by hand."""

import pytest
import torch

from esd_core.method.objective import guided, regression_loss


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, 1.0), (1.0, 3.0), (2.5, 6.0)])
def test_guidance_by_hand(guidance, expected):
    assert guided(row(3), row(1), guidance).item() == expected


def test_loss_by_hand():
    prediction = torch.tensor([[[[1.0, 4.0]]], [[[3.0, 2.0]]]], requires_grad=True)
    target = torch.tensor([[[[0.0, 2.0]]], [[[0.0, -2.0]]]])
    # errors (1, 2) and (3, 4): means of squares 2.5 and 12.5, weighted 1 and 0.5
    loss = regression_loss(prediction, target, torch.tensor([1.0, 0.5]))
    assert loss.item() == (2.5 + 0.5 * 12.5) / 2
    loss.backward()
    # 2 * error * weight / (2 values * 2 samples)
    assert prediction.grad.flatten().tolist() == [0.5, 1.0, 0.75, 1.0]


def test_loss_of_a_sample_does_not_grow_with_the_picture():
    error = torch.full((1, 4, 8, 8), 3.0)
    assert regression_loss(error, torch.zeros_like(error), torch.ones(1)).item() == 9.0


def test_loss_is_not_computed_in_half_precision():
    """300 squared is more than float16 can hold."""
    prediction = torch.full((1, 1, 1, 2), 300.0, dtype=torch.float16)
    loss = regression_loss(prediction, torch.zeros_like(prediction), torch.ones(1))
    assert loss.item() == 90000.0
