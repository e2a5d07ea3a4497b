"""How much work a run is, in rows that go through the network, so that a host can tell the time.

A row costs as much whatever it is evaluated for, but for those that are trained on, which go back
as well. Memory plans cost next to nothing, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from ..config.settings import ErasureConfig
from ..method.contexts import probed, term_source
from ..method.probes import STEPS, TRAJECTORIES, watched_rollouts
from ..method.samples import preserved_part
from ..method.terms import RoundTerms
from ..models.denoiser import Denoiser
from .trainer import Trainer


@dataclass(frozen=True)
class Work:
    """Rows of the network: evaluated, and trained on."""

    evaluated: int
    trained: int


def recording_rows(config: ErasureConfig, denoiser: Denoiser) -> int:
    """Evaluations for what probes hold the student against."""
    asked = {term.rollout() for term in chain(*probed(config).values())}
    asked |= {*watched_rollouts(config)}
    leading = _leading(denoiser)
    return _states(config) * sum(len(prompts) + leading for prompts in asked)


def _leading(denoiser: Denoiser) -> int:
    """Evaluations a state that lead to it and from which nothing is learnt: where guidance is an
    input of the network, one, with more of it than targets have."""
    return 1 if denoiser.is_guided else 0


def expected(config: ErasureConfig, denoiser: Denoiser, probe_interval: int) -> Work:
    """A run from its first step, about: which probes tell is known when they are recorded."""
    terms = len([*chain(*probed(config).values())])
    probe = _states(config) * (terms + len(watched_rollouts(config)))
    source = term_source(config, denoiser.architecture)
    leading = _leading(denoiser)
    return _work(config, source.of_round, source.preserving, leading, probe, probe_interval)


def remaining(trainer: Trainer) -> Work:
    """What is left of a run."""
    rounds, interval = trainer.rounds, trainer.probe_interval
    at = Position(trainer.step, rounds.next_index, rounds.ready)
    bank, probe = rounds.bank, trainer.probes.rows
    leading = _leading(trainer.denoiser)
    return _work(trainer.config, bank.terms_of, bank.preserving, leading, probe, interval, at)


@dataclass(frozen=True)
class Position:
    """Where a run is: steps made, the next round's number, and batches left of the present one."""

    step: int
    round: int
    ready: int


_START = Position(0, 0, 0)


def _work(
    config: ErasureConfig,
    terms_of: Callable[[int], RoundTerms],
    preserving: int,
    leading: int,
    probe: int,
    interval: int,
    at: Position = _START,
) -> Work:
    steps = config.training.steps
    index, to_draw, evaluated = at.round, steps - at.step - at.ready, 0
    while to_draw > 0:
        terms = terms_of(index)
        evaluated += _round_rows(terms, leading, config)
        to_draw -= _batches(terms, preserving, config)
        index += 1
    probes = 1 + (steps // interval - at.step // interval if interval else 0)
    return Work(evaluated + probes * probe, (steps - at.step) * config.training.batch_size)


def _states(config: ErasureConfig) -> int:
    return TRAJECTORIES * min(STEPS, config.trajectory.steps)


def _round_rows(terms: RoundTerms, leading: int, config: ErasureConfig) -> int:
    """On policy, the student's own two predictions lead, and the teacher's come on top."""
    steps, on_policy = config.trajectory.steps, config.trajectory.source == "student"
    own = leading + (2 if on_policy else 0)
    predicted = sum(
        len(part) * (len(term.rollout()) + own)
        for part, leading in terms.parts(steps)
        for term in leading
    )
    return predicted + len(terms.beside)


def _batches(terms: RoundTerms, preserving: int, config: ErasureConfig) -> int:
    """As `Samples.batches` makes of that round."""
    samples, batch = config.trajectory.steps * terms.erasing, config.training.batch_size
    share = batch - (preserved_part(batch, preserving) if config.preserves else 0)
    return samples // min(share, samples) * config.trajectory.reuse
