"""Widgets made from the core's settings: one declaration for tooltips, bounds and errors."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..esd_core.config.fields import Field
from ..esd_core.config.settings import fields

FIELDS = {field.name: field for field in fields()}

_MOST = 2**53
"""The largest number that a browser keeps whole."""
_STEPS = {"training.learning_rate": 1e-6, "training.weight_decay": 0.001}
_ADVICE = {
    "concepts": "Van Gogh\nVan Gogh -> painting\ncowboy hat <- cowboy",
    "preserve": "one prompt a line",
}


def widget(name: str) -> io.Input:
    """The widget of the setting of that (dotted) name; its id is the name's last part, or what
    `input_id` gives where two tables share it."""
    field = FIELDS[name]
    given: dict[str, Any] = {"tooltip": field.doc, "default": field.default}
    if field.type is bool:
        return io.Boolean.Input(input_id(name), **given)
    if field.choices:
        return io.Combo.Input(input_id(name), options=list(field.choices), **given)
    if field.type in (int, float):
        return _number(field, given)
    given |= {"default": "", "placeholder": _ADVICE[name]}
    return io.String.Input(input_id(name), multiline=True, **given)


def _number(field: Field, given: dict[str, Any]) -> io.Input:
    assert field.bounds
    low, high = field.bounds.low, min(field.bounds.high, _MOST)
    if field.type is float:
        step = _STEPS.get(field.name, 0.01)
        least = step if field.bounds.exclusive else low
        return io.Float.Input(
            input_id(field.name), min=least, max=high, step=step, round=False, **given
        )
    return io.Int.Input(
        input_id(field.name),
        min=low,
        max=high,
        step=field.bounds.multiple_of,
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
    return tuple(filter(None, map(str.strip, value.splitlines()))) if _is_list(name) else value


def _is_list(name: str) -> bool:
    return FIELDS[name].type is tuple
