"""One record each: where their names stand, and what they say."""

import ast
from pathlib import Path

import pytest

import esd_core
from esd_core.config.presets import load_preset, preset_names
from esd_core.config.settings import METHODS
from esd_core.models.architectures import (
    ARCHITECTURES,
    REFINER,
    SD1,
    SD2,
    SDXL,
    by_width,
    like,
    title,
)

CORE = Path(esd_core.__file__).parent
SOURCES = [*CORE.rglob("*.py"), *(CORE.parent / "nodes").rglob("*.py")]
TRAINED = [known for known in ARCHITECTURES.values() if known.layers]


def literals(file):
    """The strings of a source, docstrings too, but not the words within them."""
    nodes = ast.walk(ast.parse(file.read_bytes()))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_their_names_stand_in_one_file():
    holding = {
        file.relative_to(CORE.parent).as_posix()
        for file in SOURCES
        if literals(file) & set(ARCHITECTURES)
    }
    assert holding == {"esd_core/models/architectures.py"}


@pytest.mark.parametrize("known", TRAINED, ids=lambda known: known.name)
def test_one_that_trains_knows_every_method_and_a_preset_for_it(known):
    methods = {*METHODS} - (set() if known.is_unet else {"selfattn"})
    assert set(known.layers) == methods
    assert {known.preset_for(method) for method in methods} <= set(preset_names())
    assert known.modelspec and known.ss_version


def test_the_wide_methods_get_the_learning_rate_published_for_them():
    for method, rate in (("esd-x", 2e-4), ("esd-x-strict", 2e-4), ("esd-u", 1e-5)):
        assert load_preset(SDXL.preset_for(method))["training"]["learning_rate"] == rate


def test_they_are_told_apart_by_width_and_sizes():
    assert [by_width(width) for width in (768, 1024, 2048, 1280, 32)] == [
        *(SD1, SD2, SDXL, REFINER),
        None,
    ]
    assert like(32, takes_sizes=True) is SDXL and like(32, takes_sizes=False) is SD2
    assert like(768, takes_sizes=True) is SDXL and like(768, takes_sizes=False) is SD1


def test_a_name_from_a_file_may_be_anything():
    assert (title("sd1"), title("x"), title("")) == ("SD 1.x", "x", "an unknown architecture")
