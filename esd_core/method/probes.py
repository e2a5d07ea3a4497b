"""Probes: how much of a concept is left, and what else has moved, without decoding a picture.

Both are measured from noise that training never sees: the first by where the student's own guided
trajectories end, the second at states of the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from einops import reduce, repeat
from torch import Tensor

from ..config.settings import ErasureConfig
from ..models.denoiser import Denoiser
from ..models.swap import Weight
from .shares import ALONE, Alone
from .terms import Term, preserving, prompts_of
from .trajectories import Trajectories

TRAJECTORIES, STEPS = 4, 5
CONTROL_PROMPTS = ("a photo of a dog", "a portrait of a woman", "a city street at night")
"""Prompts that an erasure should leave alone, watched but not trained on."""

K = TypeVar("K")
V = TypeVar("V")

_PROBE_SEED = 0x5EED
_TELLING = 0.1


@dataclass(frozen=True)
class ProbeReport:
    """Shares of concepts, by the lines that name them, and drifts of prompts.

    Attributes:
        share: 1 before training; 0 where the student draws what the teacher does without the
            concept, or lies beyond that. Of several prompts, the worst.
        prompt: which one that is.
        distance: |student - without| / |with - without| there, of what is drawn.
        drift: |student - teacher| / |teacher| for preserved and control prompts.
        reach: |concept - base| / |base|, how far the concept itself moves a prediction there.
    """

    share: dict[str, float]
    prompt: dict[str, str]
    distance: dict[str, float]
    drift: dict[str, float]
    reach: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return asdict(self)


@dataclass(frozen=True)
class _States:
    """What the teacher predicts for a prompt along its trajectories; rows are states.

    On the CPU: at SDXL's size all of them would take 0.3 GB of the device.
    """

    x: Tensor
    sigma: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class _Drawn:
    """Where the teacher's trajectories for a term end, with its concept and without, [n, C, h, w]
    on the CPU; and of the first's states |concept - base|, alone and as a part of |base|."""

    shown: Tensor
    without: Tensor
    moved: float
    reach: float


def watched_prompts(config: ErasureConfig) -> tuple[str, ...]:
    """Those whose drift is measured."""
    return (*(term.student for term in preserving(config)), *CONTROL_PROMPTS)


def is_plain(term: Term) -> bool:
    """Whether a term's prompt without its concept is its base, and not what `<-` leaves."""
    return term.concept == term.student


class Probes:
    """Records the teacher once; `measure` then compares the student with it.

    From the same noise, with the prompt s that a term's student is given, the teacher draws x(s)
    and, following d*(s) - [d*(c) - d*(base)], x0: for a plain line what the base leads to. Of what
    the student draws for s, in latents,

        left = 1 - <x(s) - x_student(s), x(s) - x0> / |x(s) - x0|^2,

    and the share is the root mean square of max(left, 0) over trajectories: one that goes beyond x0
    does not make good what another leaves. Predictions are not compared: d*(c) - d*(base) can be
    gone from the student at every state of the teacher's trajectories and an object still be drawn,
    since a little of it at high noise is enough (BENCHMARKS.md).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        probed: Mapping[str, Sequence[Term]],
        config: ErasureConfig,
        sampling_batch: int | None = None,
        ranks: Alone = ALONE,
    ) -> None:
        """
        Args:
            probed: by line, the terms whose worst is its share.
            config: trajectories have no more steps than its own, so that probing stays cheap.
            sampling_batch: how many evaluations go through the network together.
            ranks: who keeps what is recorded and measures it, each its share.
        """
        self._denoiser, self._config, self._sampling_batch = denoiser, config, sampling_batch
        self._ranks = ranks
        self._watched = watched_prompts(config)
        every: list[Term | str] = [*chain(*probed.values()), *self._watched]
        own = ranks.share([*dict.fromkeys(every)])
        terms = [what if isinstance(what, Term) else Term(what, what) for what in own]
        # Held out whatever the run's seed is.
        seed = _PROBE_SEED + (config.seed == _PROBE_SEED)
        asked = denoiser, prompts_of(terms), config, TRAJECTORIES, STEPS, seed
        self._trajectories = Trajectories(*asked)
        self._drawn = {what: self._draw(what) for what in own if isinstance(what, Term)}
        self._states = {what: self._record(what) for what in own if isinstance(what, str)}
        self._probed = self._telling(probed)

    def _draw(self, term: Term) -> _Drawn:
        """By the teacher, with the term's concept and without."""
        prompts = term.rollout()
        squares = torch.zeros(2, dtype=torch.float64)

        def see(_: Tensor, __: float, predictions: Sequence[Tensor]) -> None:
            predicted = dict(zip(prompts, predictions, strict=True))
            base = predicted[term.base]
            moved = predicted[str(term.concept)] - base
            squares.add_(torch.stack([t.square().sum() for t in (moved, base)]).cpu())

        def lead(predictions: Sequence[Tensor]) -> Tensor:
            once = replace(term, anchor=term.student, push=1.0)
            return once.target(dict(zip(prompts, predictions, strict=True)))

        together = self._sampling_batch
        shown = self._trajectories.follow(prompts, together, see)
        if is_plain(term):
            without = self._trajectories.follow((term.base, ""), together)
        else:
            without = self._trajectories.follow(prompts, together, lead=lead)
        moved, base = squares.sqrt()
        return _Drawn(shown, without, float(moved), float(moved / base))

    def _record(self, prompt: str) -> _States:
        """Along the teacher's trajectories for a watched prompt."""
        seen: list[tuple[Tensor, float, Tensor]] = []

        def see(x: Tensor, sigma: float, predictions: Sequence[Tensor]) -> None:
            seen.append((x.cpu(), sigma, predictions[0].cpu()))

        self._trajectories.follow((prompt, ""), self._sampling_batch, see)
        xs, levels, predicted = zip(*seen, strict=True)
        sigma = repeat(torch.tensor(levels), "s -> (s n)", n=TRAJECTORIES)
        return _States(torch.cat(xs), sigma, torch.cat(predicted))

    @property
    def rows(self) -> int:
        """Evaluations that a measurement takes here."""
        leading = 1 if self._denoiser.is_guided else 2
        asked = [term for term in chain(*self._probed.values()) if term in self._drawn]
        states = self._trajectories.states
        return states * (leading * len({*asked}) + len(self._states))

    @torch.no_grad()
    def measure(self, student: Mapping[str, Weight]) -> ProbeReport:
        """Compares the student of these tensors with the recorded teacher."""
        report = ProbeReport({}, {}, {}, {})
        terms = dict.fromkeys(chain(*self._probed.values()))
        with self._denoiser.swapped(student):
            left = self._everywhere(self._left, terms, self._drawn)
            report.drift.update(self._everywhere(self._drift, self._watched, self._states))
        reaches = self._everywhere(lambda term: self._drawn[term].reach, terms, self._drawn)
        for line, asked in self._probed.items():
            worst = max((*left[term], term.student) for term in asked)
            report.share[line], report.distance[line], report.prompt[line] = worst
            report.reach[line] = max(reaches[term] for term in asked)
        return report

    def _everywhere(
        self, measure: Callable[[K], V], what: Iterable[K], here: Container[K]
    ) -> dict[K, V]:
        """What ranks measure together, each where it has what was recorded."""
        own = {key: measure(key) for key in what if key in here}
        found = dict(chain(*(part.items() for part in self._ranks.gather(own))))
        return {key: found[key] for key in what}

    def _telling(self, probed: Mapping[str, Sequence[Term]]) -> dict[str, list[Term]]:
        """Those in which the concept moves the teacher: a style named as an object may not."""
        every = [*chain(*probed.values())]
        moved = self._everywhere(lambda term: self._drawn[term].moved, every, self._drawn)
        most = {line: max(moved[term] for term in terms) for line, terms in probed.items()}
        return {
            line: [term for term in terms if moved[term] >= _TELLING * most[line]]
            for line, terms in probed.items()
        }

    def _left(self, term: Term) -> tuple[float, float]:
        """Share and distance."""
        drawn = self._drawn[term]
        own = self._trajectories.follow((term.student, ""), self._together)
        whole = drawn.shown - drawn.without
        taken, most = (
            reduce(part, "n ... -> n", "sum")
            for part in ((drawn.shown - own) * whole, whole.square())
        )
        share = (1 - taken / most).relu().square().mean().sqrt()
        return float(share), float((own - drawn.without).norm() / whole.norm())

    def _drift(self, prompt: str) -> float:
        states = self._states[prompt]
        own = self._predict(states, prompt)
        return float((own - states.predicted).norm() / states.predicted.norm())

    def _predict(self, states: _States, prompt: str) -> Tensor:
        """The student's direction at all states, on the CPU."""
        device = self._denoiser.device
        parts = torch.arange(len(states.x)).split(self._together)
        return torch.cat(
            [
                self._denoiser.predict(
                    states.x[rows].to(device),
                    states.sigma[rows].to(device),
                    self._trajectories.rows(prompt, len(rows)),
                ).cpu()
                for rows in parts
            ]
        )

    @property
    def _together(self) -> int:
        """Evaluations of the student at once: no more than in training, or in a round."""
        batch = self._config.training.batch_size
        return min(batch, self._sampling_batch or batch)
