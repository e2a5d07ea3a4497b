"""What the widgets stand for that say auto: the preset of the MODEL's kind, for the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..esd_core.config.mappings import flat
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

BY_MODEL = frozenset(
    name
    for preset in _PRESETS
    for name in flat(load_preset(preset))
    if name not in _OWN_CHOICE and AUTO not in choices(fields()[name])
)
"""The settings, by dotted name, whose widgets have the value auto."""


def resolved(asked: Mapping[str, Any], preset: str | None = None) -> ErasureConfig:
    """The settings asked for, over a preset's; without one, over SDXL's for the method.

    asked: by dotted name; None stands for auto.
    """
    return settled(preset or SDXL.preset_for(asked.get("method")), asked)
