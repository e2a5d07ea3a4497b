"""Contexts: prompts in which a concept is erased, and prompts beside them that must stay.

A student that sees one prompt learns that prompt. So the concept is put into generic templates with
generic other words, and what it should give there is the same prompt without the concept, so that
all else in it stays. As many samples come from the same templates with other words in the concept's
place, which are preserved: what is not shown to stay, goes.

Words and templates are the same for every model and every concept.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config.concepts import Concept
from ..config.settings import AUTO, ErasureConfig
from .terms import LineTerms, RoundTerms, Term, TermSource, terms
from .words import OBJECTS, STYLES


@dataclass(frozen=True)
class Template:
    """A prompt for a concept {c}, and the same without it.

    {c:s} is the concept's plural, {w} another word, {a} an adjective.
    """

    text: str
    without: str = ""

    def with_words(self, word: str, adjective: str = "") -> Template:
        """All but the concept in its place."""
        text = self.text.replace("{a}", adjective).replace("{w}", word)
        return Template(text, self.without.replace("{w}", word))

    def prompt(self, concept: str) -> str:
        text = self.text.replace("{c:s}", plural(concept)).replace("{c}", concept)
        return _with_articles(text)

    def anchor(self) -> str:
        """The same without the concept."""
        return _with_articles(self.without)


def plural(noun: str) -> str:
    """Of an English noun by the rule; irregular ones are taken as if they were not."""
    if re.search(r"(s|x|z|ch|sh)$", noun, re.IGNORECASE):
        return f"{noun}es"
    if re.search(r"[^aeiou]y$", noun, re.IGNORECASE):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def _with_articles(text: str) -> str:
    """ "a apple" becomes "an apple"."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


@dataclass(frozen=True)
class Role:
    """What a concept can be in a prompt.

    Attributes:
        plain: templates of the concept alone. mixed: with a word of `words` beside it.
        held_out: of both sorts, for probes.
        others: what may stand in the concept's place.
    """

    plain: tuple[Template, ...]
    mixed: tuple[Template, ...]
    held_out: tuple[Template, ...]
    words: tuple[str, ...]
    others: tuple[str, ...]


STYLE = Role(
    plain=(
        Template("{c}"),
        Template("{c} style"),
        Template("a painting in the style of {c}", "a painting"),
        Template("a {c} painting", "a painting"),
        Template("art in the style of {c}", "art"),
    ),
    mixed=(
        Template("a {w} in the style of {c}", "a {w}"),
        Template("a {c} painting of a {w}", "a painting of a {w}"),
        Template("{w}, {c} style", "{w}"),
        Template("{c} {w}", "{w}"),
        Template("a picture of a {w} in {c} style", "a picture of a {w}"),
    ),
    held_out=(
        Template("{c} artwork", "artwork"),
        Template("an image of a {w} by {c}", "an image of a {w}"),
        Template("a {w} like {c} would paint it", "a {w}"),
    ),
    words=OBJECTS,
    others=STYLES,
)
OBJECT = Role(
    plain=(
        Template("{c}", "a photo"),
        Template("a {c}", "a photo"),
        Template("the {c}", "a photo"),
        Template("a photo of a {c}", "a photo"),
        Template("a picture of a {c}", "a picture"),
        Template("{c:s}", "a photo"),
        Template("a {a} {c}", "a photo"),
        Template("{a} {c:s}", "a photo"),
    ),
    mixed=(
        Template("a {c} in the style of {w}", "art in the style of {w}"),
        Template("a {w} painting of a {c}", "a {w} painting"),
        Template("{c}, {w} style", "{w} style"),
        Template("{w} {c}", "{w}"),
        Template("a picture of a {c} in {w} style", "a picture in {w} style"),
    ),
    held_out=(
        Template("a snapshot of a {c}", "a snapshot"),
        Template("a {w} image of a {c}", "a {w} image"),
        Template("{c} drawn by {w}", "drawn by {w}"),
    ),
    words=STYLES,
    others=OBJECTS,
)
PERSON = Role(
    plain=(
        Template("{c}", "a person"),
        Template("a photo of {c}", "a photo of a person"),
        Template("a portrait of {c}", "a portrait of a person"),
        Template("the face of {c}", "the face of a person"),
    ),
    mixed=(
        Template("{c} in the style of {w}", "a person in the style of {w}"),
        Template("a {w} painting of {c}", "a {w} painting of a person"),
        Template("{c}, {w} style", "a person, {w} style"),
        Template("a {w} portrait of {c}", "a {w} portrait of a person"),
    ),
    held_out=(
        Template("a snapshot of {c}", "a snapshot of a person"),
        Template("{c} drawn by {w}", "a person drawn by {w}"),
    ),
    words=STYLES,
    others=OBJECTS,
)
ACT = Role(
    plain=(
        Template("{c}", "a person"),
        Template("a person, {c}", "a person"),
        Template("a photo of a person, {c}", "a photo of a person"),
        Template("{c}, a woman", "a woman"),
        Template("{c}, a man", "a man"),
    ),
    mixed=(
        Template("{c} in the style of {w}", "a person in the style of {w}"),
        Template("a {w} painting of a person, {c}", "a {w} painting of a person"),
        Template("people, {c}, {w} style", "people, {w} style"),
    ),
    held_out=(
        Template("a snapshot of {c}", "a snapshot of a person"),
        Template("people drawn by {w}, {c}", "people drawn by {w}"),
    ),
    words=STYLES,
    others=OBJECTS,
)
ROLES = {
    "style": (STYLE,),
    "object": (OBJECT,),
    "person": (PERSON,),
    "act": (ACT,),
    "": (STYLE, OBJECT),
}
"""By the kind of a concept; one whose kind is not said is erased as a style and as an object."""

ADJECTIVES = (
    *("beautiful", "black", "blue", "bright", "dark", "green", "heavy", "huge", "little", "lovely"),
    *("modern", "new", "old", "round", "simple", "small", "strange", "white", "wooden", "yellow"),
)
MIXED = 0.6
"""Share of contexts that have another word beside the concept."""
MOST = 1024
"""Preserved prompts of a run: each is encoded, and SDXL's text states take 0.6 MB a prompt."""
_TRIES = 100
FOLLOWED = 0.25
"""Preserving trajectories for every one that erases."""


def erasing_in(template: Template, concept: Concept, eta: float) -> Term:
    """A line in a context: the context without the concept is its own anchor and base."""
    if concept.erase_from:
        wider = template.prompt(concept.erase_from)
        return Term(wider, wider, concept.name, push=eta + 1)
    name = template.prompt(concept.name)
    anchor = template.prompt(concept.anchor) if concept.anchor else template.anchor()
    return Term(name, anchor, name, anchor, eta)


def own_role(templates: Sequence[str]) -> Role:
    """Of a person's own templates, with {} for the concept."""
    plain = tuple(Template(text.replace("{}", "{c}"), _without(text)) for text in templates)
    return Role(plain, (), (), ("",), OBJECTS + STYLES)


def _without(text: str) -> str:
    """What is left of a prompt without its {}, and without the small words that led to it."""
    before, _, after = text.partition("{}")
    words = before.split()
    while words and words[-1].lower().strip(",") in _LEADING:
        words.pop()
    return " ".join([*words, *after.split()]).strip(" ,")


_LEADING = ("a", "an", "the", "by", "of", "in", "style", "with", "and", "like", "as")


def without_names(role: Role, concepts: Sequence[Concept]) -> Role:
    """The role for who erases "photo": no template that says so, no anchor that holds it."""
    names = "|".join(re.escape(concept.name) for concept in concepts)
    named = re.compile(rf"\b({names})s?\b", re.IGNORECASE)

    def clean(templates: tuple[Template, ...]) -> tuple[Template, ...]:
        kept = [t for t in templates if not named.search(t.text)]
        return tuple(Template(t.text, "" if named.search(t.without) else t.without) for t in kept)

    return replace(
        role,
        plain=clean(role.plain) or (Template("{c}"),),
        mixed=clean(role.mixed),
        held_out=clean(role.held_out),
    )


class Draw(random.Random):
    """Of words that do not hold what is being erased: who erases boats erases sailboats."""

    def __init__(self, config: ErasureConfig, seed: int = 0) -> None:
        super().__init__(seed)
        self._erased = {concept.name.casefold() for concept in config.concepts}

    def word(self, words: Sequence[str]) -> str:
        for _ in range(_TRIES):  # a name of one letter is in most words
            word = self.choice(words)
            if not any(name in word.casefold() for name in self._erased):
                break
        return word


class ContextTerms:
    """The terms of every round of a run, drawn from its seed."""

    preserves_anchors = True

    def __init__(self, config: ErasureConfig, rounds: int) -> None:
        self._config, self._draw = config, Draw(config, config.seed)
        own = [text for text in config.contexts if text != AUTO]
        self._own = own_role(own) if own else None
        self._has_auto = AUTO in config.contexts
        self._rounds = [self._round(index) for index in range(rounds)]
        drawn = [term for r in self._rounds for term in (*r.followed, *r.beside)]
        # Those of the bare lines first, so that more rounds only add to the end.
        self.terms = tuple(dict.fromkeys([*terms(config), *drawn]))

    def of_round(self, index: int) -> RoundTerms:
        return self._rounds[index % len(self._rounds)]

    def _round(self, index: int) -> RoundTerms:
        trajectory, concepts = self._config.trajectory, self._config.concepts
        turns = range(index * trajectory.count, (index + 1) * trajectory.count)
        erasing = []
        for turn in turns:
            concept = concepts[turn % len(concepts)]
            roles = self._roles(concept)
            template = self._template(roles[turn // len(concepts) % len(roles)])
            erasing.append(erasing_in(template, concept, self._config.negative_guidance))
        followed = self._preserving(round(FOLLOWED * trajectory.count))
        beside = self._preserving(trajectory.count * trajectory.steps)
        return RoundTerms((*erasing, *followed), beside)

    def _roles(self, concept: Concept) -> tuple[Role, ...]:
        auto = ROLES[concept.kind] if self._has_auto else ()
        roles = (*auto, self._own) if self._own else auto
        return tuple(without_names(role, self._config.concepts) for role in roles)

    def _template(self, role: Role) -> Template:
        """One of the role's, with words beside the concept."""
        draw = self._draw
        is_mixed = bool(role.mixed) and draw.random() < MIXED
        template = draw.choice(role.mixed if is_mixed else role.plain)
        return template.with_words(draw.word(role.words), draw.choice(ADJECTIVES))

    def _preserving(self, count: int) -> tuple[Term, ...]:
        """Of the roles in turn, and now and then what a person asks to preserve."""
        named, weight = self._config.preserve, self._config.preserve_weight
        if not weight:
            return ()
        roles = list(dict.fromkeys(r for c in self._config.concepts for r in self._roles(c)))
        prompts = []
        for place in range(count):
            role = roles[place % len(roles)]
            prompts.append(self._template(role).prompt(self._draw.word(role.others)))
            if named and place % 2:
                prompts[-1] = named[place // 2 % len(named)]
        return tuple(Term(prompt, prompt, weight=weight) for prompt in prompts)


def probed(config: ErasureConfig) -> dict[str, tuple[Term, ...]]:
    """By line, what tells how much of its concept is left: its bare prompt, and the concept in
    contexts that no run sees, the same ones in every run."""
    found, eta, draw = {}, config.negative_guidance, Draw(config)
    for concept, bare in zip(config.concepts, terms(config), strict=False):
        held_out = [
            erasing_in(template.with_words(draw.word(role.words)), concept, eta)
            for role in ROLES[concept.kind]
            for template in without_names(role, config.concepts).held_out
        ]
        found[str(concept)] = (bare, *held_out)
    return found


def term_source(config: ErasureConfig) -> TermSource:
    """What a run learns, round by round."""
    return ContextTerms(config, _rounds(config)) if config.contexts else LineTerms(config)


def _rounds(config: ErasureConfig) -> int:
    """As many as the steps of a run use up, within MOST prompts."""
    trajectory, training = config.trajectory, config.training
    samples = trajectory.count * trajectory.steps
    share = training.batch_size - (training.batch_size // 2 if config.preserves else 0)
    used = -(-training.steps // (samples // min(share, samples) * trajectory.reuse))
    return min(used, max(1, MOST // samples))
