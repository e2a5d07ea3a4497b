"""Prompts through CLIP, each once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import comfy.sd
import torch
from torch import Tensor

from ...esd_core.errors import ESDError


def refuse_none(clip: comfy.sd.CLIP | None) -> None:
    """ESDError for what a checkpoint without text encoders gives in place of a CLIP."""
    if clip is None:
        raise ESDError(
            "the input clip is empty, as of a checkpoint without text encoders: load them with "
            "CLIPLoader or DualCLIPLoader"
        )


class Texts:
    """Encodes with a CLIP and remembers.

    Encoding may move models in and out of the device: what a training needs is encoded before the
    MODEL is borrowed.
    """

    def __init__(self, clip: comfy.sd.CLIP) -> None:
        refuse_none(clip)
        self._clip = clip
        self._known: dict[str, tuple[Tensor, Tensor | None]] = {}

    def learn(self, prompts: Iterable[str]) -> None:
        """Encodes those that are not known yet."""
        for prompt in prompts:
            if prompt not in self._known:
                with torch.inference_mode():
                    tokens = self._clip.tokenize(prompt)
                    states, pooled = self._clip.encode_from_tokens(tokens, return_pooled=True)
                with torch.inference_mode(False):  # a clone can be part of a graph
                    own = None if pooled is None else pooled.clone()
                    self._known[prompt] = states.clone(), own

    def rows(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token states [B, L, C] and pooled text [B, P], where this CLIP pools.

        Prompts of several chunks have more tokens. Shorter ones are repeated up to a common
        length, as the host does: attention to tokens that all come n times is the same.
        """
        self.learn(prompts)
        states, pooled = zip(*(self._known[prompt] for prompt in prompts), strict=True)
        length = math.lcm(*(one.shape[1] for one in states))
        together = torch.cat([one.repeat(1, length // one.shape[1], 1) for one in states])
        return together, None if pooled[0] is None else torch.cat(pooled)
