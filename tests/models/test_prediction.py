"""The forms of a network's output, against Salimans and Ho 2022."""

import pytest
import torch

from esd_core.errors import ESDError
from esd_core.models.prediction import (
    Epsilon,
    Flow,
    VPrediction,
    from_denoised,
    prediction,
)


def velocity(eps, x, sigma):
    """v = alpha eps - beta x0, alpha = 1 / sqrt(1 + sigma^2), beta = sigma alpha."""
    alpha = (1 + sigma**2) ** -0.5
    return alpha * eps - sigma * alpha * (x - sigma * eps)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_a_weighted_error_of_directions_is_the_error_of_v(sigma):
    """At one x, both predictions follow from their eps."""
    x, one, other = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    expected = (velocity(one, x, sigma) - velocity(other, x, sigma)).square().mean()
    weight = VPrediction().loss_weight(sigma)
    torch.testing.assert_close(weight * (one - other).square().mean(), expected)
    assert Epsilon().loss_weight(sigma) == 1


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_every_form_gives_the_same_direction(sigma):
    x, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    levels = torch.full((3,), sigma).double()
    torch.testing.assert_close(Epsilon().direction(eps, x, levels), eps)
    torch.testing.assert_close(VPrediction().direction(velocity(eps, x, sigma), x, levels), eps)
    torch.testing.assert_close(from_denoised(x - sigma * eps, x, levels), eps)


@pytest.mark.parametrize("sigma", [0.03, 0.5, 1.0])
def test_a_flow_predicts_the_direction_itself(sigma):
    """x = (1 - sigma) x0 + sigma eps moves with velocity eps - x0, and denoised is x - sigma v."""
    x0, eps = torch.randn(2, 3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    x, levels = (1 - sigma) * x0 + sigma * eps, torch.full((3,), sigma).double()
    torch.testing.assert_close(Flow().direction(eps - x0, x, levels), from_denoised(x0, x, levels))
    assert Flow().loss_weight(sigma) == Flow().v_weight(sigma) == 1


def test_a_form_that_is_not_supported_is_refused():
    forms = "epsilon, v_prediction and flow_prediction"
    with pytest.raises(ESDError, match=f"predicts sample, and only {forms} can"):
        prediction("sample")
