"""What a run learns, term by term: the one place that knows what a line of the config asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from ..config.concepts import Concept
from ..config.settings import ErasureConfig


@dataclass(frozen=True)
class Term:
    """Conditioned on `student`, predict `anchor`, pushed `push` times away from `concept`.

        target = d*(anchor) - push * [d*(concept) - d*(base)]

    of the teacher's predictions d* at one (x, sigma): equation 7 of Gandikota et al. (arXiv
    2303.07345) for a concept alone. Its coefficients sum to 1, so the formula is the same for
    predictions in eps, v and flow form. Without a concept, a term preserves.

    Attributes:
        base: what `concept` is compared with.
        weight: of the term's samples in the loss.
    """

    student: str
    anchor: str
    concept: str | None = None
    base: str = ""
    push: float = 0.0
    weight: float = 1.0

    def prompts(self) -> tuple[str, ...]:
        """All whose predictions the target or the student needs, each once."""
        named = (self.student, self.anchor)
        return tuple(
            dict.fromkeys(named if self.concept is None else (self.concept, *named, self.base))
        )

    def rollout(self) -> tuple[str, ...]:
        """The prompts predicted along the term's trajectory: the student's, which it follows, the
        empty one, which guides it, and then any others."""
        return tuple(dict.fromkeys((self.student, "", *self.prompts())))

    def target(self, predicted: Mapping[str, Tensor]) -> Tensor:
        """What the student should predict, given the teacher's predictions by prompt."""
        anchor = predicted[self.anchor]
        if self.concept is None:
            return anchor
        return anchor - self.push * (predicted[self.concept] - predicted[self.base])

    def __str__(self) -> str:
        """The line of a config that asks for this, or the prompt that is preserved."""
        if self.concept is None:
            return self.student
        if self.anchor == self.student:
            return str(Concept(self.concept, erase_from=self.student))
        return str(Concept(self.concept, anchor="" if self.anchor == self.base else self.anchor))


def terms(config: ErasureConfig) -> tuple[Term, ...]:
    """What `config` asks: what erases, then what preserves."""
    return (*erasing(config), *preserving(config))


def erasing(config: ErasureConfig) -> tuple[Term, ...]:
    """A term for every concept, by its bare prompt."""
    return tuple(_erasing(concept, config.negative_guidance) for concept in config.concepts)


def preserving(config: ErasureConfig) -> tuple[Term, ...]:
    """A term for every prompt to preserve, the empty one first."""
    return tuple(Term(p, p, weight=config.preserve_weight) for p in config.preserved)


def _erasing(concept: Concept, eta: float) -> Term:
    """0 is the published run for each form of line.

    The official scripts of 2025 start from d*(erase_from), which holds the concept: one more push
    away from it gives what `c` asks where that is the concept itself.
    """
    if concept.erase_from:
        return Term(concept.erase_from, concept.erase_from, concept.name, push=eta + 1)
    return Term(concept.name, concept.anchor, concept.name, push=eta)


@dataclass(frozen=True)
class RoundTerms:
    """What one round of trajectories is for.

    Attributes:
        followed: a trajectory each, by the terms that lead it in turn, for as many steps each;
            those that erase come first.
        beside: what preserves at the states of trajectories that erase, one a state: there it costs
            one evaluation and no trajectory, so every state can have a prompt of its own.
    """

    followed: tuple[tuple[Term, ...], ...]
    beside: tuple[Term, ...] = ()

    @property
    def erasing(self) -> int:
        """How many trajectories erase."""
        return sum(turns[0].concept is not None for turns in self.followed)

    def parts(self, steps: int) -> list[tuple[range, tuple[Term, ...]]]:
        """By part of the trajectories, its steps, of so many, and the terms that lead there."""
        count = min(steps, max(map(len, self.followed)))
        cuts = [steps * part // count for part in range(count + 1)]
        return [
            (range(*here), tuple(turns[len(turns) * part // count] for turns in self.followed))
            for part, here in enumerate(pairwise(cuts))
        ]


class TermSource(Protocol):
    """The terms of a run, round by round."""

    terms: tuple[Term, ...]
    """All that can come up."""
    preserves_anchors: bool
    """Whether anchors and bases, which are predicted along the way, are preserved too."""
    preserving: int
    """Samples that preserve for every one that erases."""

    def of_round(self, index: int) -> RoundTerms: ...


class LineTerms:
    """Every line by its bare name, and every prompt to preserve, each in turn."""

    preserves_anchors = False
    preserving = 1

    def __init__(self, config: ErasureConfig) -> None:
        self.terms = terms(config)
        self._count = config.trajectory.count

    def of_round(self, index: int) -> RoundTerms:
        turns = range(index * self._count, (index + 1) * self._count)
        erasing = [term for term in self.terms if term.concept is not None]
        preserving = [term for term in self.terms if term.concept is None]
        followed = [erasing[i % len(erasing)] for i in turns]
        if preserving:
            # The empty prompt has its turn like the others, but needs no trajectory of its own.
            in_turn = [preserving[i % len(preserving)] for i in turns]
            followed += [term for term in in_turn if term.student]
        return RoundTerms(tuple((term,) for term in followed))


def prompts_of(terms: Iterable[Term]) -> tuple[str, ...]:
    """All prompts of these terms, each once, the empty one first."""
    return tuple(dict.fromkeys(["", *(prompt for term in terms for prompt in term.prompts())]))
