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
    lines = [f"{verb} {shown(trained.path)}", f"{metadata.get('esd.steps')} steps, {ending}"]
    lines.append("left of the concept, by its probe (0 % and below: gone)")
    lines += [f"{share:8.1%}  {concept}" for concept, share in probes.get("share", {}).items()]
    lines.append("drift of other prompts")
    lines += [
        f"{drift:8.1%}  {prompt or '(empty prompt)'}"
        for prompt, drift in probes.get("drift", {}).items()
    ]
    return "\n".join(lines)
