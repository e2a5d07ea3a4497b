"""What the widgets stand for that say auto: the preset of the MODEL's kind, for the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..esd_core.config.presets import load_preset, settled
from ..esd_core.config.rules import choices
from ..esd_core.config.settings import AUTO, ErasureConfig, fields
from ..esd_core.models.architectures import ARCHITECTURES, SDXL
from ..esd_core.models.embedded import POCKET, POCKET_DIT

_PRESETS = (
    POCKET,
    POCKET_DIT,
    *(kind.preset_for(method) for kind in ARCHITECTURES.values() for method in kind.layers),
)
_OWN_CHOICE = {"method", "contexts"}
"""A method is the person's to choose, and auto has another meaning among contexts."""


def _stated(preset: str) -> set[str]:
    """The settings, by dotted name, that a preset names."""
    named = load_preset(preset)
    return {
        name
        for name in fields()
        if name in named or name.partition(".")[2] in named.get(name.partition(".")[0], {})
    }


BY_MODEL = frozenset(
    name
    for name in set[str]().union(*map(_stated, _PRESETS)) - _OWN_CHOICE
    if AUTO not in choices(fields()[name])
)
"""The settings, by dotted name, whose widgets have the value auto."""


def resolved(asked: Mapping[str, Any], preset: str | None = None) -> ErasureConfig:
    """The settings asked for, over a preset's; without one, over SDXL's for the method.

    asked: by dotted name; None stands for auto.
    """
    preset = preset or SDXL.preset_for(asked.get("method"))
    return settled(preset, asked)
