"""Batches of IMAGE, [N, H, W, 3] in 0..1, as the core compares pictures; a column a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..esd_core.images import comparison
from .host import sampling
from .host.sampling import Sampling


def grid(prompts: Sequence[str], columns: Sequence[Tensor], asked: Sampling) -> Tensor:
    """IMAGE, [1, H, W, 3]: all pictures with labels, the original's first."""
    image = comparison.draw(
        [(prompt, asked.seed) for prompt in prompts],
        ["erased"],
        [_channels_first(column) for column in columns],
        f"{asked.steps} steps of {asked.sampler}, {asked.scheduler}, cfg {asked.cfg:g}, "
        f"{asked.width}x{asked.height}",
    )
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def measured(columns: Sequence[Tensor], vision: Any) -> list[comparison.Measures]:
    """A row a prompt; with a CLIP_VISION, also by its embeddings."""
    rows = [row for (row,) in comparison.measure([_channels_first(c) for c in columns])]
    if vision is not None:
        for row, cosine in zip(rows, sampling.likeness(vision, *columns), strict=True):
            row["clip cosine"] = round(cosine, 5)
    return rows


def _channels_first(pictures: Tensor) -> Tensor:
    return rearrange(pictures, "n h w c -> n c h w")
