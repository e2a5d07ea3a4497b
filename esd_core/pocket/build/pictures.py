"""Drawn pictures by the thousand, and their latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..world import LOOKS, OBJECTS, Picture, draw

Draw = Callable[[str, str, np.random.Generator], Picture]
"""From an object and a look to a picture."""


@dataclass(frozen=True)
class Pictures:
    """uint8 [N, 3, SIZE, SIZE], and the indices of their objects and looks, [N] each."""

    pixels: Tensor
    objects: Tensor
    looks: Tensor


def draw_pictures(
    count: int, seed: int, draw: Draw = draw, objects: Sequence[str] = OBJECTS
) -> Pictures:
    """`count` pictures, every pair of object and look equally often, by `draw`."""
    rng = np.random.default_rng(seed)
    pairs = [(o, k) for o in range(len(objects)) for k in range(len(LOOKS))]
    chosen = [pairs[place % len(pairs)] for place in range(count)]
    drawn = [draw(objects[o], LOOKS[k], rng) for o, k in chosen]
    pixels = torch.from_numpy(np.stack([np.round(p * 255).astype(np.uint8) for p in drawn]))
    return Pictures(pixels.permute(0, 3, 1, 2).contiguous(), *torch.tensor(chosen).T)


def to_model(pixels: Tensor) -> Tensor:
    """uint8 pixels as an autoencoder takes them, -1..1."""
    return pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class Latents:
    """Posteriors of pictures: mean and deviation, unscaled, [N, 8, h, w], with their indices."""

    moments: Tensor
    objects: Tensor
    looks: Tensor


@torch.no_grad()
def encode_pictures(path: Path, vae: AutoencoderKL, count: int, seed: int) -> Latents:
    """Draws and encodes pictures once; afterwards they are read from `path`."""
    if not path.exists():
        pictures = draw_pictures(count, seed)
        posteriors = [vae.encode(to_model(p)).latent_dist for p in pictures.pixels.split(48)]
        moments = torch.cat([torch.cat([p.mean, p.std], 1) for p in posteriors])
        part = path.with_suffix(".part")
        objects, looks = pictures.objects.clone(), pictures.looks.clone()
        save_file({"moments": moments, "objects": objects, "looks": looks}, part)
        part.replace(path)
        print(f"{path.stem}: {count} pictures encoded", flush=True)
    return Latents(**load_file(path))
