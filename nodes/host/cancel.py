"""Cancelling a run that can be resumed."""

from __future__ import annotations

from comfy.model_management import InterruptProcessingException, processing_interrupted

from ...esd_core.training.events import Events, Outcome
from ...esd_core.training.trainer import Trainer

Interrupted = InterruptProcessingException
"""What the host raises on Cancel. It is a BaseException in newer hosts, an Exception in older."""


class Cancel:
    """Asked before every step; the host may also raise in the midst of one."""

    def should_stop(self) -> bool:
        return bool(processing_interrupted())


def run(trainer: Trainer, events: Events) -> Outcome:
    """Trains; Cancel, after which the state is saved, is re-raised as the host's own exception."""
    outcome = trainer.run(events, Cancel())
    if outcome.ending == "stopped":
        raise Interrupted()
    return outcome
