"""Image measures against their formulas; what the oracle makes of pictures whose look is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from esd_core.errors import FileError
from esd_core.files.erasure import Erasure
from esd_core.images.measures import measures, rmse, ssim
from esd_core.models.diffusers_backend import DiffusersDenoiser, load_denoiser
from esd_core.pocket import world
from esd_core.pocket.captions import all_captions
from esd_core.pocket.judge import (
    KINDS,
    Case,
    Judgement,
    Pair,
    Reading,
    judge,
    load_oracle,
    make_cases,
    named,
    read,
    shown,
    table,
)


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


# -- the judge, on drawn pictures --------------------------------------------------------------

CASES = make_cases(per_pair=3)


def readings(shows: Callable[[Case], Pair]) -> tuple[Reading, ...]:
    """What the oracle reads off drawings of what each case is said to show."""
    pictures = [world.draw(*shows(case), np.random.default_rng(case.seed)) for case in CASES]
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return read(load_oracle(), CASES, stacked)


@pytest.fixture(scope="module")
def faithful() -> tuple[Reading, ...]:
    return readings(lambda case: case.asked)


@pytest.fixture(scope="module")
def replaced() -> tuple[Reading, ...]:
    """Van Gogh became Mondrian in two of three, plain in the third; every boat became a car."""

    def shows(case: Case) -> Pair:
        name, look = case.asked
        if look == "Van Gogh":
            look = world.PLAIN if case.seed % 3 == 0 else "Mondrian"
        return ("car" if name == "boat" else name), look

    return readings(shows)


def test_drawings_of_what_was_asked_are_read_as_such(faithful: tuple[Reading, ...]) -> None:
    result = Judgement(faithful, faithful, frozenset()).as_dict()
    assert list(result) == ["concepts", "worst_drop"]
    assert list(result["concepts"]) == [*world.STYLES, world.PLAIN, *world.OBJECTS]
    for name, row in result["concepts"].items():
        assert list(row) == ["kind", "erased", "pictures", "before", "after"]
        assert row["kind"] == ("object" if name in world.OBJECTS else "style")
        assert row["pictures"] == 3 * 6
        assert row["before"] == row["after"] >= 0.94
    assert result["worst_drop"] == 0


def test_what_vanished_is_counted(
    faithful: tuple[Reading, ...], replaced: tuple[Reading, ...]
) -> None:
    result = Judgement(faithful, replaced, frozenset({"Van Gogh"})).as_dict()
    concepts = result["concepts"]
    assert concepts["Van Gogh"]["erased"] and concepts["Van Gogh"]["after"] <= 0.06
    assert concepts["boat"]["after"] <= 0.06 and not concepts["boat"]["erased"]
    assert concepts["car"]["after"] >= 0.94, "only pictures whose prompts name it count"
    assert concepts["Mondrian"]["after"] >= 0.94
    assert result["worst_drop"] == concepts["boat"]["before"] - concepts["boat"]["after"]
    both = Judgement(faithful, replaced, frozenset({"Van Gogh", "boat"})).as_dict()
    assert both["worst_drop"] <= 0.06


def test_a_gain_is_no_drop(faithful: tuple[Reading, ...], replaced: tuple[Reading, ...]) -> None:
    assert Judgement(replaced, faithful, frozenset()).as_dict()["worst_drop"] == 0


def test_what_is_shown_instead_is_told(replaced: tuple[Reading, ...]) -> None:
    instead = shown(replaced, "Van Gogh")
    assert list(instead)[:2] == ["Mondrian", world.PLAIN], "the largest share comes first"
    assert sum(instead.values()) == pytest.approx(1)
    assert shown(replaced, "Van Gogh")["Mondrian"] == pytest.approx(2 / 3, abs=0.06)
    assert shown(replaced, "boat")["car"] >= 0.94
    assert "Mondrian" not in shown(replaced, "boat"), "a style is no object"


def test_a_share_has_96_pictures_behind_it() -> None:
    cases = make_cases(per_pair=16)
    for name in KINDS:
        assert sum(name in case.asked for case in cases) == 96


def test_cases_are_held_out_and_always_the_same() -> None:
    trained = {caption.prompt for caption in all_captions()}
    assert not trained & {case.prompt for case in CASES}
    assert len({case.seed for case in CASES}) == len(CASES)
    assert min(case.seed for case in CASES) >= 1_000_000
    assert make_cases(per_pair=3) == CASES


@pytest.mark.parametrize(
    ("concepts", "names"),
    [
        (["Van Gogh"], {"Van Gogh"}),
        (["a VAN GOGH painting"], {"Van Gogh"}),
        (["pixel art", "Houses"], {"pixel art", "house"}),
        (["cartoon", "street", "starfish", "explain"], set()),
        (["Van", "Gogh"], set()),
        ([], set()),
    ],
)
def test_erased_names_are_those_that_the_concepts_say(concepts: list[str], names: set[str]) -> None:
    assert named(concepts) == names


def test_the_table_lines_up(faithful: tuple[Reading, ...], replaced: tuple[Reading, ...]) -> None:
    result = Judgement(faithful, replaced, frozenset({"Van Gogh"})).as_dict()
    head, *body, last = table(result).splitlines()
    assert [line.split("  ")[0] for line in body] == list(KINDS)
    assert [line.endswith("erased") for line in body] == [name == "Van Gogh" for name in KINDS]
    assert {len(line.removesuffix("  erased")) for line in body} == {len(head)}
    assert f"{100 * result['worst_drop']:.1f} points" in last


def test_an_oracle_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="oracle.safetensors is missing"):
        load_oracle(tmp_path / "oracle.safetensors")


# -- the judge, on generated pictures ----------------------------------------------------------


@pytest.fixture(scope="module")
def pocket() -> DiffusersDenoiser:
    return load_denoiser("pocket", precision="fp32", device="cpu")


def test_an_evaluation_renders_before_and_after(pocket: DiffusersDenoiser) -> None:
    name = "input_blocks.0.0.weight"
    change = -pocket.parameters()[name].detach().clone()
    tensors = {"input_blocks.0.0.diff": change}
    blind = Erasure(tensors, {"esd.concepts": json.dumps(["Van Gogh"])})
    progress: list[tuple[int, int]] = []
    judgement = judge(
        pocket, [(blind, 1.0)], per_pair=1, steps=1,
        on_progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert progress == [(32, 72), (36, 72), (68, 72), (72, 72)]
    assert judgement.before != judgement.after, "a model that sees no latents draws otherwise"
    assert judgement.erased == {"Van Gogh"}
    assert torch.equal(pocket.parameters()[name], -change), "the model is as it was"

    kept = judge(pocket, [(blind, 1.0)], per_pair=1, steps=1, before=judgement.before)
    assert kept == judgement
    unchanged = Judgement(judgement.before, judgement.before, frozenset())
    assert judge(pocket, [], per_pair=1, steps=1) == unchanged
