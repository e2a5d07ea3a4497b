"""The history of runs, in output/esd_history.jsonl."""

from __future__ import annotations

import logging
from pathlib import Path

from ...esd_core.errors import FileError
from ...esd_core.files import history
from ...esd_core.method.probes import ProbeReport
from ...esd_core.training.trainer import Trainer
from . import folders, states

_SHOWN = 20


def remember(
    trainer: Trainer, ending: str, probes: ProbeReport | None = None, file: Path | None = None
) -> None:
    """Adds a run to the history. A log that cannot be written is not worth losing a run.

    file: what was made; without one, the state of the run counts, if there is any.
    """
    made = file or (trainer.state_file and trainer.state_file.path)
    entry = history.record(
        trainer.config,
        trainer.denoiser.architecture.title,
        ending,
        trainer.step,
        probes.as_dict() if probes else {},
        folders.shown(made) if made and made.is_file() else "",
    )
    try:
        history.append(folders.history_file(), entry)
    except FileError as error:
        logging.warning("ESD: %s", error)


def listed() -> str:
    """The last runs, one a line, the newest first, and the stopped ones that can go on."""
    try:
        entries = history.read(folders.history_file())
    except FileError:
        entries = []
    lines = [history.described(entry) for entry in reversed(entries[-_SHOWN:])]
    return "\n".join(filter(None, [*lines, states.told()]))
