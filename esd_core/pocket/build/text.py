"""The text towers' stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...models.embedded import WEIGHTS
from ..captions import Caption, all_captions, held_out_prompt
from ..models import TEXT_WIDTHS, build_text_towers
from ..world import LOOKS, OBJECTS
from .loop import Course, Loop

COURSE = Course(steps=900, learning_rate=2e-3, averaging=0.98)
_BATCH = 48

Tokenizers = tuple[CLIPTokenizer, CLIPTokenizer]

_THINGS = len(OBJECTS) + 1
"""Classes of objects; the last is "any"."""
_LOOKS = len(LOOKS) + 2
"""Classes of looks; the last two are "any style" and "any at all"."""


def tokenizers() -> Tokenizers:
    """SDXL's two, which are CLIP's as they are. They differ in their padding alone."""
    first, second = (
        CLIPTokenizer.from_pretrained(WEIGHTS / name) for name in ("tokenizer", "tokenizer_2")
    )
    return first, second


class Towers(nn.Module):
    """Both text towers, with the read-outs that teach them what a prompt names."""

    def __init__(self, pair: Tokenizers) -> None:
        super().__init__()
        self.pair = pair
        self.first, self.second = build_text_towers()
        widths = (*TEXT_WIDTHS, TEXT_WIDTHS[1])
        self.heads = nn.ModuleList(nn.Linear(width, _THINGS + _LOOKS) for width in widths)

    def forward(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77, C] and pooled [B, P], as SDXL takes them."""
        ids = [self._ids(tokenizer, prompts) for tokenizer in self.pair]
        first = self.first(ids[0], output_hidden_states=True)
        second = self.second(ids[1], output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return context, second.text_embeds

    def read(self, prompts: list[str]) -> list[Tensor]:
        """Logits of each read-out, [B, things + looks]: both contexts at the end mark, pooled."""
        context, pooled = self(prompts)
        ids = self._ids(self.pair[0], prompts)
        ends = (ids == self.pair[0].eos_token_id).int().argmax(1)
        at_end = context[torch.arange(len(context)), ends]
        parts = (*at_end.split(TEXT_WIDTHS, 1), pooled)
        return [head(part) for head, part in zip(self.heads, parts, strict=True)]

    @staticmethod
    def _ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
        return tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids


def train_text(work: Path, seed: int, pair: Tokenizers) -> Towers:
    """The towers learn to tell what a prompt names, whatever words stand around it."""
    torch.manual_seed(seed)
    towers, captions = Towers(pair), all_captions()
    meanings = torch.tensor([_meaning(caption) for caption in captions])
    # Words of the vocabulary; hardly any of them means anything in this world.
    fillers = [pair[0].decode([token]) for token in range(1000, 12000)]

    def loss_of(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(0, len(captions), _BATCH)
        prompts = [disturbed(captions[row].prompt, fillers, rng) for row in rows]
        things, looks = meanings[torch.from_numpy(rows)].T
        losses = [
            F.cross_entropy(logits[:, :_THINGS], things)
            + F.cross_entropy(logits[:, _THINGS:], looks)
            for logits in towers.read(prompts)
        ]
        return torch.stack(losses).sum()

    Loop(towers, work / "text.safetensors", COURSE).run(loss_of)
    _report(towers)
    return towers


def _meaning(caption: Caption) -> tuple[int, int]:
    """The classes of what a caption names."""
    thing = len(OBJECTS) if len(caption.objects) > 1 else OBJECTS.index(caption.objects[0])
    if len(caption.looks) == 1:
        return thing, LOOKS.index(caption.looks[0])
    return thing, len(LOOKS) + (caption.looks == LOOKS)


def disturbed(prompt: str, fillers: Sequence[str], rng: np.random.Generator) -> str:
    """Up to three words that mean nothing here, before or after; the empty prompt stays empty."""
    extra = [fillers[i] for i in rng.integers(0, len(fillers), int(rng.integers(0, 4)))]
    words = [prompt]
    for word in extra if prompt else []:
        words.insert(0 if rng.random() < 0.5 else len(words), word)
    return " ".join(words)


@torch.no_grad()
def _report(towers: Towers) -> None:
    cases = [(o, k) for o in range(len(OBJECTS)) for k in range(len(LOOKS)) for _ in range(3)]
    prompts = [held_out_prompt(OBJECTS[o], LOOKS[k], i) for i, (o, k) in enumerate(cases)]
    truth = torch.tensor(cases)
    for logits in towers.read(prompts):
        guess = torch.stack([logits[:, :_THINGS].argmax(1), logits[:, _THINGS:].argmax(1)], 1)
        print(f"text read-out on held-out prompts: {(guess == truth).all(1).float().mean():.2%}")
