"""The drawn world: its pictures, its captions, and the oracle that reads it."""

import itertools

import numpy as np
import pytest
import torch

from esd_core.pocket import world
from esd_core.pocket.captions import all_captions, held_out_prompt
from esd_core.pocket.judge import load_oracle
from esd_core.pocket.world import LOOKS, NOTHING, OBJECTS, PLAIN, SIZE, STYLES, draw_scene

PAIRS = list(itertools.product(OBJECTS, LOOKS))
names = pytest.mark.parametrize("name", OBJECTS)


def drawn(name: str, look: str, seed: int = 0) -> np.ndarray:
    return world.draw(name, look, np.random.default_rng(seed))


def test_it_is_as_large_as_asked() -> None:
    assert SIZE >= 128
    assert len(OBJECTS) >= 6
    assert len(STYLES) >= 5 and PLAIN in LOOKS


@pytest.mark.parametrize(("name", "look"), PAIRS)
def test_a_picture_has_its_size_and_range(name: str, look: str) -> None:
    picture = drawn(name, look)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.float32
    assert picture.min() >= 0 and picture.max() <= 1
    assert picture.std() > 0.05


def test_a_picture_follows_from_its_seed() -> None:
    assert np.array_equal(drawn("car", "Seurat", 5), drawn("car", "Seurat", 5))
    assert not np.array_equal(drawn("car", "Seurat", 5), drawn("car", "Seurat", 6))


@names
def test_looks_are_distinct_on_one_scene(name: str) -> None:
    """Of the same seed, hence the same scene: every look is far from every other."""
    for one, other in itertools.combinations(LOOKS, 2):
        assert np.abs(drawn(name, one) - drawn(name, other)).mean() > 0.08, (one, other)


@names
def test_a_style_leaves_the_object_where_it_is(name: str) -> None:
    """A filter is of textures: coarsely, light and dark stay. Averaged over scenes."""

    def coarse(look: str) -> np.ndarray:
        light = np.mean([drawn(name, look, seed).mean(-1) for seed in range(8)], 0)
        return light.reshape(8, 16, 8, 16).mean((1, 3)).ravel()

    for style in STYLES:
        assert np.corrcoef(coarse(PLAIN), coarse(style))[0, 1] > 0.3, style


def test_an_empty_stage_is_the_same_picture_without_its_object() -> None:
    full, empty = (
        draw_scene(name, np.random.default_rng(7), "boat") for name in ("house", NOTHING)
    )
    is_object = (full != empty).any(2)
    assert 0.1 < is_object.mean() < 0.5
    assert not is_object[:8].any() and not is_object[:, :8].any()


def test_what_is_not_of_this_world_is_refused() -> None:
    with pytest.raises(KeyError):
        drawn("dragon", PLAIN)
    with pytest.raises(KeyError):
        drawn("house", "Rembrandt")


def test_captions_are_distinct_and_end_with_the_empty_prompt() -> None:
    prompts = [caption.prompt for caption in all_captions()]
    assert len(set(prompts)) == len(prompts)
    assert prompts[-1] == ""
    assert all_captions()[-1].objects == OBJECTS and all_captions()[-1].looks == LOOKS


def test_a_caption_fits_what_it_names_and_nothing_else() -> None:
    for caption in all_captions():
        words = caption.prompt.replace(",", "").split()
        named_objects = tuple(o for o in OBJECTS if o in words)
        named_styles = tuple(s for s in STYLES if s in caption.prompt)
        assert caption.objects == (named_objects or OBJECTS)
        if named_styles:
            assert caption.looks == named_styles
        elif named_objects:
            assert caption.looks == (PLAIN,)


@pytest.mark.parametrize(("name", "look"), PAIRS)
def test_every_pair_has_captions(name: str, look: str) -> None:
    own = [c for c in all_captions() if c.objects == (name,) and c.looks == (look,)]
    assert len(own) >= 5


@pytest.mark.parametrize(("name", "look"), PAIRS)
def test_held_out_prompts_name_their_pair_and_are_never_trained_on(name: str, look: str) -> None:
    prompts = {held_out_prompt(name, look, k) for k in range(12)}
    assert len(prompts) >= 3
    assert not prompts & {caption.prompt for caption in all_captions()}
    for prompt in prompts:
        assert name in prompt
        assert [style for style in STYLES if style in prompt] == [s for s in STYLES if s == look]


def test_the_oracle_reads_fresh_drawings() -> None:
    """At least 99 % of objects and of looks, on seeds that its training has not seen."""
    cases = [(pair, seed) for pair in PAIRS for seed in range(12)]
    pictures = [drawn(*pair, seed=70_000 + 100 * k + seed) for k, (pair, seed) in enumerate(cases)]
    oracle = load_oracle()
    batches = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).split(72)
    seen = [pair for batch in batches for pair in zip(*oracle.read(batch), strict=True)]
    for kind in (0, 1):
        right = [guess[kind] == pair[kind] for guess, (pair, _) in zip(seen, cases, strict=True)]
        assert np.mean(right) >= 0.99
