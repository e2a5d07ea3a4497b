"""Comparison pictures: what is on them, and that nothing is cut off or drawn over."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from torch import Tensor

from esd_core.images.grid import Row, comparison_grid, difference, to_image, wrap

FONT = ImageFont.load_default(14)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
LONG = "a painting of a house, " * 12 + "anextraordinarilylongwordwithoutanyspace" * 3


def even(color: Sequence[int], width: int = 128, height: int = 128) -> Tensor:
    return (torch.tensor(color) / 255).view(3, 1, 1).expand(3, height, width)


def count(image: Image.Image, color: Sequence[int]) -> int:
    return int((np.asarray(image) == np.array(color)).all(-1).sum())


def box(image: Image.Image, color: Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all that has a colour; right and bottom are outside."""
    rows, columns = np.nonzero((np.asarray(image) == np.array(color)).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def dark(image: Image.Image) -> np.ndarray:
    """Where there is text, on a grid of bright pictures."""
    return np.asarray(image).max(-1) < 140


@pytest.mark.parametrize(
    ("edge", "cell"), [(64, 128), (100, 200), (128, 128), (300, 300), (1024, 1024)]
)
def test_pictures_stand_whole_in_their_columns(edge: int, cell: int) -> None:
    colors = (RED, GREEN, BLUE)
    row = Row(LONG, [even(color, edge, edge) for color in colors], "seed 1")
    image = comparison_grid([row], ["original", LONG, "difference"], LONG, LONG)
    boxes = [box(image, color) for color in colors]
    for (left, top, right, bottom), color in zip(boxes, colors, strict=True):
        assert (right - left, bottom - top) == (cell, cell)
        assert count(image, color) == cell * cell, "something is drawn over it"
    assert len({top for _, top, _, _ in boxes}) == 1
    assert boxes[0][2] < boxes[1][0] and boxes[1][2] < boxes[2][0]


def test_small_pictures_keep_their_shape_and_their_pixels() -> None:
    picture = torch.zeros(3, 40, 64)
    picture[0, ::2], picture[2, :, ::2] = 1, 1
    image = comparison_grid([Row("", [picture])], ["x"])
    enlarged = to_image(picture).resize((64 * 4, 40 * 4), Image.Resampling.NEAREST)
    left, top, right, bottom = box(image, (255, 0, 255))
    cut = image.crop((left, top, left + 256, top + 160))
    assert np.array_equal(np.asarray(cut), np.asarray(enlarged))


@pytest.mark.parametrize("columns", [1, 2, 8])
@pytest.mark.parametrize("label", ["", "a house", LONG])
def test_no_text_reaches_the_edge(columns: int, label: str) -> None:
    rows = [Row(label, [even(RED)] * columns, label, label) for _ in range(2)]
    image = comparison_grid(rows, [label or "x"] * columns, label, label)
    ink = dark(image)
    margin = 8
    assert not ink[:margin].any() and not ink[-margin:].any()
    assert not ink[:, :margin].any() and not ink[:, -margin:].any()
    assert count(image, RED) == 2 * columns * 128 * 128
    assert ink.any()


def test_a_label_stays_beside_its_row_and_left_of_the_pictures() -> None:
    rows = [Row(LONG, [even(color)]) for color in (RED, GREEN)]
    image = comparison_grid(rows, [""])
    left, first_top, _, first_bottom = box(image, RED)
    _, second_top, _, _ = box(image, GREEN)
    lines = dark(image).any(1)
    between = lines[first_bottom:second_top]
    assert not dark(image)[:, left:].any()
    assert lines[first_top:first_bottom].any()
    assert (~between).sum() >= 14, "the labels of two rows are not apart"


def test_a_long_label_makes_the_row_higher_instead_of_being_cut() -> None:
    short = comparison_grid([Row("word", [even(RED)])], ["x"])
    tall = comparison_grid([Row("word " * 300, [even(RED)])], ["x"])
    assert tall.height > 3 * short.height
    assert dark(tall).sum() > 250 * dark(comparison_grid([Row("word", [even(RED)])], [""])).sum()


def test_a_heading_is_drawn_once_for_its_rows() -> None:
    def height(*headings: str) -> int:
        return comparison_grid([Row("a", [even(RED)], "", h) for h in headings], ["x"]).height

    plain, one, two = height("", "", ""), height("x", "x", "x"), height("x", "x", "y")
    assert one > plain
    assert two - one == one - plain


def test_text_grows_with_the_pictures() -> None:
    def ink_height(edge: int) -> int:
        image = comparison_grid([Row("Hx", [even(RED, edge, edge)])], [""])
        return int(dark(image).any(1).sum())

    assert ink_height(128) < ink_height(512) < ink_height(1024)


def test_the_same_rows_give_the_same_picture() -> None:
    rows = [Row("a house", [even(RED), even(BLUE)], "seed 3", "plain objects")]
    first, second = (comparison_grid(rows, ["a", "b"], "t", "f") for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_rows_that_make_no_grid_are_refused() -> None:
    for rows in ([], [Row("a", [even(RED)])], [Row("a", [even(RED), even(RED, 64, 64)])]):
        with pytest.raises(ValueError, match="rows of 2 pictures of one size"):
            comparison_grid(rows, ["x", "y"])


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=120)


@given(texts, st.integers(20, 300))
@settings(max_examples=60)
def test_wrapped_lines_fit_and_say_the_same(text: str, width: int) -> None:
    lines = wrap(text, FONT, width)
    assert all(FONT.getlength(line) <= width for line in lines)
    if text.isascii():
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_lines_break_between_words_and_at_line_breaks() -> None:
    assert wrap("one two\nthree", FONT, 1000) == ["one two", "three"]
    assert wrap("one two", FONT, FONT.getlength("one tw")) == ["one", "two"]
    assert wrap("a " + "b" * 50, FONT, 100)[0] == "a"


def test_accents_that_the_font_lacks_are_dropped() -> None:
    assert wrap("caf\u00e9 Ren\u00e9", FONT, 1000) == ["cafe Rene"]
    assert wrap("\u201cquoted\u201d", FONT, 1000) == ["\u201cquoted\u201d"]


def test_the_difference_can_be_seen_and_stays_in_range() -> None:
    a, b = torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), 0.4)
    assert torch.allclose(difference(a, b), torch.full((3, 2, 2), 0.3), atol=1e-6)
    assert torch.equal(difference(a, b), difference(b, a))
    assert float(difference(torch.zeros(3, 2, 2), torch.ones(3, 2, 2)).max()) == 1


def test_an_image_has_the_pictures_values() -> None:
    picture = torch.tensor([0.0, 0.5, 1.2]).view(3, 1, 1).expand(3, 2, 4)
    image = to_image(picture)
    assert (image.size, image.getpixel((3, 1))) == ((4, 2), (0, 128, 255))
