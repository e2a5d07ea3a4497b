"""Widgets made from the core's settings: one declaration for tooltips, bounds and errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io

from ..esd_core.config.rules import choices, described, kind_of, limits, renamed
from ..esd_core.config.settings import fields
from ..esd_core.errors import ESDError

FIELDS = fields()

_MOST = 2**53
"""The largest number that a browser keeps whole."""
_STEPS = {"training.learning_rate": 1e-6, "training.weight_decay": 0.001}
_ADVICE = {
    "concepts": "Van Gogh\nVan Gogh -> painting\ncowboy hat <- cowboy",
    "preserve": "one prompt a line",
    "contexts": "auto\na {} painting of a house",
}


def widget(name: str) -> io.Input:
    """The widget of the setting of that (dotted) name; its id is what `input_id` gives."""
    field = FIELDS[name]
    kind = kind_of(field)
    given: dict[str, Any] = {"tooltip": described(field), "default": field.default}
    if kind is bool:
        return io.Boolean.Input(input_id(name), **given)
    if choices(field):
        return io.Combo.Input(input_id(name), options=list(choices(field)), **given)
    if kind in (int, float):
        return number(name, kind, limits(field), given)
    given |= {"default": "\n".join(field.default), "placeholder": _ADVICE[name]}
    return io.String.Input(input_id(name), multiline=True, **given)


def number(name: str, kind: type, rules: dict[str, Any], given: dict[str, Any]) -> io.Input:
    """A widget of the numbers that `limits` allow."""
    most = min(rules["le"], _MOST)
    if kind is float:
        step = _STEPS.get(name, 0.01)
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
    """Settings by dotted name, of what widgets gave by their ids; other inputs are left out."""
    names = {input_id(name): name for name in FIELDS}
    return {names[key]: _lines(names[key], v) for key, v in values.items() if key in names}


def _lines(name: str, value: Any) -> Any:
    is_list = kind_of(FIELDS[name]) is tuple
    return tuple(filter(None, map(str.strip, value.splitlines()))) if is_list else value


@contextmanager
def errors_by_widget() -> Iterator[None]:
    """Errors in the block name settings as the person sees them: by their widgets."""
    try:
        yield
    except ESDError as error:
        error.args = (by_widget(str(error)),)
        raise


def by_widget(text: str) -> str:
    """The text with every setting in backquotes as its widget is called."""
    return renamed(text, {name: input_id(name) for name in FIELDS})
