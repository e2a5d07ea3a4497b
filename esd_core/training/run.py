"""From a config to an erasure, in one call that every host makes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..config.settings import ErasureConfig
from ..errors import ESDError
from ..files.apply import fingerprint
from ..files.erasure import Erasure
from ..files.metadata import preserved
from ..method.bank import Bank
from ..method.contexts import probed, term_source
from ..method.objective import v_weight
from ..method.probes import CONTROL_PROMPTS, Probes
from ..method.rounds import Rounds
from ..method.shares import ALONE, Alone
from ..method.terms import prompts_of
from ..models.architectures import Architecture
from ..models.denoiser import Denoiser, Rehearsable
from .adversary import Adversary
from .checkpoint import StateFile, damaged
from .deterministic import deterministic
from .events import Control, Events, Outcome
from .making import make_erasure
from .plan import Plan, check
from .student import make_student
from .trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a run leaves: the erasure, how it ended, and what it cost."""

    erasure: Erasure
    outcome: Outcome
    report: dict[str, Any]


def erase(
    denoiser: Rehearsable,
    config: ErasureConfig,
    events: Events,
    control: Control,
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
    trainer = prepare(denoiser, config, check(denoiser, config), state_file, resume)
    return finish(trainer, trainer.run(events, control))


def prepare(
    denoiser: Denoiser,
    config: ErasureConfig,
    plan: Plan,
    state_file: Path | None = None,
    resume: bool = False,
    ranks: Alone = ALONE,
) -> Trainer:
    """The trainer that `erase` runs, for a host that has to reach it on the way.

    ranks: who trains it together, each from a call of its own with the same arguments.
    """
    size, together = (config.width, config.height), plan.sampling_batch
    with deterministic(config.training.deterministic):
        weigh = None
        if config.training.loss_weight == "v":
            levels = denoiser.schedule(config.trajectory.steps, *size).sigmas[:-1]
            weigh = v_weight(denoiser.prediction, levels)
        source = term_source(config, denoiser.architecture)
        bank = Bank(denoiser, source, config.trajectory, size, together, weigh, ranks)
        own_state, state = None, None
        if state_file:
            own_state = StateFile(state_file, config.flat(), fingerprint(denoiser.parameters()))
            if any(other != own_state for other in ranks.gather(own_state)):
                raise ESDError(
                    "the processes of this run differ in their settings or models: start all by "
                    "the same command, with the same files on every machine"
                )
            # The first rank's: on another machine there may be no such file.
            state = ranks.of_first(own_state.read() if resume and ranks.is_first else None)
        rounds = Rounds(bank, config.training.batch_size, config.seed)
        student = make_student(denoiser, config)
        probes = Probes(denoiser, probed(config), config, together, ranks)
        adversary = Adversary(bank, config.seed, ranks) if config.training.robust else None
        trainer = Trainer(
            denoiser, config, rounds, student, probes, plan, own_state, ranks, adversary
        )
        if own_state and state:
            try:
                trainer.load_state_dict(state)
            except (KeyError, ValueError) as error:
                raise damaged(own_state.path) from error
    return trainer


def encoded_prompts(config: ErasureConfig, architecture: Architecture) -> tuple[str, ...]:
    """All that a run encodes, for a host that does so beforehand."""
    learnt = prompts_of(term_source(config, architecture).terms)
    return (*learnt, *probed_prompts(config))


def probed_prompts(config: ErasureConfig) -> tuple[str, ...]:
    """Those of them that do not depend on how many steps it has."""
    return (*prompts_of([*chain(*probed(config).values())]), *CONTROL_PROMPTS)


def finish(trainer: Trainer, outcome: Outcome) -> Result:
    """What a trainer that has run leaves."""
    erasure = make_erasure(
        trainer.student, trainer.denoiser, trainer.config, outcome.step, outcome.probes
    )
    return Result(erasure, outcome, _report(trainer, outcome))


def _report(trainer: Trainer, outcome: Outcome) -> dict[str, Any]:
    rounds, config = trainer.rounds, trainer.config
    return {
        "method": config.method,
        "contexts": list(config.contexts),
        "preserved": preserved(config),
        "ending": outcome.ending,
        "student_steps": outcome.step,
        "samples": outcome.step * rounds.batch_size,
        "teacher_evaluations": rounds.bank.evaluations,
        "seconds": round(outcome.seconds, 2),
        "final_loss": outcome.losses[-1] if outcome.losses else None,
        "probes": outcome.probes.as_dict() if outcome.probes else {},
    }
