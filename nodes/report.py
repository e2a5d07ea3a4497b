"""What came of it, in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .host.folders import shown
from .host.training import ENDING

if TYPE_CHECKING:
    from .host.training import Trained

_ENDINGS = {
    "done": "all steps done",
    "erased": "ended early: no more than `until` of the concept is left",
    "drifted": "ended early: a prompt drifted beyond max_drift; the last state below it is kept",
}


def of_training(trained: Trained) -> str:
    """Where the file is, how the run ended, and what the probes measured."""
    metadata = trained.erasure.metadata
    verb = "written to" if trained.is_new else "the same inputs made this before, so it is taken:"
    ending = _ENDINGS.get(metadata.get(ENDING, ""), "")
    probes = json.loads(metadata.get("esd.probes", "{}"))
    return ";\n".join(
        (
            f"{verb} {shown(trained.path)}",
            f"{metadata.get('esd.steps')} steps, {ending}",
            f"left of it, by the probe (0 % and below: gone): {_listed(probes.get('share', {}))}",
            f"drift of other prompts: {_listed(probes.get('drift', {}))}",
        )
    )


def _listed(measured: dict[str, float]) -> str:
    """On one line, which wraps: a node has little room for text."""
    return ", ".join(
        f"{prompt or '(empty prompt)'} {part:.1%}" for prompt, part in measured.items()
    )
