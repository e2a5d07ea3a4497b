"""Settings as flags of a command line: help, parsing and errors all come from the `Field`."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from typing import Any

from ..config import settings as config
from ..config.fields import Field
from ..errors import ConfigError

_METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "PROMPT"}
_CONFIG_NAMES = {field.name for field in config.fields()}


def flag(name: str) -> str:
    """The flag of a setting: "training.learning_rate" -> "--learning-rate".

    Where both tables have a setting of one name, that of the trajectory carries its table's:
    --steps trains, --trajectory-steps samples. A list is given one by one: --concept.
    """
    table, _, key = name.rpartition(".")
    if table == "trajectory" and f"training.{key}" in _CONFIG_NAMES:
        key = f"{table}_{key}"
    return "--" + {"concepts": "concept"}.get(key, key).replace("_", "-")


def add_fields(parser: ArgumentParser, title: str, fields: Iterable[Field]) -> None:
    """A group of flags, one a field; `given` reads them."""
    group = parser.add_argument_group(title)
    for field in fields:
        options: dict[str, Any] = {"dest": field.name, "help": describe(field)}
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            kind = "LINE" if field.name == "concepts" else _METAVARS[field.type]
            options["metavar"] = "|".join(field.choices) or kind
            options["type"] = reader(field)
        if field.type is tuple:
            options["action"] = "append"
        group.add_argument(flag(field.name), **options)


def given(arguments: Namespace, fields: Iterable[Field]) -> dict[str, Any]:
    """What the flags of these fields say, by the fields' names; None where a flag was not given."""
    values = vars(arguments)
    return {field.name: values[field.name] for field in fields}


def value(arguments: Namespace, field: Field) -> Any:
    """What the flag of a field says, or the field's default."""
    found = vars(arguments)[field.name]
    return field.default if found is None else found


def reader(field: Field) -> Callable[[str], Any]:
    """Turns a word of the command line into a value of the field, or tells the rule it breaks."""

    def read(word: str) -> Any:
        try:
            if field.type is tuple:
                return field.check([word])[0]
            return field.check(_converted(word, field.type))
        except ConfigError as error:
            raise ArgumentTypeError(str(error)) from error

    return read


def _converted(word: str, kind: type) -> Any:
    """The word as a number, where it is to be one; else as it is, for the check to refuse."""
    try:
        return kind(word) if kind in (int, float) else word
    except ValueError:
        return word


def describe(field: Field) -> str:
    """The help of a flag: what the setting means, its bounds and its default."""
    rules = [str(field.bounds)] if field.bounds else []
    if field.type is bool:
        rules.append(f"default {'on' if field.default else 'off'}")
    elif field.type is tuple:
        rules.append("may be given several times")
    elif field.default is not None:
        rules.append(f"default {field.default}")
    return f"{field.doc} ({'; '.join(rules)})" if rules else field.doc
