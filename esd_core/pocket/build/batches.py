"""Pictures with the texts that tell them, as both generators train on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..captions import Caption, all_captions
from ..world import LOOKS, OBJECTS
from .pictures import Latents

BATCH = 32
_UNCONDITIONAL = 0.12
"""How often a picture is trained with the empty prompt."""

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]
"""From prompts to context [B, 77, C] and pooled [B, P]."""


@dataclass(frozen=True)
class Batch:
    """Scaled latents [B, 4, h, w], context [B, 77, C] and pooled [B, P]."""

    latents: Tensor
    context: Tensor
    pooled: Tensor


class Batches:
    """Draws batches from latents, with every caption encoded once."""

    def __init__(self, latents: Latents, scale: float, encode: Encode) -> None:
        captions = all_captions()
        self.latents, self.scale = latents, scale
        self.context, self.pooled = _encoded(encode, captions)
        self.odds = _odds(captions)

    def draw(self, rng: np.random.Generator) -> Batch:
        """By that generator, and torch's own."""
        latents, last = self.latents, len(self.context) - 1
        rows = torch.from_numpy(rng.integers(0, len(latents.moments), BATCH))
        pairs = zip(latents.objects[rows].tolist(), latents.looks[rows].tolist(), strict=True)
        chosen = torch.tensor([rng.choice(last + 1, p=self.odds[pair]) for pair in pairs])
        # Half of the time the pooled text says nothing, so that the tokens alone must suffice.
        pooled_rows = torch.where(torch.rand(BATCH) < 0.5, chosen, last)
        mean, deviation = (self.scale * latents.moments[rows]).chunk(2, 1)
        clean = mean + deviation * torch.randn_like(mean)
        return Batch(clean, self.context[chosen], self.pooled[pooled_rows])


@torch.no_grad()
def _encoded(encode: Encode, captions: tuple[Caption, ...]) -> tuple[Tensor, Tensor]:
    """Context [N, 77, C] and pooled [N, P] of all captions."""
    prompts = [caption.prompt for caption in captions]
    parts = [encode(prompts[start : start + 64]) for start in range(0, len(prompts), 64)]
    context, pooled = (torch.cat(column) for column in zip(*parts, strict=True))
    return context, pooled


def _odds(captions: tuple[Caption, ...]) -> dict[tuple[int, int], np.ndarray]:
    """For each (object, look) how often each caption goes with a picture of it, [captions].

    The last caption is the empty prompt. One that names both is taken six times as often as one
    that leaves either open.
    """
    table = {}
    for o, name in enumerate(OBJECTS):
        for k, look in enumerate(LOOKS):
            fits = np.array([name in c.objects and look in c.looks for c in captions[:-1]], float)
            exact = np.array([len(c.objects) == len(c.looks) == 1 for c in captions[:-1]])
            weights = fits * np.where(exact, 6.0, 1.0)
            table[o, k] = np.append(weights / weights.sum() * (1 - _UNCONDITIONAL), _UNCONDITIONAL)
    return table
