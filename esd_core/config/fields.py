"""What a setting is: its doc, bounds and choices, declared once on a frozen dataclass.

A command line, a node and an error message are all made from the same `Field`.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar

from ..errors import ConfigError

_NOUNS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of texts",
}


@dataclass(frozen=True)
class Bounds:
    """From `low` to `high`, both included unless `exclusive` leaves `low` out."""

    low: int
    high: int
    exclusive: bool = False
    multiple_of: int = 1

    def admit(self, value: float) -> bool:
        """Whether a number lies inside; NaN and the infinities never do."""
        if not self.low <= value <= self.high or (self.exclusive and value == self.low):
            return False
        return self.multiple_of == 1 or value % self.multiple_of == 0

    def __str__(self) -> str:
        lower = f"above {self.low}" if self.exclusive else f"at least {self.low}"
        multiple = f", in multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{lower} and at most {self.high}{multiple}"


@dataclass(frozen=True)
class Field:
    """One setting: what a command line or a node needs to offer it.

    `type` is bool, int, float, str or tuple (of texts). `name` is dotted: "training.steps".
    """

    name: str
    type: type
    default: Any
    doc: str
    choices: tuple[str, ...] = ()
    bounds: Bounds | None = None

    def check(self, value: Any) -> Any:
        """The value in its one form (int to float, list to tuple); ConfigError names the rule."""
        if self.choices and value not in self.choices:
            raise self._error(f"one of {', '.join(self.choices)}", value)
        if not self._fits(value):
            raise self._error(_NOUNS[self.type], value)
        if self.bounds and not self.bounds.admit(value):
            raise self._error(str(self.bounds), value)
        if self.type is float:
            return float(value) + 0.0  # -0.0 becomes 0.0: equal settings have equal digests
        return self.type(value)

    def _fits(self, value: Any) -> bool:
        if self.type is tuple:
            return isinstance(value, (list, tuple)) and all(map(_is_text, value))
        if self.type is str:
            return _is_text(value)
        if self.type in (int, float) and isinstance(value, bool):
            return False
        return isinstance(value, (int, float) if self.type is float else self.type)

    def _error(self, rule: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.name} must be {rule}, not {reprlib.repr(value)}")


def _is_text(value: Any) -> bool:
    """A str without lone surrogates, which undecodable bytes of a command line turn into."""
    return isinstance(value, str) and value == value.encode("utf-8", "ignore").decode("utf-8")


def setting(
    default: Any, doc: str, bounds: Bounds | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """Declares a setting, in the place of `dataclasses.field`."""
    metadata = {"doc": doc, "bounds": bounds, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Checks every declared field of a dataclass once, when it is made."""

    table: ClassVar[str] = ""

    @classmethod
    def declared(cls) -> tuple[Field, ...]:
        """The fields of this table, in order, with dotted names."""
        prefix = f"{cls.table}." if cls.table else ""
        return tuple(
            Field(prefix + f.name, type(f.default), f.default, **f.metadata)
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]  # only dataclasses derive
            if f.metadata
        )

    def __post_init__(self) -> None:
        for field in self.declared():
            name = field.name.rpartition(".")[2]
            object.__setattr__(self, name, field.check(getattr(self, name)))


def unknown_setting(name: str, known: Iterable[str]) -> ConfigError:
    """An error with the nearest known name: the last part counts first, then the whole."""

    def likeness(other: str) -> tuple[float, float]:
        pairs = ((name.rpartition(".")[2], other.rpartition(".")[2]), (name, other))
        last, whole = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return last, whole

    nearest = max(known, key=likeness)
    if max(likeness(nearest)) < 0.5:
        return ConfigError(f'unknown setting "{name}": `esd erase --help` lists them all')
    return ConfigError(f'unknown setting "{name}": did you mean {nearest}?')


def toml_value(value: Any) -> str:
    """A TOML value: JSON writes texts, numbers and lists the same way, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
