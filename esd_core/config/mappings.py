"""Settings as mappings, in which nothing is checked yet.

They are nested, with the tables `trajectory` and `training` as TOML has them, or flat, under dotted
names ("training.steps"), or a mixture of both.
"""

import json
from collections.abc import Mapping
from typing import Any

_TABLES = ("trajectory", "training")


def override(mapping: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A nested copy of a mapping, with other settings laid over it.

    A None among the overrides means "not given" and changes nothing.
    """
    given = {name: value for name, value in flat(overrides).items() if value is not None}
    nested: dict[str, Any] = {}
    for name, value in {**flat(mapping), **given}.items():
        table, _, key = name.partition(".")
        if not key or table not in _TABLES:
            nested[name] = value
        elif isinstance(inner := nested.setdefault(table, {}), dict):
            inner[key] = value
    return nested


def flat(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping) and (value or name in _TABLES):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            found[str(name)] = value
    return found


def toml(mapping: Mapping[str, Any]) -> str:
    """A TOML document of a nested mapping, whose tables come last."""
    lines = []
    for name, value in mapping.items():
        if isinstance(value, dict):
            lines += ["", f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A TOML value: JSON writes texts, numbers and lists the same way, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
