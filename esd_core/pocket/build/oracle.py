"""The oracle's stage: trained on drawn pictures alone, never on generated ones.

Objects stand on each other's stages there. On their own alone it learns the stage with the object,
and takes a boat whose sky has turned for a fish: on any stage it read 80 % of drawings right. And
their shapes are soft under a texture that is sharp, as pocket draws them: otherwise it reads 97 %
of such drawings right, and takes Seurat's fishes for trees. Stages without an object are there too,
also with patches of colour on them: where it has no word for nothing it guesses one of six objects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import Oracle
from ..world import NOTHING, OBJECTS, SIZE, Color, Paint, Picture, draw_scene, in_look
from .loop import Course, Loop
from .pictures import draw_pictures

COURSE = Course(steps=1500, learning_rate=2e-3, averaging=0.98)
_BATCH, _PICTURES = 64, 8400


def train_oracle(work: Path, seed: int) -> Oracle:
    """The oracle, ready to read; prints how well it reads drawings it has not seen."""
    pictures = draw_pictures(_PICTURES, seed + 11, _draw_loosely, Oracle.SEEN)
    torch.manual_seed(seed)
    oracle = Oracle()

    def loss_of(rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(0, len(pictures.pixels), _BATCH))
        objects, looks = oracle(_worsen(pictures.pixels[rows].float() / 255, rng))
        return F.cross_entropy(objects, pictures.objects[rows]) + F.cross_entropy(
            looks, pictures.looks[rows]
        )

    Loop(oracle, work / "oracle.safetensors", COURSE).run(loss_of)
    _report(oracle, seed)
    return oracle


def _draw_loosely(name: str, look: str, rng: np.random.Generator) -> Picture:
    """On any stage, repainted, half transparent, bent and softened before its look is laid over it,
    which no worsening of a finished drawing gives."""
    stage, seed = str(rng.choice(OBJECTS)), int(rng.integers(2**32))
    scene, empty = (
        draw_scene(shown, np.random.default_rng(seed), stage, _repaint(rng))
        for shown in (name, NOTHING)
    )
    is_object = (scene != empty).any(2, keepdims=True)
    behind = _smudged(empty, rng) if rng.random() < 0.4 else empty
    opacity = np.float32(rng.uniform(0.5, 1) if rng.random() < 0.4 else 1)
    scene = np.where(is_object, behind + opacity * (scene - behind), behind)
    if rng.random() < 0.6:
        scene = _soften(scene, rng)
    return in_look(scene, look, rng)


def _repaint(rng: np.random.Generator) -> Paint:
    """Every part's colour moved towards some other one."""
    most = rng.uniform(0, 0.5)

    def paint(color: Color) -> Color:
        other, part = rng.integers(0, 256, 3), rng.uniform(0, most)
        red, green, blue = (round(c + part * (o - c)) for c, o in zip(color, other, strict=True))
        return red, green, blue

    return paint


def _smudged(scene: Picture, rng: np.random.Generator) -> Picture:
    """With patches of some colour that have no object's shape."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 6, 6)))
    noise = F.interpolate(coarse, size=SIZE, mode="bicubic")[0, 0, :, :, None].numpy()
    color, opacity = rng.random(3, np.float32), np.float32(rng.uniform(0.2, 1))
    return np.where(noise > rng.uniform(0.4, 1.2), scene + opacity * (color - scene), scene)


def _soften(scene: Picture, rng: np.random.Generator) -> Picture:
    """Outlines bent by some pixels, shapes blurred, colours faded towards their mean."""
    bend, shade = (torch.from_numpy(rng.normal(size=(1, 3, 6, 6))).float() for _ in range(2))
    bend = F.interpolate(bend[:, :2], size=SIZE, mode="bicubic") * rng.uniform(0, 0.04)
    at = F.affine_grid(torch.eye(2, 3)[None], [1, 3, SIZE, SIZE], align_corners=False)
    x = torch.from_numpy(scene).permute(2, 0, 1)[None]
    x = F.grid_sample(x, at + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    x = _blurred(x, int(rng.integers(16, 96)))
    x = x + rng.uniform(0, 0.1) * F.interpolate(shade, size=SIZE, mode="bilinear")
    x = x + rng.uniform(0, 0.4) * (x.mean((2, 3), keepdim=True) - x)
    return x[0].permute(1, 2, 0).clamp(0, 1).numpy()


def _worsen(batch: Tensor, rng: np.random.Generator) -> Tensor:
    """What a small autoencoder and a small UNet do to a drawing: blur, noise, drift of colour.

    Without it the oracle takes the soft boats that pocket draws in dots for fish.
    """
    if rng.random() < 0.7:
        batch = _blurred(batch, int(rng.integers(40, 120)))
    batch = torch.roll(batch, (int(rng.integers(-8, 9)), int(rng.integers(-8, 9))), (2, 3))
    rows = len(batch)
    coarse = F.interpolate(torch.randn(rows, 3, 16, 16), size=SIZE, mode="bilinear")
    batch = batch + torch.rand(rows, 1, 1, 1) * 0.15 * coarse
    batch = batch + torch.rand(rows, 1, 1, 1) * 0.10 * torch.randn_like(batch)
    contrast = 0.6 + 0.7 * torch.rand(rows, 1, 1, 1)
    tint = 0.2 * (torch.rand(rows, 3, 1, 1) - 0.5)
    return ((batch - 0.5) * contrast + 0.5 + tint).clamp(0, 1)


def _blurred(pictures: Tensor, edge: int) -> Tensor:
    """By way of pictures that are `edge` pixels wide."""
    small = F.interpolate(pictures, size=edge, mode="area")
    return F.interpolate(small, size=SIZE, mode="bilinear")


@torch.no_grad()
def _report(oracle: Oracle, seed: int) -> None:
    fresh = draw_pictures(1260, seed + 12, _draw_loosely, Oracle.SEEN)
    guesses = [oracle(part.float() / 255) for part in fresh.pixels.split(120)]
    for name, column, truth in (("objects", 0, fresh.objects), ("looks", 1, fresh.looks)):
        guess = torch.cat([both[column] for both in guesses]).argmax(1)
        print(f"oracle on fresh drawings, {name}: {(guess == truth).float().mean():.2%}")
