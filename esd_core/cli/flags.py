"""Settings as flags of a command line, made from the fields of pydantic models.

Three libraries were tried for it: pydantic-settings splits a prompt at its commas; tyro frames its
errors, over several lines; cyclopts takes 2.5 for the whole number 2. All three want the name and
the help of every flag from a loop like the one here, since by themselves they put nested fields
under --training.steps and leave bounds out of the help.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from ..config.rules import Model, bounds, choices, described, kind_of, renamed
from ..config.settings import fields
from ..errors import ConfigError

CONFIG = fields()
_METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "PROMPT", "concepts": "LINE"}


def flag(name: str) -> str:
    """The flag of a setting: "training.learning_rate" -> "--learning-rate".

    Where both tables have a setting of one name, that of the trajectory carries its table's:
    --steps trains, --trajectory-steps samples. A list is given one by one: --concept.
    """
    table, _, key = name.rpartition(".")
    if table == "trajectory" and f"training.{key}" in CONFIG:
        key = f"{table}_{key}"
    return "--" + {"concepts": "concept"}.get(key, key).replace("_", "-")


def add_flags(parser: ArgumentParser, title: str, settings: Mapping[str, FieldInfo]) -> None:
    """A group of flags, one a setting; `given` reads them."""
    group = parser.add_argument_group(title)
    for name, field in settings.items():
        kind = kind_of(field)
        options: dict[str, Any] = {"dest": name, "help": describe(field)}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = "|".join(choices(field)) or _METAVARS.get(name, _METAVARS[kind])
            options["type"] = number(kind) if kind in (int, float) else str
        if kind is tuple:
            options["action"] = "append"
        group.add_argument(flag(name), required=field.is_required(), **options)


def given(arguments: Namespace, settings: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """What the flags of these settings say, without those that were not given."""
    values = vars(arguments)
    return {name: values[name] for name in settings if values[name] is not None}


def read(kind: type[Model], arguments: Namespace) -> Model:
    """The settings that the flags of this model say; ConfigError names the flag."""
    try:
        return kind.from_mapping(given(arguments, kind.model_fields))
    except ConfigError as error:
        names = {name: flag(name) for name in kind.model_fields}
        raise ConfigError(renamed(str(error), names)) from None


def by_flag(text: str) -> str:
    """An error of the config, with the flags in the place of the settings' names."""
    return renamed(text, {name: flag(name) for name in CONFIG})


def number(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Makes a word a number if it is one; anything else stays, for the model to refuse."""

    def read_word(word: str) -> Any:
        try:
            return kind(word)
        except ValueError:
            return word

    return read_word


def describe(field: FieldInfo) -> str:
    """The help of a flag: what the setting means, its bounds and its default."""
    rules = [bounds(field)] if bounds(field) else []
    if kind_of(field) is bool:
        rules.append(f"default {'on' if field.default else 'off'}")
    elif kind_of(field) is tuple:
        rules.append("may be given several times")
    elif field.default not in (None, "") and not field.is_required():
        rules.append(f"default {field.default}")
    text = described(field)
    return f"{text} ({'; '.join(rules)})" if rules else text
