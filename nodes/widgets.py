"""Widgets made from the core's settings: one declaration for tooltips, bounds and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io

from ..esd_core.config.rules import choices, described, kind_of, limits, renamed
from ..esd_core.config.settings import AUTO, fields
from ..esd_core.errors import ConfigError, ESDError
from .defaults import BY_MODEL
from .host.folders import without_folders
from .host.progress import say
from .schema import advanced

FIELDS = fields()

_MOST = 2**53
"""The largest number that a browser keeps whole."""
_PLACEHOLDERS = {
    "concepts": "CONCEPTS TO ERASE, one a line:\nVan Gogh\nVan Gogh -> painting\n"
    "cowboy hat <- cowboy",
    "preserve": "PROMPTS TO PRESERVE, one a line (may stay empty):\na painting\na cowboy",
    "contexts": "CONTEXTS, one a line:\nauto\na {} painting of a house",
}
"""The older renderer shows no other name for a box."""
OWN_DEFAULTS = {"training.preview_every": 20}
"""Over the core's defaults, for a person who watches, and may not have found the options yet."""


def widget(name: str, is_advanced: bool = False) -> io.Input:
    """The widget of the setting of that (dotted) name; its id is what `input_id` gives."""
    field, has_auto = FIELDS[name], name in BY_MODEL
    kind, options = kind_of(field), choices(field)
    default = AUTO if has_auto else OWN_DEFAULTS.get(name, field.default)
    given: dict[str, Any] = {"tooltip": _tooltip(name), "default": default}
    given |= advanced(is_advanced)
    if options:
        listed = [AUTO, *options] if has_auto else list(options)
        return io.Combo.Input(input_id(name), options=listed, **given)
    if has_auto:  # a line of text: widgets for numbers hold no words
        return io.String.Input(input_id(name), **given)
    if kind is bool:
        return io.Boolean.Input(input_id(name), **given)
    if kind in (int, float):
        return number(name, kind, limits(field), given)
    given |= {"default": "\n".join(field.default), "placeholder": _PLACEHOLDERS[name]}
    return io.String.Input(input_id(name), multiline=True, **given)


def _tooltip(name: str) -> str:
    """What the setting is for, and what auto stands for where the widget has it."""
    text = described(FIELDS[name])
    if name not in BY_MODEL:
        return text
    value = "" if choices(FIELDS[name]) else ", or a number"
    return f"{text} auto: what suits the MODEL and the method{value}."


def number(name: str, kind: type, rules: dict[str, Any], given: dict[str, Any]) -> io.Input:
    """A widget of the numbers that `limits` allow."""
    most = min(rules["le"], _MOST)
    if kind is float:
        step = 0.01
        least = rules.get("ge", step)
        return io.Float.Input(input_id(name), min=least, max=most, step=step, round=False, **given)
    return io.Int.Input(
        input_id(name),
        min=rules["ge"],
        max=most,
        step=rules.get("multiple_of", 1),
        # A new seed is a new training: it must not change by itself.
        control_after_generate=False,
        **given,
    )


def input_id(name: str) -> str:
    """ "training.steps" is the node's `steps`, "trajectory.steps" its `trajectory_steps`."""
    table, _, key = name.rpartition(".")
    return f"trajectory_{key}" if table == "trajectory" else key


def settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, of what widgets gave by their ids; other inputs are left out.

    A widget that says auto gives None. ConfigError for a text that is no number.
    """
    names = {input_id(name): name for name in FIELDS}
    return {names[key]: _value(names[key], v) for key, v in values.items() if key in names}


def _value(name: str, value: Any) -> Any:
    """Of a widget: lines of a box; the number in a text; None for auto."""
    kind = kind_of(FIELDS[name])
    if kind is tuple:
        return tuple(filter(None, map(str.strip, value.splitlines())))
    if name not in BY_MODEL or not isinstance(value, str):
        return value
    if choices(FIELDS[name]):
        return None if value.strip().lower() == AUTO else value
    number = number_or_auto(name, value)
    if kind is int and number is not None and number.is_integer():
        return int(number)
    return number


def number_or_auto(name: str, text: str) -> float | None:
    """What a line says that holds a number, or auto: that gives None. ConfigError for others."""
    if text.strip().lower() == AUTO:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f'`{name}` must be {AUTO} or a number, not "{text[:100]}"') from None


@contextmanager
def plain_errors(node: str | None = None) -> Iterator[None]:
    """Errors in the block name things as the person sees them: settings by their widgets, files
    by their place in the host's folders.

    node: which says them too, since newer pages keep what went wrong behind a button.
    """
    try:
        yield
    except ESDError as error:
        error.args = (without_folders(by_widget(str(error))),)
        say(str(error), node)
        raise


def verdict(check: Callable[..., object], *values: Any) -> bool | str:
    """What a node's `validate_inputs` says: True, or why `check` refuses the values."""
    try:
        with plain_errors():
            check(*values)
    except ESDError as error:
        return str(error)
    return True


def by_widget(text: str) -> str:
    """The text with every setting in backquotes as its widget is called."""
    return renamed(text, {name: input_id(name) for name in FIELDS})
