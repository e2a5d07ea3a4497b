"""Prompts through CLIP, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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
        self._known: dict[str, dict[str, Any]] = {}

    def learn(self, prompts: Iterable[str], tell: Callable[[str], None] = lambda _: None) -> None:
        """Encodes those that are not known yet.

        tell: which one is next; what it raises ends the encoding, as a Cancel does.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        for place, prompt in enumerate(new, start=1):
            tell(f"{place} of {len(new)}")
            with torch.inference_mode():
                tokens = self._clip.tokenize(prompt)
                found = self._clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
            self._known[prompt] = {n: own(v) for n, v in found.items() if n != "hooks"}

    def condition(self, prompt: str) -> dict[str, Any]:
        """What the CLIP gives: `cond` is the token states, [1, L, C], `pooled_output` pooled text,
        [1, P], or None where it does not pool, and there may be more, by the host's names."""
        self.learn([prompt])
        return dict(self._known[prompt])


def own(value: Any) -> Any:
    """A tensor that can be part of a graph, of one of inference mode; anything else is itself."""
    with torch.inference_mode(False):
        return value.clone() if isinstance(value, Tensor) else value
