"""Image measures against their formulas."""

import math

import pytest
import torch
from torch import Tensor

from esd_core.images.measures import measures, rmse, ssim


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_hand(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, equations 13 to 17, window by window, in double precision."""
    x, y = x.double(), y.double()
    offsets = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    values = []
    for channel in range(len(x)):
        for top in range(x.shape[1] - 10):
            for left in range(x.shape[2] - 10):
                p = x[channel, top : top + 11, left : left + 11]
                q = y[channel, top : top + 11, left : left + 11]
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                top_part = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
                values.append(top_part / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    return float(torch.stack(values).mean())


def test_ssim_is_the_papers_formula() -> None:
    a = noise(0, 2, 3, 14, 17)
    b = (0.7 * a + 0.3 * noise(1, 2, 3, 14, 17)).clamp(0, 1)
    expected = [ssim_by_hand(x, y) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    assert 0.3 < expected[0] < 0.95


def test_ssim_of_equal_pictures_is_1() -> None:
    a = torch.cat([noise(2, 1, 3, 32, 32), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_ssim_is_symmetric() -> None:
    a, b = noise(3, 4, 3, 24, 20), noise(4, 4, 3, 24, 20)
    assert torch.allclose(ssim(a, b), ssim(b, a), atol=1e-6)


def test_ssim_of_two_even_pictures_compares_their_light_alone() -> None:
    dark, light = 0.2, 0.5
    got = ssim(torch.full((1, 3, 16, 16), dark), torch.full((1, 3, 16, 16), light))
    assert float(got) == pytest.approx(
        (2 * dark * light + 1e-4) / (dark**2 + light**2 + 1e-4), 1e-4
    )


def test_ssim_of_unrelated_noise_is_near_0_and_of_a_negative_below_it() -> None:
    a = noise(5, 1, 3, 64, 64)
    assert abs(float(ssim(a, noise(6, 1, 3, 64, 64)))) < 0.1
    assert float(ssim(a, 1 - a)) < -0.5


def test_ssim_falls_with_every_step_of_blending() -> None:
    a, b = noise(7, 1, 3, 32, 32), noise(8, 1, 3, 32, 32)
    values = [float(ssim(a, torch.lerp(a, b, share))) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert values == sorted(values, reverse=True)


def test_rmse_is_the_root_of_the_mean_square_of_each_picture() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[0] += 0.25
    b[1, 0] += 0.5
    assert rmse(a, b).tolist() == pytest.approx([0.25, 0.5 / math.sqrt(3)])
    assert rmse(a, a).tolist() == [0, 0]


def test_each_picture_is_measured_alone() -> None:
    a, b = noise(9, 3, 3, 20, 20), noise(10, 3, 3, 20, 20)
    for measure in (rmse, ssim):
        alone = [float(measure(a[i : i + 1], b[i : i + 1])) for i in range(3)]
        assert measure(a, b).tolist() == pytest.approx(alone, abs=1e-6)


def test_half_precision_pictures_are_measured_in_full() -> None:
    a, b = noise(11, 1, 3, 32, 32).half(), noise(12, 1, 3, 32, 32).half()
    assert torch.equal(ssim(a, b), ssim(a.float(), b.float()))
    assert rmse(a, b).dtype == torch.float32


def test_a_rows_measures_go_by_name() -> None:
    a, b = noise(13, 3, 16, 16), noise(14, 3, 16, 16)
    assert measures(a, a) == {"rmse": 0.0, "ssim": 1.0}
    assert measures(a, b)["rmse"] == pytest.approx(float(rmse(a[None], b[None])), abs=1e-5)


def test_pictures_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        rmse(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ValueError, match="11 pixels or more"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
