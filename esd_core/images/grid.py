"""Labelled comparison pictures: one row a prompt and seed, one column a model.

Drawn as strips of one width that are stacked: title, column headers, then headings and rows. A
strip is as high as its text or its pictures need, so nothing is cut off and nothing overlaps.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_CELL = 128
"""Pictures with a shorter edge are enlarged to at least this, in pixels."""
DIFFERENCE_GAIN = 3.0
DIFFERENCE_HEADER = f"difference x{DIFFERENCE_GAIN:g}"

Font = ImageFont.FreeTypeFont
Color = tuple[int, int, int]

_PAPER: Color = (255, 255, 255)
_BAND: Color = (232, 235, 240)
_INK: Color = (24, 26, 32)
_FAINT: Color = (96, 100, 112)
_LABEL_WIDTHS = (1.25, 2.0, 3.0)  # of a cell's: the first that keeps labels as low as a cell


@dataclass(frozen=True)
class Row:
    """Pictures that belong side by side.

    Attributes:
        label: the prompt, say.
        pictures: [3, H, W] in 0..1, one a column; all of a grid are of one size.
        sublabel: smaller, below the label: the seed, say. Its line breaks are kept.
        heading: what the row is listed under; drawn wherever it changes.
    """

    label: str
    pictures: Sequence[Tensor]
    sublabel: str = ""
    heading: str = ""


def difference(a: Tensor, b: Tensor, gain: float = DIFFERENCE_GAIN) -> Tensor:
    """|a - b| times `gain`, in 0..1: the same gain everywhere, so that rows compare."""
    return ((a.float() - b.float()).abs() * gain).clamp(0, 1)


def to_image(picture: Tensor) -> Image.Image:
    """An RGB image of a picture [3, H, W] in 0..1."""
    pixels = picture.detach().float().clamp(0, 1).mul(255).round().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy().astype(np.uint8))


def comparison_grid(
    rows: Sequence[Row], columns: Sequence[str], title: str = "", footer: str = ""
) -> Image.Image:
    """All rows below their column headers, labels to the left; texts wrap.

    Raises:
        ValueError: there is no row, or a row has not one picture a column, all of one size.
    """
    sizes = {tuple(picture.shape) for row in rows for picture in row.pictures}
    if len(sizes) != 1 or any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(
            f"a grid needs rows of {len(columns)} pictures of one size, not of {sorted(sizes)}"
        )
    _, height, width = sizes.pop()
    sheet = _sheet(rows, len(columns), width, height)
    strips = [sheet.text(title, sheet.large), sheet.headers(columns)]
    heading = ""
    for row in rows:
        if row.heading and row.heading != heading:
            strips.append(sheet.text(row.heading, sheet.font, _BAND))
        heading = row.heading
        strips.append(sheet.row(row))
    strips.append(sheet.text(footer, sheet.small))
    return _stacked([strip for strip in strips if strip], sheet.width, sheet.gap)


@dataclass(frozen=True)
class _Sheet:
    """Sizes and fonts that all strips share, in pixels."""

    columns: int
    cell: tuple[int, int]
    label_width: int
    gap: int
    font: Font
    small: Font
    large: Font

    def left(self, column: int) -> int:
        first = self.gap + (self.label_width + 2 * self.gap if self.label_width else 0)
        return first + column * (self.cell[0] + self.gap)

    @property
    def width(self) -> int:
        return self.left(self.columns)

    def blank(self, height: int, color: Color = _PAPER) -> Image.Image:
        return Image.new("RGB", (self.width, height), color)

    def text(self, text: str, font: Font, color: Color = _PAPER) -> Image.Image | None:
        """A strip of text across the sheet, or None of no text."""
        block = _Block.of([(text, font, _INK)], self.width - 2 * self.gap)
        if not block.lines:
            return None
        strip = self.blank(block.height + self.gap, color)
        block.draw(strip, self.gap, self.gap // 2)
        return strip

    def headers(self, columns: Sequence[str]) -> Image.Image | None:
        """The columns' names, centred, standing on one line."""
        blocks = [_Block.of([(name, self.font, _INK)], self.cell[0]) for name in columns]
        height = max(block.height for block in blocks)
        if not height:
            return None
        strip = self.blank(height)
        for column, block in enumerate(blocks):
            block.draw(strip, self.left(column), height - block.height, self.cell[0])
        return strip

    def label(self, row: Row, width: float) -> _Block:
        return _Block.of([(row.label, self.font, _INK), (row.sublabel, self.small, _FAINT)], width)

    def row(self, row: Row) -> Image.Image:
        label = self.label(row, self.label_width)
        strip = self.blank(max(self.cell[1], label.height))
        label.draw(strip, self.gap, (strip.height - label.height) // 2)
        top = (strip.height - self.cell[1]) // 2
        for column, picture in enumerate(row.pictures):
            image = to_image(picture).resize(self.cell, Image.Resampling.NEAREST)
            strip.paste(image, (self.left(column), top))
        return strip


def _sheet(rows: Sequence[Row], columns: int, width: int, height: int) -> _Sheet:
    factor = math.ceil(MIN_CELL / min(width, height))
    cell = (width * factor, height * factor)
    size = round(14 * math.sqrt(min(cell) / MIN_CELL))
    fonts = (_font(size), _font(size * 6 // 7), _font(size * 9 // 7))
    draft = _Sheet(columns, cell, 0, size, *fonts)
    label_width = 0.0
    for share in _LABEL_WIDTHS:
        blocks = [draft.label(row, share * cell[0]) for row in rows]
        label_width = max(block.width for block in blocks)
        if max(block.height for block in blocks) <= cell[1]:
            break
    return replace(draft, label_width=math.ceil(label_width))


def _font(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as Pillow gives it where a size is asked for
    return font


def _stacked(strips: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    height = gap + sum(strip.height + gap for strip in strips)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = gap
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + gap
    return sheet


@dataclass(frozen=True)
class _Block:
    """Lines of text, each in its font and colour, below each other."""

    lines: tuple[tuple[str, Font, Color], ...]

    @staticmethod
    def of(texts: Sequence[tuple[str, Font, Color]], width: float) -> _Block:
        """Each text wrapped to `width`; an empty one takes no room."""
        given = [(text, font, color) for text, font, color in texts if text.strip()]
        wrapped = [(wrap(text, font, width), font, color) for text, font, color in given]
        return _Block(tuple((line, f, color) for lines, f, color in wrapped for line in lines))

    @property
    def height(self) -> int:
        return sum(_line_height(font) for _, font, _ in self.lines)

    @property
    def width(self) -> float:
        return max((font.getlength(line) for line, font, _ in self.lines), default=0)

    def draw(self, image: Image.Image, left: int, top: int, width: int = 0) -> None:
        """From `left` on, or centred in `width` where that is given."""
        pen = ImageDraw.Draw(image)
        for line, font, color in self.lines:
            start = left + (width - font.getlength(line)) / 2 if width else left
            pen.text((round(start), top), line, color, font)
            top += _line_height(font)


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines no wider than `width`, broken between words, or inside one that is too wide itself."""
    lines: list[str] = []
    for paragraph in _drawable(text, font).splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            *whole, rest = _broken(word, font, width)
            lines += [line, *whole] if line else whole
            line = rest
        lines.append(line)
    return lines


def _broken(word: str, font: Font, width: float) -> list[str]:
    """Pieces of a word that fit; a single character stays whole, however wide."""
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _drawable(text: str, font: Font) -> str:
    """Letters that the font lacks lose their accents; what has no plainer form stays."""
    missing = bytes(font.getmask("\uffff"))

    def plain(character: str) -> str:
        if character.isascii() or bytes(font.getmask(character)) != missing:
            return character
        parts = unicodedata.normalize("NFKD", character)
        return "".join(p for p in parts if not unicodedata.combining(p)) or character

    return "".join(plain(character) for character in text)


def _line_height(font: Font) -> int:
    return sum(font.getmetrics())
