"""How much work a run is, in rows that go through the network, so that a host can tell the time.

A row costs as much whatever it is evaluated for, but for those that are trained on, which go back
as well. Memory plans cost next to nothing, and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from ..config.settings import ErasureConfig
from ..method.contexts import probed, term_source
from ..method.probes import STEPS, TRAJECTORIES, is_plain, watched_prompts
from ..method.samples import batches_of
from ..method.terms import RoundTerms, TermSource
from ..models.denoiser import Denoiser
from .trainer import Trainer


@dataclass(frozen=True)
class Work:
    """Rows of the network: evaluated, and trained on."""

    evaluated: int
    trained: int


def recording_rows(config: ErasureConfig, denoiser: Denoiser) -> int:
    """Evaluations for what probes hold the student against."""
    leading, following = _leading(denoiser), _following(denoiser)
    rows = sum(2 + leading for _ in {*watched_prompts(config)})
    for term in {*chain(*probed(config).values())}:
        width = len(term.rollout())
        rows += width + leading + (following if is_plain(term) else width)
    return _states(config) * rows


def _leading(denoiser: Denoiser) -> int:
    """Evaluations a state that lead to it and from which nothing is learnt: where guidance is an
    input of the network, one, with more of it than targets have."""
    return 1 if denoiser.is_guided else 0


def _following(denoiser: Denoiser) -> int:
    """Evaluations a step of a trajectory from which nothing is learnt but where it ends."""
    return 1 if denoiser.is_guided else 2


def expected(config: ErasureConfig, denoiser: Denoiser, probe_interval: int) -> Work:
    """A run from its first step, about: which probes tell is known when they are recorded."""
    terms = len({*chain(*probed(config).values())})
    followed = terms * _following(denoiser)
    probe = _states(config) * (followed + len({*watched_prompts(config)}))
    source = term_source(config, denoiser.architecture)
    return _work(config, source, _leading(denoiser), probe, probe_interval)


def remaining(trainer: Trainer) -> Work:
    """What is left of a run."""
    rounds, probe, interval = trainer.rounds, trainer.probes.rows, trainer.probe_interval
    leading, source = _leading(trainer.denoiser), rounds.bank.source
    at = {"step": trainer.step, "index": rounds.next_index, "ready": rounds.ready}
    return _work(trainer.config, source, leading, probe, interval, **at)


def _work(
    config: ErasureConfig,
    source: TermSource,
    leading: int,
    probe: int,
    interval: int,
    step: int = 0,
    index: int = 0,
    ready: int = 0,
) -> Work:
    """step: those made. index: the next round's. ready: batches left of the present one."""
    steps = config.training.steps
    to_draw, evaluated = steps - step - ready, 0
    while to_draw > 0:
        terms = source.of_round(index)
        evaluated += _round_rows(terms, leading, config)
        to_draw -= batches_of(config, config.trajectory.steps * terms.erasing, source.preserving)
        index += 1
    probes = 1 + (steps // interval - step // interval if interval else 0)
    return Work(evaluated + probes * probe, (steps - step) * config.training.batch_size)


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
