"""The prompts that name pocket's world.

A prompt comes from a template; the templates in HELD_OUT_* are never trained on, so that evaluation
measures what a prompt means and not a string that was learnt by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

from .world import LOOKS, OBJECTS, PLAIN, STYLES

STYLED = (
    "a {object} in the style of {style}",
    "a {style} painting of a {object}",
    "{object}, {style} style",
    "{style} {object}",
    "a {object} painted like {style}",
    "a picture of a {object} in {style} style",
    "an artwork of a {object}, {style}",
    "{style} style, a {object}",
)
UNSTYLED = (
    "a {object}",
    "{object}",
    "a photo of a {object}",
    "a picture of a {object}",
    "a plain {object}",
    "the {object}",
)
STYLE_ONLY = (
    "{style}", "{style} style", "a {style} painting", "a painting in the style of {style}",
    "art in the style of {style}",
)  # fmt: skip
ANY_STYLE = ("painting", "a painting", "artwork", "a painting of something")
ANY_OBJECT = ("a photo", "photo", "a plain picture")
HELD_OUT_STYLED = (
    "a drawing of a {object} in the style of {style}", "{style} artwork showing a {object}",
    "a lovely {object}, painted in {style} style",
)  # fmt: skip
HELD_OUT_UNSTYLED = ("an image of a {object}", "a photograph of a {object}", "one {object}")


@dataclass(frozen=True)
class Caption:
    """A prompt and what a picture of it may show: every object and look that fits it."""

    prompt: str
    objects: tuple[str, ...]
    looks: tuple[str, ...]


def all_captions() -> tuple[Caption, ...]:
    """Every caption that pocket is trained on; the last is the empty prompt, which fits all."""
    of_all = [Caption(prompt, OBJECTS, STYLES) for prompt in ANY_STYLE]
    of_all += [Caption(prompt, OBJECTS, (PLAIN,)) for prompt in ANY_OBJECT]
    for style in STYLES:
        of_all += [Caption(t.format(style=style), OBJECTS, (style,)) for t in STYLE_ONLY]
        of_all += [
            Caption(t.format(object=name, style=style), (name,), (style,))
            for t in STYLED
            for name in OBJECTS
        ]
    of_all += [
        Caption(t.format(object=name), (name,), (PLAIN,)) for t in UNSTYLED for name in OBJECTS
    ]
    return (*of_all, Caption("", OBJECTS, LOOKS))


def held_out_prompt(name: str, look: str, index: int) -> str:
    """The index-th (modulo their number) held-out prompt for an object in a look."""
    if look == PLAIN:
        return HELD_OUT_UNSTYLED[index % len(HELD_OUT_UNSTYLED)].format(object=name)
    return HELD_OUT_STYLED[index % len(HELD_OUT_STYLED)].format(object=name, style=look)
