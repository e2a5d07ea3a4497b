"""Probes: how much of a concept is left, and what else has moved, without decoding a picture.

Both are measured at states of the teacher's own guided trajectories, from noise that training
never sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, TypeVar

import torch
from einops import repeat
from torch import Tensor

from ..config.settings import ErasureConfig
from ..models.denoiser import Conditioning, Denoiser
from ..models.swap import Weight
from .sampling import sample, unit_noise
from .shares import ALONE, Alone
from .terms import Term, preserving

TRAJECTORIES, STEPS = 2, 8
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
        share: 1 before training; 0 where all of the concept is taken away; -eta where the student
            has reached the target of `c` or `c <- f`. Of several prompts, the worst.
        prompt: which one that is.
        distance: |student - base| / |concept - base| there, which is eta at the target.
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
    """What the teacher predicts at the states of one prompt's trajectories; rows are states.

    On the CPU, and with one row of `prompt` for all: there are a dozen of these, and at SDXL's
    size they would take 0.3 GB of the device.
    """

    x: Tensor
    sigma: Tensor
    prompt: Conditioning
    predicted: dict[str, Tensor]


def watched_rollouts(config: ErasureConfig) -> list[tuple[str, ...]]:
    """Of the prompts whose drift is measured."""
    preserved = (term.student for term in preserving(config))
    return [(prompt, "") for prompt in (*preserved, *CONTROL_PROMPTS)]


class Probes:
    """Records the teacher once; `measure` then compares the student with it.

    With the prompt s that a term's student is given, its concept c, d = d*(c) - d*(base) and <,>
    summed over all states:  share = 1 - <d*(s) - d_student(s), d> / <d, d>.
    The plain ratio of norms cannot tell a concept that is there from one that is pushed to the
    other side, where the target lies; the sign of the projection can. What is taken away counts
    against all of the concept, so that it holds as well where s shows little of it.
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
            ranks: who keeps the states and measures there, each its share.
        """
        self._denoiser, self._config, self._sampling_batch = denoiser, config, sampling_batch
        self._ranks = ranks
        self._watched = watched_rollouts(config)
        self._states: dict[tuple[str, ...], _States] = {}
        rollouts = [term.rollout() for term in chain(*probed.values())]
        asked = ranks.share([*dict.fromkeys([*rollouts, *self._watched])])
        for width in sorted({len(prompts) for prompts in asked}):  # those are followed side by side
            alike = [prompts for prompts in asked if len(prompts) == width]
            most = sampling_batch or TRAJECTORIES * width * len(alike)
            together = max(1, most // (TRAJECTORIES * width))
            for start in range(0, len(alike), together):
                self._record(alike[start : start + together])
        self._probed = self._telling(probed)

    def _record(self, asked: Sequence[tuple[str, ...]]) -> None:
        """States of trajectories that all start from the same noise.

        asked: for each, the prompt that it follows, the empty one, and any other to predict.
        """
        config, denoiser = self._config, self._denoiser
        prompts = list(dict.fromkeys(p for column in zip(*asked, strict=True) for p in column))
        encoded = denoiser.encode(prompts, config.width, config.height)
        places = torch.tensor([[prompts.index(p) for p in row] for row in asked])
        columns = repeat(places, "p c -> c (p n)", n=TRAJECTORIES)
        # Held out whatever the run's seed is.
        seed = _PROBE_SEED + (config.seed == _PROBE_SEED)
        shape = denoiser.latent_shape(config.width, config.height)
        generator = torch.Generator().manual_seed(seed)
        noise = unit_noise((TRAJECTORIES, *shape), generator, denoiser.device)
        seen: list[tuple[Tensor, float, list[Tensor]]] = []

        def see(x: Tensor, sigma: float, predicted: Sequence[Tensor]) -> None:
            seen.append((x.cpu(), sigma, [prediction.cpu() for prediction in predicted]))

        sample(
            denoiser,
            repeat(noise, "n ... -> (p n) ...", p=len(asked)),
            [encoded.select(column) for column in columns],
            denoiser.schedule(min(STEPS, config.trajectory.steps), config.width, config.height),
            config.trajectory.guidance,
            see,
            self._sampling_batch,
        )
        sigma = torch.tensor([s for _, s, _ in seen])
        sigma = repeat(sigma, "s -> (s n)", n=TRAJECTORIES)
        for index, row in enumerate(asked):
            part = slice(index * TRAJECTORIES, (index + 1) * TRAJECTORIES)
            x = torch.cat([states[part] for states, _, _ in seen])
            predicted = [
                torch.cat([predictions[i][part] for _, _, predictions in seen])
                for i in range(len(row))
            ]
            own = encoded.select([int(places[index, 0])]).map(lambda tensor: tensor.cpu())
            self._states[row] = _States(x, sigma, own, dict(zip(row, predicted, strict=True)))

    @property
    def rows(self) -> int:
        """Evaluations that a measurement takes here."""
        asked = chain((term.rollout() for term in chain(*self._probed.values())), self._watched)
        return sum(len(self._states[prompts].x) for prompts in asked if prompts in self._states)

    @torch.no_grad()
    def measure(self, student: Mapping[str, Weight]) -> ProbeReport:
        """Compares the student of these tensors with the recorded teacher."""
        report = ProbeReport({}, {}, {}, {})
        with self._denoiser.swapped(student):
            every = {term: term.rollout() for term in chain(*self._probed.values())}
            left = self._everywhere(self._left, every)
            reaches = self._everywhere(self._reach, every)
            drifts = self._everywhere(self._drift, {prompts: prompts for prompts in self._watched})
        for line, terms in self._probed.items():
            worst = max((*left[term], term.student) for term in terms)
            report.share[line], report.distance[line], report.prompt[line] = worst
            report.reach[line] = max(reaches[term] for term in terms)
        report.drift.update({prompts[0]: drift for prompts, drift in drifts.items()})
        return report

    def _everywhere(
        self, measure: Callable[[K], V], what: Mapping[K, tuple[str, ...]]
    ) -> dict[K, V]:
        """What ranks measure together, each where it has the states; what: with whose those are."""
        here = {key: measure(key) for key, asked in what.items() if asked in self._states}
        found = dict(chain(*(part.items() for part in self._ranks.gather(here))))
        return {key: found[key] for key in what}

    def _telling(self, probed: Mapping[str, Sequence[Term]]) -> dict[str, list[Term]]:
        """Those in which the concept moves the teacher: a style named as an object may not."""
        every = chain(*probed.values())
        moved = self._everywhere(self._moved, {term: term.rollout() for term in every})
        most = {line: max(moved[term] for term in terms) for line, terms in probed.items()}
        return {
            line: [term for term in terms if moved[term] >= _TELLING * most[line]]
            for line, terms in probed.items()
        }

    def _moved(self, term: Term) -> float:
        return float(self._direction(term).norm())

    def _direction(self, term: Term) -> Tensor:
        predicted = self._states[term.rollout()].predicted
        return predicted[str(term.concept)] - predicted[term.base]

    def _reach(self, term: Term) -> float:
        base = self._states[term.rollout()].predicted[term.base]
        return float(self._direction(term).norm() / base.norm())

    def _left(self, term: Term) -> tuple[float, float]:
        """Share and distance."""
        states, direction = self._states[term.rollout()], self._direction(term)
        predicted = self._predict(states)
        taken = (states.predicted[term.student] - predicted) * direction
        share = 1 - float(taken.sum() / direction.square().sum())
        return share, float((predicted - states.predicted[term.base]).norm() / direction.norm())

    def _drift(self, prompts: tuple[str, ...]) -> float:
        states = self._states[prompts]
        own = states.predicted[prompts[0]]
        return float((self._predict(states) - own).norm() / own.norm())

    def _predict(self, states: _States) -> Tensor:
        """The student's direction at all states, on the CPU, in batches no larger than the
        training's, or a round's."""
        device = self._denoiser.device
        prompt = states.prompt.map(lambda tensor: tensor.to(device))
        batch = self._config.training.batch_size
        parts = torch.arange(len(states.x)).split(min(batch, self._sampling_batch or batch))
        return torch.cat(
            [
                self._denoiser.predict(
                    states.x[rows].to(device),
                    states.sigma[rows].to(device),
                    prompt.select([0] * len(rows)),
                ).cpu()
                for rows in parts
            ]
        )
