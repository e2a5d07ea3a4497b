"""Labelled comparison pictures: one row a prompt and seed, one column a model.

Drawn as strips of one width that are stacked: title, column headers, then headings and rows. A
strip is as high as its text or its pictures need, so nothing is cut off and nothing overlaps.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from einops import rearrange
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
        label: the prompt, for example.
        pictures: [3, H, W] in 0..1, one a column; all of a grid are of one size.
        sublabel: smaller, below the label: the seed, for example. Its line breaks are kept.
        heading: what the row is listed under; drawn wherever it changes.
    """

    label: str
    pictures: Sequence[Tensor]
    sublabel: str = ""
    heading: str = ""


def difference(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| times one gain, in 0..1: the same everywhere, so that rows compare."""
    return ((a.float() - b.float()).abs() * DIFFERENCE_GAIN).clamp(0, 1)


def to_image(picture: Tensor) -> Image.Image:
    """An RGB image of a picture [3, H, W] in 0..1."""
    pixels = picture.detach().float().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").cpu().numpy())


def comparison_grid(
    rows: Sequence[Row], columns: Sequence[str], title: str = "", footer: str = ""
) -> Image.Image:
    """All rows below their column headers, labels to the left; texts wrap.

    Raises:
        ValueError: there are no rows, or a row has not one picture a column, all of one size.
    """
    sizes = {tuple(picture.shape) for row in rows for picture in row.pictures}
    if len(sizes) != 1 or any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(
            f"a grid needs rows of {len(columns)} pictures of one size, not of {sorted(sizes)}"
        )
    _, height, width = sizes.pop()
    sheet = _Sheet(rows, len(columns), width, height)
    strips = [sheet.line(title, sheet.large), sheet.headers(columns)]
    for heading, below in groupby(rows, key=lambda row: row.heading):
        strips += [sheet.line(heading, sheet.font, _BAND), *map(sheet.row, below)]
    strips.append(sheet.line(footer, sheet.small))
    return _stacked([strip for strip in strips if strip], sheet.width, sheet.gap)


class _Sheet:
    """Draws strips of one width; its sizes are in pixels."""

    def __init__(self, rows: Sequence[Row], columns: int, width: int, height: int) -> None:
        factor = math.ceil(MIN_CELL / min(width, height))
        self.cell = width * factor, height * factor
        self.gap = round(14 * math.sqrt(min(self.cell) / MIN_CELL))
        self.small, self.font, self.large = (_font(self.gap * n // 7) for n in (6, 7, 9))
        for share in _LABEL_WIDTHS:
            self.label_width = share * self.cell[0]
            labels = [self._label(row) for row in rows]
            if all(_height(*label) <= self.cell[1] for label in labels):
                break
        labelled = math.ceil(max(text.width for label in labels for text in label))
        self.left = [
            self.gap + (labelled + 2 * self.gap if labelled else 0) + n * (self.cell[0] + self.gap)
            for n in range(columns)
        ]
        self.width = self.left[-1] + self.cell[0] + self.gap

    def line(self, text: str, font: Font, color: Color = _PAPER) -> Image.Image | None:
        """Text across the sheet, or None of no text."""
        written = _Text(text, font, self.width - 2 * self.gap)
        if not written.lines:
            return None
        strip = self._blank(written.height + self.gap, color)
        written.draw(strip, self.gap, self.gap // 2)
        return strip

    def headers(self, columns: Sequence[str]) -> Image.Image | None:
        """The columns' names, centred, standing on one line."""
        names = [_Text(name, self.font, self.cell[0]) for name in columns]
        height = max(name.height for name in names)
        if not height:
            return None
        strip = self._blank(height)
        for name, left in zip(names, self.left, strict=True):
            name.draw(strip, left + self.cell[0] / 2, height - name.height, centred=True)
        return strip

    def row(self, row: Row) -> Image.Image:
        """The pictures with their label to the left, centred against each other."""
        label = self._label(row)
        strip = self._blank(max(self.cell[1], _height(*label)))
        top = (strip.height - _height(*label)) // 2
        for text in label:
            text.draw(strip, self.gap, top)
            top += text.height
        for picture, left in zip(row.pictures, self.left, strict=True):
            image = to_image(picture).resize(self.cell, Image.Resampling.NEAREST)
            strip.paste(image, (left, (strip.height - self.cell[1]) // 2))
        return strip

    def _label(self, row: Row) -> tuple[_Text, _Text]:
        return (
            _Text(row.label, self.font, self.label_width),
            _Text(row.sublabel, self.small, self.label_width, _FAINT),
        )

    def _blank(self, height: int, color: Color = _PAPER) -> Image.Image:
        return Image.new("RGB", (self.width, height), color)


class _Text:
    """Text wrapped to a width; without words it takes no room."""

    def __init__(self, text: str, font: Font, width: float, color: Color = _INK) -> None:
        self.lines = wrap(text, font, width) if text.strip() else []
        self.height = len(self.lines) * sum(font.getmetrics())
        self.width = max((font.getlength(line) for line in self.lines), default=0)
        self._font, self._color = font, color

    def draw(self, image: Image.Image, x: float, top: int, centred: bool = False) -> None:
        """`x` is the left edge, or the middle of the lines."""
        ImageDraw.Draw(image).multiline_text(
            (x, top), "\n".join(self.lines), self._color, self._font,
            anchor="ma" if centred else "la", align="center" if centred else "left",
            spacing=self._font.getmetrics()[1],  # descents, which Pillow leaves out of a line
        )  # fmt: skip


def _height(*texts: _Text) -> int:
    return sum(text.height for text in texts)


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


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines no wider than `width`, broken between words, or inside one that is too wide itself.

    Pillow's own wrapping (ImageText, since version 13) refuses a word that is wider than a line.
    """
    lines: list[str] = []
    for paragraph in _drawable(text, font).splitlines():
        line = ""
        for piece in (p for word in paragraph.split() for p in _pieces(word, font, width)):
            joined = f"{line} {piece}" if line else piece
            if line and font.getlength(joined) > width:
                lines.append(line)
                joined = piece
            line = joined
        lines.append(line)
    return lines


def _pieces(word: str, font: Font, width: float) -> list[str]:
    """A word in pieces that fit; a single character stays whole, however wide."""
    if font.getlength(word) <= width:
        return [word]
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
