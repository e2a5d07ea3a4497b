"""What the oracle makes of pictures whose look is known, and of what pocket draws."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esd_core.cli.demo import compared
from esd_core.errors import FileError
from esd_core.files.erasure import Erasure
from esd_core.models.headless import Headless
from esd_core.models.loading import load_denoiser
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
    assert list(result) == ["concepts", "worst_drop", "UA", "IRA", "CRA"]
    assert result["UA"] is result["IRA"] is result["CRA"] is None, "nothing was erased"
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
    assert result["UA"] == 1 - concepts["Van Gogh"]["after"]
    both = Judgement(faithful, replaced, frozenset({"Van Gogh", "boat"})).as_dict()
    assert both["worst_drop"] <= 0.06


def test_what_is_kept_is_a_share_of_what_was_in_prompts_without_the_erased(
    faithful: tuple[Reading, ...], replaced: tuple[Reading, ...]
) -> None:
    """Every boat became a car, and only Van Gogh's boats are not asked for."""
    judged = Judgement(faithful, replaced, frozenset({"Van Gogh"}))
    kept, result = judged.kept(), judged.as_dict()
    assert "Van Gogh" not in kept and kept["boat"] <= 0.06 and kept["car"] >= 0.94
    assert result["IRA"] >= 0.94 and result["CRA"] == pytest.approx(5 / 6, abs=0.03)
    doubtful = tuple(
        replace(reading, seen=("", reading.seen[1])) if place % 2 else reading
        for place, reading in enumerate(faithful)
    )
    assert Judgement(doubtful, doubtful, frozenset({"boat"})).as_dict()["IRA"] == 1


def test_a_gain_is_not_a_drop(faithful: tuple[Reading, ...], replaced: tuple[Reading, ...]) -> None:
    assert Judgement(replaced, faithful, frozenset()).as_dict()["worst_drop"] == 0


def test_what_is_shown_instead_is_told(replaced: tuple[Reading, ...]) -> None:
    instead = shown(replaced, "Van Gogh")
    assert list(instead)[:2] == ["Mondrian", world.PLAIN], "the largest share comes first"
    assert sum(instead.values()) == pytest.approx(1)
    assert shown(replaced, "Van Gogh")["Mondrian"] == pytest.approx(2 / 3, abs=0.06)
    assert shown(replaced, "boat")["car"] >= 0.94
    assert "Mondrian" not in shown(replaced, "boat"), "a style is not an object"


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
    head, *body, last, means = table(result).splitlines()
    assert [line.split("  ")[0] for line in body] == list(KINDS)
    assert [line.endswith("erased") for line in body] == [name == "Van Gogh" for name in KINDS]
    assert {len(line.removesuffix("  erased")) for line in body} == {len(head)}
    assert f"{100 * result['worst_drop']:.1f} points" in last
    assert means.startswith("UA ") and "CRA " in means


def test_an_oracle_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="oracle.safetensors is missing"):
        load_oracle(tmp_path / "oracle.safetensors")


# -- on generated pictures ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket() -> Headless:
    return load_denoiser("pocket", precision="fp32", device="cpu")


def test_an_evaluation_renders_before_and_after(pocket: Headless) -> None:
    name = "input_blocks.0.0.weight"
    change = -pocket.parameters()[name].detach().clone()
    tensors = {"input_blocks.0.0.diff": change}
    blind = Erasure(tensors, {"esd.concepts": json.dumps(["Van Gogh"])})
    progress: list[int] = []
    judgement = judge(pocket, [(blind, 1.0)], per_pair=1, steps=1, on_progress=progress.append)
    assert progress == [32, 4, 32, 4]
    assert judgement.before != judgement.after, "a model that sees no latents draws otherwise"
    assert judgement.erased == {"Van Gogh"}
    assert torch.equal(pocket.parameters()[name], -change), "the model is as it was"

    kept = judge(pocket, [(blind, 1.0)], per_pair=1, steps=1, before=judgement.before)
    assert kept == judgement
    unchanged = Judgement(judgement.before, judgement.before, frozenset())
    assert judge(pocket, [], per_pair=1, steps=1) == unchanged


@pytest.mark.parametrize("concept", ["Van Gogh", "pixel art", "fish", "house"])
def test_a_demo_looks_at_what_names_its_concept_and_at_what_does_not(concept):
    named, *others = compared(concept).values()
    assert len(named) == 3 and all(concept in pair for pair in named)
    shown = [pair for pairs in others for pair in pairs]
    assert not any(concept in pair for pair in shown)
    own_kind = {pair[KINDS[concept] == "style"] for pair in others[0]}
    assert len(own_kind) >= 4, "of its own kind, nearly all"
