"""The person's Cancel, in a run that can be gone on with."""

from __future__ import annotations

from comfy.model_management import InterruptProcessingException, processing_interrupted

from ...esd_core.training.trainer import Events, Outcome, Trainer

Interrupted = InterruptProcessingException
"""What the host raises on Cancel. It is a BaseException in newer hosts, an Exception in older."""


class Cancel:
    """Asked before every step; the host may also raise in the midst of one."""

    def should_stop(self) -> bool:
        return bool(processing_interrupted())


def run(trainer: Trainer, events: Events) -> Outcome:
    """Trains. On Cancel, or when anything fails, the state is saved: Cancel goes on its way as
    the host's own exception."""
    try:
        outcome = trainer.run(events, Cancel())
    except BaseException:
        if trainer.step:
            trainer.save(events)
        raise
    if outcome.ending == "stopped":
        raise Interrupted()
    return outcome
