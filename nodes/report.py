"""What came of it, in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..esd_core.files.metadata import Key
from ..esd_core.training.endings import ENDINGS
from .host.folders import shown
from .widgets import by_widget

if TYPE_CHECKING:
    from .host.training import Trained


def of_training(trained: Trained) -> str:
    """Where the file is, how the run ended, and what the probes measured."""
    metadata = trained.erasure.metadata
    verb = "written to" if trained.is_new else "the same inputs made this before, so it is taken:"
    ending = by_widget(ENDINGS.get(metadata.get(Key.ENDING, ""), ""))
    probes = json.loads(metadata.get(Key.PROBES, "{}"))
    return ";\n".join(
        (
            f"{verb} {shown(trained.path)}",
            f"{metadata.get(Key.STEPS)} steps, {ending}",
            f"left of it, by the probe (0 % and below: gone): {_listed(probes.get('share', {}))}",
            f"drift of other prompts: {_listed(probes.get('drift', {}))}",
        )
    )


def _listed(measured: dict[str, float]) -> str:
    """On one line, which wraps: a node has little room for text."""
    return ", ".join(
        f"{prompt or '(empty prompt)'} {part:.1%}" for prompt, part in measured.items()
    )
