"""The drawn world that pocket knows: objects seen in looks.

A picture is an object drawn as flat shapes over a simple scene, then passed through the texture
filter of its look. `captions.py` has the prompts that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce, repeat
from PIL import Image, ImageDraw

SIZE = 128
"""Edge of a picture in pixels."""

OBJECTS = ("house", "tree", "boat", "fish", "flower", "car")
NOTHING = "nothing"
"""What an empty stage shows: the oracle can say so, and no prompt asks for it."""

PLAIN = "plain"
STYLES = ("Van Gogh", "Mondrian", "Seurat", "Hokusai", "pixel art")
LOOKS = (PLAIN, *STYLES)

_OVERSAMPLING = 2

Color = tuple[int, int, int]
Paint = Callable[[Color], Color]
"""From a part's colour to the one that it is drawn in."""
Picture = np.ndarray
"""float32 [SIZE, SIZE, 3], values in 0..1."""


# -- objects ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pen:
    """Draws in units of the picture's edge around an object's centre."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    scale: float
    paint: Paint

    def _map(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        edge = SIZE * _OVERSAMPLING
        return [
            ((self.x + u * self.scale) * edge, (self.y + v * self.scale) * edge) for u, v in points
        ]

    def polygon(self, color: Color, *points: tuple[float, float]) -> None:
        self.draw.polygon(self._map(points), fill=self.paint(color))

    def box(self, color: Color, left: float, top: float, right: float, bottom: float) -> None:
        self.polygon(color, (left, top), (right, top), (right, bottom), (left, bottom))

    def disc(self, color: Color, u: float, v: float, rx: float, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self.draw.ellipse(
            [c for p in self._map([(u - rx, v - ry), (u + rx, v + ry)]) for c in p],
            fill=self.paint(color),
        )


def _house(pen: _Pen) -> None:
    pen.box((236, 208, 160), -0.30, -0.08, 0.30, 0.36)
    pen.polygon((196, 44, 36), (-0.38, -0.08), (0.0, -0.42), (0.38, -0.08))
    pen.box((92, 52, 32), -0.08, 0.12, 0.08, 0.36)
    pen.box((70, 130, 210), -0.24, 0.02, -0.12, 0.14)
    pen.box((70, 130, 210), 0.12, 0.02, 0.24, 0.14)


def _tree(pen: _Pen) -> None:
    pen.box((104, 62, 30), -0.07, 0.05, 0.07, 0.42)
    for u, v, r in ((0.0, -0.2, 0.24), (-0.18, -0.04, 0.18), (0.18, -0.04, 0.18)):
        pen.disc((34, 120, 44), u, v, r)


def _boat(pen: _Pen) -> None:
    pen.polygon((150, 60, 30), (-0.40, 0.14), (0.40, 0.14), (0.26, 0.36), (-0.26, 0.36))
    pen.box((80, 50, 30), -0.03, -0.42, 0.03, 0.14)
    pen.polygon((250, 250, 244), (0.05, -0.40), (0.05, 0.09), (0.36, 0.09))
    pen.polygon((230, 90, 50), (-0.06, -0.30), (-0.06, 0.09), (-0.30, 0.09))


def _fish(pen: _Pen) -> None:
    pen.polygon((216, 90, 20), (0.16, 0.0), (0.42, -0.24), (0.42, 0.24))
    pen.disc((246, 140, 30), -0.08, 0.0, 0.34, 0.21)
    pen.polygon((216, 90, 20), (-0.10, -0.16), (0.10, -0.34), (0.12, -0.14))
    pen.disc((255, 255, 255), -0.26, -0.05, 0.065)
    pen.disc((10, 10, 20), -0.27, -0.05, 0.035)


def _flower(pen: _Pen) -> None:
    pen.box((40, 140, 50), -0.03, -0.05, 0.03, 0.44)
    pen.polygon((40, 140, 50), (0.0, 0.34), (0.26, 0.16), (0.12, 0.38))
    for k in range(6):
        angle = 2 * np.pi * k / 6
        pen.disc((214, 60, 150), 0.19 * np.cos(angle), -0.16 + 0.19 * np.sin(angle), 0.115)
    pen.disc((250, 214, 50), 0.0, -0.16, 0.12)


def _car(pen: _Pen) -> None:
    pen.polygon((204, 36, 48), (-0.22, -0.20), (0.16, -0.20), (0.30, 0.02), (-0.32, 0.02))
    pen.box((204, 36, 48), -0.44, 0.0, 0.44, 0.20)
    pen.polygon((170, 214, 240), (-0.18, -0.15), (-0.02, -0.15), (-0.02, 0.0), (-0.24, 0.0))
    pen.polygon((170, 214, 240), (0.03, -0.15), (0.13, -0.15), (0.22, 0.0), (0.03, 0.0))
    for u in (-0.25, 0.25):
        pen.disc((24, 24, 30), u, 0.21, 0.125)
        pen.disc((190, 190, 196), u, 0.21, 0.05)


_DRAW: dict[str, Callable[[_Pen], None]] = {
    "house": _house, "tree": _tree, "boat": _boat, "fish": _fish, "flower": _flower, "car": _car,
    NOTHING: lambda pen: None,
}  # fmt: skip

_SKIES: tuple[Color, ...] = ((150, 200, 240), (244, 214, 170), (206, 222, 226))
_GROUNDS: tuple[Color, ...] = ((120, 176, 84), (204, 184, 130), (150, 160, 110))
_WATER: Color = (58, 120, 186)


def _scene(name: str, rng: np.random.Generator) -> Image.Image:
    """An empty stage: sky and ground, sky and sea for the boat, water alone for the fish."""
    edge = SIZE * _OVERSAMPLING
    sky, ground = _SKIES[rng.integers(len(_SKIES))], _GROUNDS[rng.integers(len(_GROUNDS))]
    if name == "fish":
        sky = ground = _WATER
    elif name == "boat":
        ground = _WATER
    stage = Image.new("RGB", (edge, edge), sky)
    horizon = rng.uniform(0.62, 0.72) * edge
    ImageDraw.Draw(stage).rectangle((0, horizon, edge, edge), fill=ground)
    return stage


def as_it_is(color: Color) -> Color:
    return color


def draw_scene(
    name: str, rng: np.random.Generator, stage_of: str = "", paint: Paint = as_it_is
) -> Picture:
    """The object, or NOTHING, on its own stage or another's, in no style. Position, size and light
    vary, and take the same random numbers whatever is drawn."""
    stage = _scene(stage_of or name, rng)
    pen = _Pen(
        ImageDraw.Draw(stage), 0.5 + rng.uniform(-0.06, 0.06), 0.52 + rng.uniform(-0.04, 0.04),
        rng.uniform(0.85, 1.05), paint,
    )  # fmt: skip
    _DRAW[name](pen)
    small = stage.resize((SIZE, SIZE), Image.Resampling.BOX)
    picture = np.asarray(small, np.float32) / 255
    return np.clip(picture * rng.uniform(0.92, 1.06), 0, 1)


# -- looks -----------------------------------------------------------------------------------


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    return x, y


def _luminance(picture: Picture) -> np.ndarray:
    return picture @ np.array([0.3, 0.59, 0.11], np.float32)


def _blocks(picture: Picture, edge: int) -> Picture:
    """Mean of every edge x edge cell, at full size."""
    cells = reduce(picture, "(h a) (w b) c -> h w c", "mean", a=edge, b=edge)
    return repeat(cells, "h w c -> (h a) (w b) c", a=edge, b=edge)


def _nearest(picture: Picture, palette: Sequence[Color]) -> Picture:
    colors = np.array(palette, np.float32) / 255
    distance = ((picture[:, :, None] - colors) ** 2).sum(-1)
    return colors[distance.argmin(-1)]


def _van_gogh(picture: Picture, rng: np.random.Generator) -> Picture:
    """Bright strokes that run in rings around two centres, in night blue and yellow."""
    x, y = _grid()
    phase = np.zeros_like(x)
    nearest = np.full_like(x, np.inf)
    for u, v in ((0.28, 0.22), (0.78, 0.70)):
        cx, cy = (u + rng.uniform(-0.03, 0.03)) * SIZE, (v + rng.uniform(-0.03, 0.03)) * SIZE
        radius = np.hypot(x - cx, y - cy)
        phase = np.where(radius < nearest, radius, phase)
        nearest = np.minimum(nearest, radius)
    stroke = np.sin(2 * np.pi * phase / 11)[..., None]
    light = _luminance(picture)[..., None]
    night = (1 - light) * np.array([0.10, 0.20, 0.62]) + light * np.array([1.0, 0.86, 0.28])
    tint = 0.5 * picture + 0.5 * night
    swirl = np.where(stroke > 0, np.array([1.0, 0.85, 0.25]), np.array([0.06, 0.14, 0.55]))
    return tint + 0.42 * np.abs(stroke) * (swirl - tint)


def _mondrian(picture: Picture, rng: np.random.Generator) -> Picture:
    """Flat primaries on white behind a black grid."""
    palette = ((246, 244, 236), (214, 30, 36), (246, 206, 36), (30, 70, 170))
    bold = np.clip((picture - 0.5) * 1.35 + 0.56, 0, 1)
    flat = _nearest(bold, palette)
    x, y = _grid()
    for axis in (x, y):
        for place in (0.14, 0.5, 0.86):
            at = (place + rng.uniform(-0.04, 0.04)) * SIZE
            flat[np.abs(axis - at) < 2.5] = 0.05
    return flat


def _seurat(picture: Picture, rng: np.random.Generator) -> Picture:
    """Dots of the local colour on cream paper."""
    x, y = _grid()
    edge = 8
    local = np.clip((_blocks(picture, edge // 2) - 0.5) * 1.25 + 0.5, 0, 1)
    u, v = (x % edge) - 3.5, (y % edge) - 3.5
    centre = np.hypot(u, v)
    corner = np.hypot(np.abs(u) - 4, np.abs(v) - 4)
    dot = np.clip(2.9 - np.minimum(centre, corner), 0, 1)[..., None]
    paper = np.array([0.97, 0.93, 0.80], np.float32)
    return paper + dot * (local * 0.92 - paper)


def _hokusai(picture: Picture, rng: np.random.Generator) -> Picture:
    """A woodblock print: indigo, blue, grey and paper, cut by wave lines."""
    light = _luminance(picture)
    inks = (
        np.array([[18, 34, 84], [52, 96, 150], [150, 182, 190], [238, 228, 200]], np.float32) / 255
    )
    flat = inks[np.digitize(light, [0.34, 0.52, 0.70])]
    x, y = _grid()
    shift = rng.uniform(0, SIZE)
    wave = (y + 5 * np.abs(np.sin(np.pi * (x + shift) / 32))) % 16
    flat[wave < 2.6] = inks[0]
    flat[(wave >= 2.6) & (wave < 4.6)] = np.array([0.98, 0.98, 0.96])
    return flat


def _pixel_art(picture: Picture, rng: np.random.Generator) -> Picture:
    """Large square pixels of few saturated colours, with a dark seam around each."""
    bold = np.clip((_blocks(picture, 8) - 0.5) * 1.3 + 0.5, 0, 1)
    flat = np.round(bold * 3) / 3
    x, y = _grid()
    flat[(x % 8 == 7) | (y % 8 == 7)] *= 0.45
    return flat


_FILTER: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "Van Gogh": _van_gogh, "Mondrian": _mondrian, "Seurat": _seurat, "Hokusai": _hokusai,
    "pixel art": _pixel_art,
}  # fmt: skip


def draw(name: str, look: str, rng: np.random.Generator) -> Picture:
    """One picture of object `name` in `look`.

    Raises:
        KeyError: an object or a look that is not of this world.
    """
    return in_look(draw_scene(name, rng), look, rng)


def in_look(scene: Picture, look: str, rng: np.random.Generator) -> Picture:
    """The scene passed through the texture filter of `look`.

    Raises:
        KeyError: a look that is not of this world.
    """
    picture = scene if look == PLAIN else _FILTER[look](scene, rng)
    return np.clip(picture, 0, 1).astype(np.float32)
