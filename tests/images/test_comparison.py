"""A model's pictures beside its erased selves': what is drawn, measured and told."""

import numpy as np
import pytest
import torch

from esd_core.images import comparison
from esd_core.images.measures import measures

GRAY, WHITE, DARK = (torch.full((2, 3, 16, 16), value) for value in (0.5, 1.0, 0.25))


def test_each_row_measures_every_erased_model_against_the_original() -> None:
    measured = comparison.measure([GRAY, GRAY, DARK])
    assert measured == [[measures(GRAY[0], GRAY[0]), measures(GRAY[0], DARK[0])]] * 2
    assert (measured[0][0]["rmse"], measured[0][1]["rmse"]) == (0, 0.25)


def test_the_grid_ends_with_the_difference_of_original_and_last() -> None:
    image = comparison.draw([("a", 1), ("", 2)], ["one", "two"], [GRAY, DARK, WHITE], "footer")
    middles = np.asarray(image)[image.height // 2 :, :]
    shown = {value for value in (64, 128, 255) if (middles == value).all(-1).any()}
    assert shown == {64, 128, 255}, "both erased models and the original"
    same = comparison.draw([("a", 1), ("", 2)], ["one", "two"], [GRAY, DARK, GRAY], "footer")
    black = (np.asarray(same) == 0).all(-1).sum()
    assert black == 2 * 128 * 128, "no difference is drawn black, once a row"


def test_the_report_has_a_line_a_prompt_and_the_means() -> None:
    rows = [{"rmse": 0.1, "ssim": 0.9}, {"rmse": 0.3, "ssim": 0.5}]
    assert comparison.report(["a fish", "a car"], rows).splitlines() == [
        "rmse 0.100  ssim 0.900  a fish",
        "rmse 0.300  ssim 0.500  a car",
        "rmse 0.200  ssim 0.700  mean of all",
    ]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        comparison.measure([GRAY, GRAY[:1]])
