"""From a config to an erasure, in one call that every host makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.settings import ErasureConfig
from ..errors import FileError
from ..files.apply import fingerprint
from ..files.erasure import Erasure
from ..method.bank import Bank
from ..method.probes import Probes
from ..models.denoiser import Denoiser
from . import plan as memory
from .checkpoint import TrainingState, damaged, read_state, refuse_other_run
from .making import make_erasure
from .selection import select
from .student import FullStudent, LowRankStudent, Student
from .trainer import Commands, Events, Outcome, Trainer


@dataclass(frozen=True)
class Result:
    """What a run leaves: the erasure, how it ended, and what it cost."""

    erasure: Erasure
    outcome: Outcome
    report: dict[str, Any]


def erase(
    denoiser: Denoiser,
    config: ErasureConfig,
    events: Events,
    commands: Commands,
    state_file: Path | None = None,
    resume: bool = False,
) -> Result:
    """Trains a student of `denoiser` as `config` says; the model itself stays as it was.

    Args:
        state_file: where the training state goes, every `save_every` steps and on a stop.
        resume: go on from what that file holds.

    Raises:
        ESDError: an input does not fit, the state is missing or of another run, or the loss is
            not finite.
    """
    trainer = prepare(denoiser, config, state_file, resume)
    return finish(trainer, trainer.run(events, commands))


def prepare(
    denoiser: Denoiser,
    config: ErasureConfig,
    state_file: Path | None = None,
    resume: bool = False,
) -> Trainer:
    """The trainer that `erase` runs, for a host that has to reach it on the way."""
    plan = memory.check(denoiser, config)
    bank = Bank(denoiser, config)
    bank.together = plan.rows
    student = make_student(denoiser, config)
    state = None
    if resume and state_file:
        state = read_state(state_file)
        _refuse_other_base(state_file, state, denoiser)
        refuse_other_run(state_file, state.values.get("config", {}), config.to_mapping())
    probes = Probes(denoiser, bank, config.preserved)
    trainer = Trainer(denoiser, bank, student, probes, state_file, plan)
    if state and state_file:
        try:
            trainer.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(state_file) from error
    return trainer


def finish(trainer: Trainer, outcome: Outcome) -> Result:
    """What a trainer that has run leaves."""
    erasure = make_erasure(
        trainer.student, trainer.denoiser, trainer.config, outcome.step, outcome.probes
    )
    return Result(erasure, outcome, _report(trainer, outcome))


def _refuse_other_base(path: Path, state: TrainingState, denoiser: Denoiser) -> None:
    if state.values.get("base") != fingerprint(denoiser.parameters()):
        raise FileError(
            f"{path} belongs to a run on another model, or in another precision: give the same "
            "one, or start without --resume"
        )


def make_student(denoiser: Denoiser, config: ErasureConfig) -> Student:
    """The student that `method` and `rank` ask for, equal to the teacher."""
    base = denoiser.parameters()
    names = select(config.method, base, denoiser.architecture)
    training = config.training
    if not training.rank:
        return FullStudent(base, names, denoiser.compute_dtype)
    start = torch.Generator().manual_seed(config.seed)
    return LowRankStudent(
        base, names, denoiser.compute_dtype, training.rank, training.effective_alpha, start
    )


def _report(trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    batch = trainer.batches.shape[1] if len(trainer.batches) else 0
    return {
        "ending": outcome.ending,
        "student_steps": outcome.step,
        "samples": outcome.step * batch,
        "teacher_evaluations": trainer.bank.evaluations,
        "seconds": round(outcome.seconds, 2),
        "final_loss": outcome.losses[-1] if outcome.losses else None,
        "probes": outcome.probes.as_dict() if outcome.probes else {},
    }
