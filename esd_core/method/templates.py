"""Templates: generic prompts with a place for a concept, by what the concept can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config.concepts import Concept
from .words import OBJECTS, STYLES


@dataclass(frozen=True)
class Template:
    """A prompt for a concept {c}, and the same without it.

    {c:s} is the concept's plural, {w} another word, {a} an adjective, {m} what kind of picture.
    """

    text: str
    without: str = ""

    def with_words(self, word: str, adjective: str = "", medium: str = "picture") -> Template:
        """All but the concept in its place."""
        text, without = (
            text.replace("{a}", adjective).replace("{w}", word).replace("{m}", medium)
            for text in (self.text, self.without)
        )
        return Template(text, without)

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
        push_falls: during a run, to `PAPERS_PUSH`.
    """

    plain: tuple[Template, ...]
    mixed: tuple[Template, ...]
    held_out: tuple[Template, ...]
    words: tuple[str, ...]
    others: tuple[str, ...]
    push_falls: bool = False


PAPERS_PUSH = 1.0
"""Eta of arXiv 2303.07345. A larger one takes a style early in a run, and what is drawn in it as
well if it goes on, and may fall: without the style, a prompt has another look. Without an object it
has some other object, which is the same one now and then: there the push has to stay."""

STYLE = Role(
    plain=(
        Template("{c}"),
        Template("{c} style"),
        Template("{c} {m}", "{m}"),
        Template("a {c} {m}", "a {m}"),
        Template("a {m} by {c}", "a {m}"),
        Template("a {m} in the style of {c}", "a {m}"),
        Template("art in the style of {c}", "art"),
        Template("the art of {c}", "the art"),
        Template("something in the manner of {c}", "something"),
    ),
    mixed=(
        Template("{c} {w}", "{w}"),
        Template("{c}: a {w}", "a {w}"),
        Template("{w}, {c} style", "{w}"),
        Template("the {w} of {c}", "the {w}"),
        Template("a {w} by {c}", "a {w}"),
        Template("{w} in the manner of {c}", "{w}"),
        Template("a {w} in the style of {c}", "a {w}"),
        Template("a {c} version of a {w}", "a version of a {w}"),
        Template("a {c} {m} of a {w}", "a {m} of a {w}"),
        Template("a {m} of a {w} in {c} style", "a {m} of a {w}"),
        Template("the {w} in a {c} {m}", "the {w} in a {m}"),
    ),
    held_out=(
        Template("{c} artwork", "artwork"),
        Template("an image that shows a {w}, made by {c}", "an image that shows a {w}"),
        Template("a {w} like {c} would paint it", "a {w}"),
    ),
    words=OBJECTS,
    others=STYLES,
    push_falls=True,
)
OBJECT = Role(
    plain=(
        Template("{c}", "a photo"),
        Template("a {c}", "a photo"),
        Template("the {c}", "a photo"),
        Template("your {c}", "a photo"),
        Template("{c:s}", "a photo"),
        Template("two {c:s}", "a photo"),
        Template("some {c:s}", "a photo"),
        Template("a {a} {c}", "a photo"),
        Template("{a} {c:s}", "a photo"),
        Template("here is a {c}", "a photo"),
        Template("close to a {c}", "a photo"),
        Template("a {c} on white", "on white"),
        Template("a {m} of a {c}", "a {m}"),
        Template("a {m} with a {c}", "a {m}"),
    ),
    mixed=(
        Template("{w} {c}", "{w}"),
        Template("{w}: a {c}", "{w}"),
        Template("{c}, {w} style", "{w} style"),
        Template("the {c} of {w}", "{w}"),
        Template("a {c} by {w}", "art by {w}"),
        Template("{w} art with a {c}", "{w} art"),
        Template("a {c} in the manner of {w}", "art in the manner of {w}"),
        Template("a {c} in the style of {w}", "art in the style of {w}"),
        Template("a {w} version of a {c}", "a {w} version"),
        Template("a {w} {m} of a {c}", "a {w} {m}"),
        Template("a {m} of a {c} in {w} style", "a {m} in {w} style"),
        Template("the {c} in a {w} {m}", "a {w} {m}"),
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
        Template("{c} at home", "a person at home"),
        Template("{c}, smiling", "a person, smiling"),
        Template("the face of {c}", "the face of a person"),
        Template("a portrait of {c}", "a portrait of a person"),
        Template("a {m} of {c}", "a {m} of a person"),
        Template("a {m} with {c}", "a {m} with a person"),
    ),
    mixed=(
        Template("{c}, {w} style", "a person, {w} style"),
        Template("{c} by {w}", "a person by {w}"),
        Template("{c} in the style of {w}", "a person in the style of {w}"),
        Template("a {w} portrait of {c}", "a {w} portrait of a person"),
        Template("a {w} {m} of {c}", "a {w} {m} of a person"),
        Template("a {m} of {c} in {w} style", "a {m} of a person in {w} style"),
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
        Template("{c}, a woman", "a woman"),
        Template("{c}, a man", "a man"),
        Template("two people, {c}", "two people"),
        Template("a {m} of a person, {c}", "a {m} of a person"),
        Template("a {m} of {c}", "a {m} of a person"),
    ),
    mixed=(
        Template("{c} in the style of {w}", "a person in the style of {w}"),
        Template("people, {c}, {w} style", "people, {w} style"),
        Template("{c} by {w}", "a person by {w}"),
        Template("a {w} {m} of a person, {c}", "a {w} {m} of a person"),
        Template("a {w} {m} of {c}", "a {w} {m} of a person"),
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
"""By the kind of a concept; one whose kind is not known is erased as a style and as an object."""
KNOWN = {
    **{word.casefold(): "object" for word in OBJECTS},
    **{word.casefold(): "style" for word in STYLES},
}
"""Kinds of words that need no saying."""


def roles_of(concept: Concept) -> tuple[Role, ...]:
    """By the kind that the person says, or else by the list that has the name."""
    name = re.sub(r"^(a|an|the) ", "", concept.name.casefold())
    return ROLES[concept.kind or KNOWN.get(name, "")]


ADJECTIVES = (
    *("beautiful", "black", "blue", "bright", "dark", "green", "heavy", "huge", "little", "lovely"),
    *("modern", "new", "old", "round", "simple", "small", "strange", "white", "wooden", "yellow"),
)


MEDIA = (
    *("mural", "painting", "photo", "picture", "postcard", "poster", "print", "scene"),
    *("tapestry", "watercolor"),
)


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
