"""What a setting allows, read off its pydantic field, and what was wrong in one sentence."""

from __future__ import annotations

import re
import reprlib
import types
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from ..errors import ConfigError

_NOUNS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of texts",
}
_BOUND_ERRORS = {"greater_than", "greater_than_equal", "less_than_equal", "multiple_of"}
_BOUND_ERRORS |= {"finite_number"}
_SETTING = re.compile(r"`([a-z_]+(?:\.[a-z_]+)?)`")

Model = TypeVar("Model", bound="Settings")


def encodable(text: str) -> str:
    """The text; ValueError for lone surrogates, as undecodable bytes of a command line become."""
    text.encode("utf-8")
    return text


Text = Annotated[str, AfterValidator(encodable)]


class Settings(BaseModel):
    """Frozen settings; nothing is converted but int to float and list to tuple."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def from_mapping(cls: type[Model], mapping: Mapping[str, Any]) -> Model:
        """ConfigError with one sentence on the first unknown name or bad value."""
        try:
            return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise ConfigError(_sentence(cls, mapping, error)) from None


def named_fields(kind: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """The fields of a model by dotted name, those of nested tables last."""
    own: dict[str, FieldInfo] = {}
    nested: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            nested |= named_fields(annotation, f"{name}.")
        else:
            own[prefix + name] = field
    return own | nested


def kind_of(field: FieldInfo) -> type:
    """bool, int, float, str or tuple (of texts)."""
    found: Any = field.annotation
    if get_origin(found) in (Union, types.UnionType):  # X | None
        found = get_args(found)[0]
    if get_origin(found) is Literal:
        return str
    return get_origin(found) or found


def choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def limits(field: FieldInfo) -> dict[str, Any]:
    """Those of ge, gt, le and multiple_of that are declared."""
    keys = ("ge", "gt", "le", "multiple_of")
    return {k: getattr(rule, k) for rule in field.metadata for k in keys if hasattr(rule, k)}


def bounds(field: FieldInfo) -> str:
    """ "at least 1 and at most 1000"; "" for what is not a number."""
    found = limits(field)
    if not found:
        return ""
    lower = f"above {found['gt']}" if "gt" in found else f"at least {found['ge']}"
    multiple = f", in multiples of {found['multiple_of']}" if "multiple_of" in found else ""
    return f"{lower} and at most {found['le']}{multiple}"


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with every setting in backquotes as the host calls it: a flag, or a widget."""
    return _SETTING.sub(lambda match: names.get(match[1], match[1]), text)


def _sentence(kind: type[BaseModel], mapping: Mapping[str, Any], error: ValidationError) -> str:
    """The first error; unknown names come before bad values."""
    errors = error.errors(include_url=False, include_context=False)
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    fields = named_fields(kind)
    if first["type"] == "extra_forbidden":
        return unknown_setting(".".join(path), [*fields, *kind.model_fields])
    name = ".".join(path[:2]) if ".".join(path[:2]) in fields else path[0]
    value: Any = mapping
    for part in name.split("."):
        value = value[part]
    return f"`{name}` must be {_rule(fields.get(name), first['type'])}, not {reprlib.repr(value)}"


def _rule(field: FieldInfo | None, error_type: str) -> str:
    if field is None:
        return "a table of settings"
    if choices(field):
        return f"one of {', '.join(choices(field))}"
    return bounds(field) if error_type in _BOUND_ERRORS else _NOUNS[kind_of(field)]


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Names the nearest one: the last part of a name counts first, then the whole."""

    def likeness(other: str) -> tuple[float, float]:
        pairs = ((name.rpartition(".")[2], other.rpartition(".")[2]), (name, other))
        last, whole = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return last, whole

    nearest = max(known, key=likeness)
    if max(likeness(nearest)) < 0.5:
        return f'unknown setting "{name}": `esd erase --help` lists them all'
    return f'unknown setting "{name}": did you mean {nearest}?'


def described(field: FieldInfo) -> str:
    """The docstring below a field, on one line."""
    return " ".join((field.description or "").split())
