"""Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761), from the paper.

Keys and values of cross-attention are replaced in closed form, without training: the text states c
of what is erased give what others gave, v*, and those of what is preserved give what they gave. As
in the authors' code (rohitgandikota/unified-concept-editing, trainscripts/uce_sd_erase.py at
4502388) a prompt counts by the state of its last word, an artist is led to "art", an object to the
empty prompt, whose last state is that of its first token, and nothing is preserved unless named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esd_core.files.erasure import Erasure, key_of
from esd_core.files.metadata import Key
from esd_core.method.words import OBJECTS, STYLES
from esd_core.models.headless import Headless
from esd_core.pocket.judge import KINDS
from esd_core.pocket.world import SIZE
from esd_core.training.selection import select

EXPANDED = {
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
}
"""The authors' own, for prompts beside the bare name."""
GUIDES = {"style": "art", "object": ""}
_ENCODED = 64


@dataclass(frozen=True)
class Setting:
    """The defaults are the published ones.

    Attributes:
        lamb: what keeps weights near what they were.
        erase_scale: weight of what is erased, where a prompt that is preserved counts 1.
        expand: EXPANDED prompts too.
        all_states: of every state from the last word to the end, not of that one alone.
        preserve: all generic words that our own contexts draw from, by their names alone.
    """

    lamb: float = 0.5
    erase_scale: float = 1.0
    expand: bool = False
    all_states: bool = False
    preserve: bool = False


def make(denoiser: Headless, concept: str, given: dict[str, Any]) -> tuple[Erasure, int]:
    """The edit, and how often the network was evaluated for it: never."""
    setting = Setting(**{name: value for name, value in given.items() if name != "seed"})
    templates = ("{}", *(EXPANDED[KINDS[concept]] if setting.expand else ()))
    erased = [template.format(concept) for template in templates]
    inputs, guides = _pairs(denoiser, erased, GUIDES[KINDS[concept]], setting.all_states)
    words = _words(concept) if setting.preserve else []
    kept = _gram(denoiser, words, setting.all_states)
    weights = {
        name: denoiser.parameters()[name]
        for name in select("esd-x-strict", denoiser.parameters(), denoiser.architecture)
    }
    tensors = {}
    for name, old in weights.items():
        scale, weight = setting.erase_scale**0.5, old.double()
        new = closed_form(weight, scale * inputs, scale * guides @ weight.T, kept, setting.lamb)
        tensors[key_of(name)] = (new - weight).float()
    metadata = {
        Key.CONCEPTS: json.dumps([concept]),
        Key.ARCHITECTURE: denoiser.architecture.name,
    }
    return Erasure(tensors, metadata), 0


def closed_form(old: Tensor, inputs: Tensor, outputs: Tensor, kept: Tensor, lamb: float) -> Tensor:
    """The W that is least in |W c - v|^2 over the erased, |(W - old) c|^2 over the kept, and
    lamb |W - old|^2, all summed: equation 7 of the paper,

        W = (sum v c' + lamb old) (sum c c' + lamb I)^-1

    where both sums go over the kept as well, whose v is old c.

    Args:
        old: [out, in].
        inputs, outputs: c and v of the erased, [N, in] and [N, out].
        kept: the sum of c c' over the kept, [in, in].
    """
    held = kept + lamb * torch.eye(old.shape[1], dtype=old.dtype)
    left = outputs.T @ inputs + old @ held
    return torch.linalg.solve(inputs.T @ inputs + held, left, left=False)


def _pairs(
    denoiser: Headless, prompts: Sequence[str], guide: str, all_states: bool
) -> tuple[Tensor, Tensor]:
    """States of the prompts and, row by row, of the guide: [N, width] each.

    Both are counted from their last word on; the guide's last state stands for any beyond it.
    """
    wanted = _states(denoiser, [guide], all_states)[0]
    own = _states(denoiser, prompts, all_states)
    rows = [torch.arange(len(states)).clamp(max=len(wanted) - 1) for states in own]
    return torch.cat(own), wanted[torch.cat(rows)]


def _gram(denoiser: Headless, prompts: Sequence[str], all_states: bool) -> Tensor:
    """The sum of c c' over the states of the prompts."""
    width = denoiser.encode([""], SIZE, SIZE).context.shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(prompts), _ENCODED):
        states = torch.cat(_states(denoiser, prompts[start : start + _ENCODED], all_states))
        total += states.T @ states
    return total


def _states(denoiser: Headless, prompts: Sequence[str], all_states: bool) -> list[Tensor]:
    """Of every prompt the state of its last word, or all from there on: float64 [n, width]."""
    context = denoiser.encode(prompts, SIZE, SIZE).context.double()
    lasts = [len(ids) - 2 for ids in denoiser.pipeline.tokenizer(list(prompts)).input_ids]
    return [
        states[last : None if all_states else last + 1]
        for states, last in zip(context, lasts, strict=True)
    ]


def _words(concept: str) -> list[str]:
    own = concept.casefold()
    return [word for word in (*STYLES, *OBJECTS) if own not in word.casefold()]
