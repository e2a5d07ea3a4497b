"""What pocket shows before and after an erasure, as its oracle reads it.

Every object is asked for in every look, by prompts and seeds that no training has seen, the same
ones before and after.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..errors import FileError
from ..files.apply import applied
from ..files.erasure import Erasure
from ..images.render import OnProgress, render
from ..models.embedded import WEIGHTS
from ..models.headless import Headless
from . import FIRST_SEED, GUIDANCE
from .captions import held_out_prompt
from .models import Oracle
from .world import LOOKS, OBJECTS, PLAIN, SIZE, STYLES

ORACLE = WEIGHTS / "oracle.safetensors"

KINDS = {**dict.fromkeys((*STYLES, PLAIN), "style"), **dict.fromkeys(OBJECTS, "object")}
"""Every name that is judged, with its kind."""

MEANS = {
    "UA": "of pictures without what was erased",
    "IRA": "of others of its kind kept",
    "CRA": "of the other kind kept",
}
Pair = tuple[str, str]
"""An object and a look."""
PromptOf = Callable[[str, str, int], str]
"""From an object, a look and a number to a prompt for them."""


@dataclass(frozen=True)
class Case:
    """A picture to ask for."""

    asked: Pair
    prompt: str
    seed: int


@dataclass(frozen=True)
class Reading:
    """What was asked for, and what the oracle saw."""

    asked: Pair
    seen: Pair


@dataclass(frozen=True)
class Judgement:
    """The readings of the same cases before and after, and the names that were erased."""

    before: tuple[Reading, ...]
    after: tuple[Reading, ...]
    erased: frozenset[str]

    def as_dict(self) -> dict[str, Any]:
        """For each concept, the share of the pictures asked to show it that do, and their means.

        UA, IRA and CRA are those of UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846): the share
        of pictures in which what was erased is gone, and how much is left of others of its kind and
        of the other kind, in prompts that do not name it. None where there are none.

        {"concepts": {NAME: {"kind", "erased", "pictures", "before", "after"}}, "worst_drop": share,
        "UA": share, "IRA": share, "CRA": share}
        """
        concepts = {name: self._concept(name) for name in KINDS}
        drops = [c["before"] - c["after"] for c in concepts.values() if not c["erased"]]
        kinds = {KINDS[name] for name in self.erased}
        kept = self.kept() if self.erased else {}
        return {
            "concepts": concepts,
            "worst_drop": max([0.0, *drops]),
            "UA": _mean(1 - c["after"] for c in concepts.values() if c["erased"]),
            "IRA": _mean(share for name, share in kept.items() if KINDS[name] in kinds),
            "CRA": _mean(share for name, share in kept.items() if KINDS[name] not in kinds),
        }

    def kept(self) -> dict[str, float]:
        """What is left of every other name, as a share of what it was, in prompts that name
        nothing that was erased."""
        before, after = (
            [reading for reading in readings if not self.erased & {*reading.asked}]
            for readings in (self.before, self.after)
        )
        others = [name for name in KINDS if name not in self.erased]
        was = {name: shown(before, name).get(name, 0.0) for name in others}
        return {name: shown(after, name).get(name, 0.0) / was[name] for name in others if was[name]}

    def _concept(self, name: str) -> dict[str, Any]:
        return {
            "kind": KINDS[name],
            "erased": name in self.erased,
            "pictures": sum(name in reading.asked for reading in self.after),
            "before": shown(self.before, name).get(name, 0.0),
            "after": shown(self.after, name).get(name, 0.0),
        }


def _mean(shares: Iterable[float]) -> float | None:
    found = list(shares)
    return mean(found) if found else None


def judge(
    denoiser: Headless,
    erasures: Sequence[tuple[Erasure, float]],
    per_pair: int = 16,
    steps: int = 20,
    guidance: float = GUIDANCE,
    seed: int = FIRST_SEED,
    on_progress: OnProgress | None = None,
    before: tuple[Reading, ...] | None = None,
    prompt: PromptOf = held_out_prompt,
    batch: int = 32,
) -> Judgement:
    """Reads pocket's pictures before and after the erasures; without any, both are the same.

    Args:
        erasures: each with its strength.
        per_pair: pictures of every object in every look; a name has six times as many behind it.
        seed: the first of as many seeds as there are pictures.
        before: readings of the same cases from an earlier call, to save half of the pictures.
        prompt: how an object in a look is asked for.
        batch: how many pictures are sampled side by side.

    Raises:
        FileError: an erasure does not fit pocket, or pocket's weights are incomplete.
    """
    cases, oracle = make_cases(per_pair, seed, prompt), load_oracle()

    def readings() -> tuple[Reading, ...]:
        prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
        size = (SIZE, SIZE)
        pictures = render(
            denoiser, prompts, seeds, steps, guidance, *size, batch=batch, on_picture=on_progress
        )
        return read(oracle, cases, pictures)

    first = readings() if before is None else before
    if not erasures:
        return Judgement(first, first, frozenset())
    with applied(denoiser, erasures):
        after = readings()
    concepts = [concept for erasure, _ in erasures for concept in erasure.concepts]
    return Judgement(first, after, named(concepts))


def make_cases(
    per_pair: int, seed: int = FIRST_SEED, prompt: PromptOf = held_out_prompt
) -> list[Case]:
    """`per_pair` of every object in every look, each with a prompt and a seed of its own."""
    pairs = [(name, look, k) for name in OBJECTS for look in LOOKS for k in range(per_pair)]
    return [
        Case((name, look), prompt(name, look, k), seed + place)
        for place, (name, look, k) in enumerate(pairs)
    ]


def load_oracle(path: Path = ORACLE) -> Oracle:
    """The shipped oracle, in float32, ready to read."""
    if not path.is_file():
        raise FileError(f"{path} is missing: build pocket with python -m esd_core.pocket.build")
    oracle = Oracle()
    oracle.load_state_dict(load_file(path))
    return oracle.train(False)


def read(oracle: Oracle, cases: Sequence[Case], pictures: Tensor) -> tuple[Reading, ...]:
    """The oracle's readings of one picture a case, [N, 3, SIZE, SIZE] in 0..1."""
    seen: list[Pair] = []
    for part in pictures.split(64):
        seen += zip(*oracle.read(part), strict=True)
    return tuple(Reading(c.asked, pair) for c, pair in zip(cases, seen, strict=True))


def shown(readings: Sequence[Reading], name: str) -> dict[str, float]:
    """What the pictures show whose prompts name a concept: shares by name, the largest first.

    Names are of the concept's own kind: for an erased style they say what took its place. For
    "Van Gogh -> Mondrian", shown(after, "Van Gogh")["Mondrian"] is the anchor's share.
    """
    kind = ("object", "style").index(KINDS[name])
    seen = Counter(reading.seen[kind] for reading in readings if name in reading.asked)
    return {other: count / seen.total() for other, count in seen.most_common()}


def named(concepts: Sequence[str]) -> frozenset[str]:
    """The judged names that the concepts contain as words, in any case: "a VAN GOGH painting"."""
    text = "\n".join(concepts).lower()
    return frozenset(name for name in KINDS if re.search(rf"\b{name.lower()}s?\b", text))


def table(result: dict[str, Any]) -> str:
    """Judgement.as_dict for a terminal; changes are in percentage points."""
    lines = [f"{'':11} {'kind':6} {'before':>8} {'after':>8} {'change':>8}"]
    for name, row in result["concepts"].items():
        change = 100 * (row["after"] - row["before"])
        lines.append(
            f"{name:11} {row['kind']:6} {row['before']:8.1%} {row['after']:8.1%} {change:+8.1f}"
            + ("  erased" if row["erased"] else "")
        )
    lines.append(f"worst drop of what was not erased: {100 * result['worst_drop']:.1f} points")
    means = ", ".join(
        f"{key} {result[key]:.1%} {meaning}"
        for key, meaning in MEANS.items()
        if result[key] is not None
    )
    return "\n".join([*lines, means] if means else lines)
