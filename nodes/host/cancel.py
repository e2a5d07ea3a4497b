"""The person's Cancel, in a run that can be gone on with."""

from __future__ import annotations

from typing import Any

from comfy.model_management import InterruptProcessingException, processing_interrupted

from ...esd_core.trainer import Events, Outcome, Trainer

Interrupted = InterruptProcessingException
"""What the host raises on Cancel. It is a BaseException in newer hosts, an Exception in older."""


class Cancel:
    """Asked before every step. The host may raise in the midst of one, or of a round of
    trajectories: then the run is put back to where that step began, so that nothing is skipped."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._step = -1
        self._place: dict[str, Any] = {}

    def should_stop(self) -> bool:
        trainer = self._trainer
        self._step = trainer.step
        self._streams = trainer.noise.get_state(), trainer.order.get_state()
        self._evaluations = trainer.bank.evaluations
        names = ("samples", "batches", "round", "position")
        self._place = {name: getattr(trainer, name) for name in names}
        return bool(processing_interrupted())

    def put_back(self) -> None:
        """Undoes the part of a step that was done; a whole step stays."""
        trainer = self._trainer
        if trainer.step != self._step:
            return
        for name, value in self._place.items():
            setattr(trainer, name, value)
        noise, order = self._streams
        trainer.noise.set_state(noise)
        trainer.order.set_state(order)
        trainer.bank.evaluations = self._evaluations


def run(trainer: Trainer, events: Events) -> Outcome:
    """Trains. On Cancel, or when anything fails, the state is saved: Cancel goes on its way as
    the host's own exception."""
    cancel = Cancel(trainer)
    try:
        outcome = trainer.run(events, cancel)
    except BaseException:
        cancel.put_back()
        if trainer.step:
            trainer.save(events)
        raise
    if outcome.ending == "stopped":
        raise Interrupted()
    return outcome
