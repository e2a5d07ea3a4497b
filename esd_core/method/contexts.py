"""Contexts: prompts in which a concept is erased, and prompts beside them that must stay.

A student that sees one prompt learns that prompt. So the concept is put into generic templates with
generic other words, and what it should give there is the same prompt without the concept, so that
all else in it stays. Twice as many samples come from the same templates with other words in the
concept's place, which are preserved: what is not shown to stay, goes. Several contexts lead each
trajectory, one after the other. A push away from a style that is more than the paper's falls to
that during a run.

Words and templates are the same for every model and every concept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from ..config.concepts import Concept
from ..config.settings import AUTO, ErasureConfig
from ..models.architectures import Architecture
from .samples import batches_of
from .templates import (
    ADJECTIVES,
    MEDIA,
    PAPERS_PUSH,
    ROLES,
    Role,
    Template,
    own_role,
    roles_of,
    without_names,
)
from .terms import LineTerms, RoundTerms, Term, TermSource, erasing, terms

T = TypeVar("T")

MIXED = (True, True, True, False, False)
"""Whether contexts have another word beside the concept, by turns."""
MOST, ROOM = 1024, 2**32
"""Preserved prompts of a run, a concept, and bytes of all its prompts' text states in float32: each
is encoded, and takes 0.6 MB for SDXL, 8 MB for Wan, 31 MB for FLUX.2, 69 MB for HiDream. A run that
meets the same ones often learns them by heart."""
PRESERVING = 2
"""Samples that preserve for every one that erases."""
_TRIES = 100
FOLLOWED = 0.25
"""Preserving trajectories for every one that erases."""
TURNS = 4
"""Contexts that lead a trajectory which erases: they cost no evaluation more than one would, and
what is learnt in many holds in those that a run never meets. Not one for every step: then what a
trajectory shows is no style, and of Seurat with a boat an eighth was left."""


def erasing_in(template: Template, concept: Concept, eta: float) -> Term:
    """A line in a context: the context without the concept is its own anchor and base."""
    if concept.erase_from:
        wider = template.prompt(concept.erase_from)
        return Term(wider, wider, concept.name, push=eta + 1)
    name = template.prompt(concept.name)
    anchor = template.prompt(concept.anchor) if concept.anchor else template.anchor()
    return Term(name, anchor, name, anchor, eta)


class Draw(random.Random):
    """Of words that do not hold what is being erased: who erases boats erases sailboats.

    Words and templates are dealt, not drawn anew: each comes once before any comes again, so that
    no run happens to hear of a word ten times and of its neighbour never.
    """

    def __init__(self, config: ErasureConfig, seed: int = 0) -> None:
        super().__init__(seed)
        self._erased = {concept.name.casefold() for concept in config.concepts}
        self._decks: dict[Sequence[Any], list[Any]] = {}

    def word(self, words: Sequence[str]) -> str:
        for _ in range(_TRIES):  # a name of one letter is in most words
            word = self.deal(words)
            if not any(name in word.casefold() for name in self._erased):
                break
        return word

    def deal(self, cards: Sequence[T]) -> T:
        deck = self._decks.setdefault(cards, [])
        if not deck:
            deck += self.sample(cards, len(cards))
        card: T = deck.pop()
        return card


@dataclass(frozen=True)
class _Drawn:
    """What a round was dealt: concepts in contexts, and what preserves."""

    erasing: tuple[tuple[Concept, tuple[Template, ...]], ...]
    preserving: tuple[Term, ...]
    beside: tuple[Term, ...]


class ContextTerms:
    """The terms of every round of a run, drawn from its seed.

    Where there are more rounds than different ones, they come again in turn.
    """

    preserves_anchors = True
    preserving = PRESERVING

    def __init__(self, config: ErasureConfig, rounds: int, different: int, turns: int) -> None:
        """
        Args:
            rounds: of the run. different: how many of them are.
            turns: contexts that lead a trajectory.
        """
        self._config, self._draw = config, Draw(config, config.seed)
        self._count, self._turns = rounds, turns
        own = [text for text in config.contexts if text != AUTO]
        self._own = (own_role(own),) if own else ()
        self._roles = {concept: self._roles_of(concept) for concept in config.concepts}
        erased = [role for roles in self._roles.values() for role in roles]
        both = [without_names(role, config.concepts) for role in ROLES[""]]
        # Styles and objects stay, whatever is erased; roles of equal templates are one.
        self._preserved = list(dict.fromkeys([*erased, *both]))
        self._drawn = [self._deal(index) for index in range(different)]
        dealt = [self.of_round(index) for index in range(different)]
        learnt = [term for one in dealt for term in (*chain(*one.followed), *one.beside)]
        # Those of the bare lines first, so that more rounds only add to the end.
        self.terms = tuple(dict.fromkeys([*terms(config), *learnt]))

    def of_round(self, index: int) -> RoundTerms:
        drawn = self._drawn[index % len(self._drawn)]
        done = min(1.0, index / max(1, self._count - 1))
        erasing = [
            tuple(self._pushed(template, concept, done) for template in templates)
            for concept, templates in drawn.erasing
        ]
        return RoundTerms((*erasing, *((term,) for term in drawn.preserving)), drawn.beside)

    def _pushed(self, template: Template, concept: Concept, done: float) -> Term:
        eta = self._config.negative_guidance
        # What may be an object, too, needs all of its push.
        if all(role.push_falls for role in self._roles[concept]):
            eta -= max(0.0, eta - PAPERS_PUSH) * done
        return erasing_in(template, concept, eta)

    def _deal(self, index: int) -> _Drawn:
        trajectory = self._config.trajectory
        places = range(index * trajectory.count, (index + 1) * trajectory.count)
        erasing = tuple(self._led(place) for place in places)
        followed = self._preserving(round(FOLLOWED * trajectory.count))
        beside = self._preserving(trajectory.count * trajectory.steps)
        return _Drawn(erasing, followed, beside)

    def _led(self, place: int) -> tuple[Concept, tuple[Template, ...]]:
        """A trajectory's concept, and the contexts that lead it, in its roles by turns."""
        concepts = self._config.concepts
        concept = concepts[place % len(concepts)]
        roles, first = self._roles[concept], place // len(concepts)
        of_turn = [roles[(first + turn) % len(roles)] for turn in range(self._turns)]
        return concept, tuple(self._template(role) for role in of_turn)

    def _roles_of(self, concept: Concept) -> tuple[Role, ...]:
        auto = roles_of(concept) if AUTO in self._config.contexts else ()
        return tuple(without_names(role, self._config.concepts) for role in (*auto, *self._own))

    def _template(self, role: Role) -> Template:
        """One of the role's, with words beside the concept."""
        draw = self._draw
        is_mixed = bool(role.mixed) and draw.deal(MIXED)
        template = draw.deal(role.mixed if is_mixed else role.plain)
        return template.with_words(draw.word(role.words), draw.deal(ADJECTIVES), draw.word(MEDIA))

    def _preserving(self, count: int) -> tuple[Term, ...]:
        """Of the roles in turn, and now and then what a person asks to preserve."""
        named, weight = self._config.preserve, self._config.preserve_weight
        if not weight:
            return ()
        prompts = []
        for place in range(count):
            role = self._preserved[place % len(self._preserved)]
            prompts.append(self._template(role).prompt(self._draw.word(role.others)))
            if named and place % 2:
                prompts[-1] = named[place // 2 % len(named)]
        return tuple(Term(prompt, prompt, weight=weight) for prompt in prompts)


def probed(config: ErasureConfig) -> dict[str, tuple[Term, ...]]:
    """By line, what tells how much of its concept is left: its bare prompt, and the concept in
    contexts that no run sees, the same ones in every run.

    Of a concept that another replaces, what is left is what tells it from that one: the empty
    prompt shares less with the two than they with each other.
    """
    found, eta, draw = {}, config.negative_guidance, Draw(config)
    for concept, bare in zip(config.concepts, erasing(config), strict=True):
        held_out = [
            erasing_in(template.with_words(draw.word(role.words)), concept, eta)
            for role in roles_of(concept)
            for template in without_names(role, config.concepts).held_out
        ]
        own = replace(bare, base=bare.anchor) if concept.anchor else bare
        found[str(concept)] = (own, *held_out)
    return found


def term_source(config: ErasureConfig, architecture: Architecture) -> TermSource:
    """What a run learns, round by round."""
    if not config.contexts:
        return LineTerms(config)
    trajectory = config.trajectory
    samples = trajectory.count * trajectory.steps
    used = -(-config.training.steps // batches_of(config, samples, PRESERVING))
    fitting = ROOM // (4 * architecture.text_numbers)
    context = 2 * trajectory.count  # with the concept and without it
    turns = min(TURNS, trajectory.steps)
    if samples + context * turns > fitting:
        turns = 1
    most = min(MOST * len(config.concepts) // samples, fitting // (samples + context * turns))
    return ContextTerms(config, used, min(used, max(1, most)), turns)
