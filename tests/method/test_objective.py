"""The objective against sums done by hand, and against the algebra of the three forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esd_core.method.objective import erasure_target, guided, regression_loss

ETA = st.floats(0, 100)
SIGMA = st.floats(0.01, 200)
VALUES = st.lists(st.floats(-10, 10), min_size=3, max_size=3)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, expected, size):
    """Equal but for the rounding of numbers of this size in float64."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize(
    ("eta", "expected"),
    # anchor (1, 2), concept (3, 5), empty (2, 1): concept - empty is (1, 4)
    [(0.0, (1.0, 2.0)), (1.0, (0.0, -2.0)), (2.0, (-1.0, -6.0)), (0.5, (0.5, 0.0))],
)
def test_target_by_hand(eta, expected):
    target = erasure_target(row(1, 2), row(3, 5), row(2, 1), eta)
    assert target.tolist() == list(expected)


def test_published_conventions_name_the_same_target():
    """The official scripts start from the concept itself, with an eta that is one more."""
    concept, empty = row(3, 5), row(2, 1)
    for eta in (0.0, 1.0, 2.5):
        official = concept - (eta + 1) * (concept - empty)
        assert torch.equal(erasure_target(empty, concept, empty, eta), official)


def v_of(eps, x, sigma):
    """v = alpha eps - s x0 of Salimans and Ho, with alpha = 1 / scale and s = sigma / scale."""
    x0, scale = x - sigma * eps, (sigma**2 + 1) ** 0.5
    return (eps - sigma * x0) / scale


def flow_of(eps, x, sigma):
    """u = eps - x0 of rectified flow."""
    return eps - (x - sigma * eps)


@pytest.mark.parametrize("form", [v_of, flow_of])
@given(anchor=VALUES, concept=VALUES, empty=VALUES, x=VALUES, eta=ETA, sigma=SIGMA)
def test_target_is_the_same_in_every_form(form, anchor, concept, empty, x, eta, sigma):
    predictions, x = [row(*p) for p in (anchor, concept, empty)], row(*x) * sigma
    in_eps = form(erasure_target(*predictions, eta), x, sigma)
    in_form = erasure_target(*(form(p, x, sigma) for p in predictions), eta)
    close(in_form, in_eps, size=20 * (1 + eta) * (1 + sigma) ** 2)


@given(concept=VALUES, empty=VALUES, eta=ETA, guidance=st.floats(0, 20))
def test_an_ideal_student_makes_of_its_prompt_a_negative_one(concept, empty, eta, guidance):
    concept, empty = row(*concept), row(*empty)
    ideal = erasure_target(empty, concept, empty, eta)
    expected = empty - guidance * eta * (concept - empty)
    close(guided(ideal, empty, guidance), expected, size=20 * (1 + eta) * (1 + guidance))


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
