"""What to erase, as a person writes it: one concept a line.

    Van Gogh                the empty prompt takes the concept's place
    Van Gogh -> painting    the anchor "painting" takes its place
    cowboy hat <- cowboy    "cowboy" stays, and only loses its hat
    Van Gogh (style)        what kind of thing it is; without it, contexts serve every kind

Blank lines and lines that start with "#" say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError

REPLACE = "->"
ERASE_FROM = "<-"
COMMENT = "#"
KINDS = ("style", "object", "person", "act")
FORMS = {REPLACE: "CONCEPT -> ANCHOR", ERASE_FROM: "CONCEPT <- WIDER PROMPT"}


@dataclass(frozen=True)
class Concept:
    """A concept with either its anchor, or the wider prompt that it is erased from, or neither.

    kind: of KINDS, or "" where it is not said. Runs of white space are collapsed. `str` gives the
    line that `parse` reads back as this concept.
    """

    name: str
    anchor: str = ""
    erase_from: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        for part in ("name", "anchor", "erase_from"):
            text = " ".join(getattr(self, part).split())
            if REPLACE in text or ERASE_FROM in text:
                raise ConfigError(f'the {part} "{text}" holds an arrow: one at most in a concept')
            object.__setattr__(self, part, text)
        if not self.name:
            raise ConfigError("no concept given: name what to erase, for example Van Gogh")
        if self.name.startswith(COMMENT):
            raise ConfigError(f'"{self.name}" starts with "#", like a comment: reword the concept')
        if self.anchor and self.erase_from:
            raise ConfigError(
                f'"{self.name}" has an anchor and a prompt to be erased from: give only one of them'
            )

    def __str__(self) -> str:
        name = f"{self.name} ({self.kind})" if self.kind else self.name
        if self.anchor:
            return f"{name} {REPLACE} {self.anchor}"
        if self.erase_from:
            return f"{name} {ERASE_FROM} {self.erase_from}"
        return name


def parse(line: str) -> Concept:
    """The concept of one line; ConfigError when a part is empty or the arrows do not fit."""
    line = " ".join(line.split())
    arrows = [arrow for arrow in (REPLACE, ERASE_FROM) for _ in range(line.count(arrow))]
    if not arrows:
        return _concept(line)
    if len(arrows) > 1:
        which = "both arrows" if len(set(arrows)) > 1 else f'"{arrows[0]}" more than once'
        raise ConfigError(f'"{line}" has {which}: one arrow at most in a concept')
    name, other = (part.strip() for part in line.split(arrows[0]))
    if not name or not other:
        side, form = "after" if name else "before", FORMS[arrows[0]]
        raise ConfigError(f'"{line}" has nothing {side} its arrow: write {form}')
    return _concept(name, **{"anchor" if arrows[0] == REPLACE else "erase_from": other})


_KIND = re.compile(rf" ?\(({'|'.join(KINDS)})\)$")


def _concept(name: str, **other: str) -> Concept:
    """Of a name that may have its kind behind it."""
    kind = _KIND.search(name)
    return Concept(name[: kind.start()], kind=kind[1], **other) if kind else Concept(name, **other)


def parse_all(lines: str | Iterable[str]) -> tuple[Concept, ...]:
    """The concepts of several lines, or of one text with line breaks, in order.

    ConfigError when no line names one, or when two name the same: case does not tell them apart,
    since the text encoders lower it.
    """
    rows = lines.splitlines() if isinstance(lines, str) else lines
    concepts: dict[str, Concept] = {}
    for row in rows:
        if not row.strip() or row.lstrip().startswith(COMMENT):
            continue
        concept = parse(row)
        if concept.name.casefold() in concepts:
            raise ConfigError(f'the concept "{concept.name}" is given twice: keep one of its lines')
        concepts[concept.name.casefold()] = concept
    if not concepts:
        raise ConfigError("no concept given: name at least one to erase, for example Van Gogh")
    return tuple(concepts.values())
