"""The bank: every step of a guided trajectory becomes a training sample.

Guidance already evaluates the teacher on the prompt and on the empty prompt at each step, and
those two predictions are the target of the erasure. So a sample costs two evaluations, not the
fifty that sampling a fresh trajectory for each one takes. A prompt to preserve is followed in the
same way, and its own prediction is the target; the empty prompt's comes free with any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config.settings import TrajectoryConfig
from ..errors import ConfigError
from ..models.denoiser import Conditioning, Denoiser, Schedule
from ..models.swap import Weight
from .objective import Weigh
from .samples import Placed, Samples
from .sampling import predict_together, sample, unit_noise
from .shares import ALONE, Alone
from .terms import RoundTerms, Term, TermSource, prompts_of

_ENCODED = 64
"""Prompts that go through the text encoders together."""
_BESIDE = 2 / 3
"""Share of what preserves, beside trajectories of its own, that has a prompt for every state."""
_MANY = 2**20
"""More than a round has trajectories, or a trajectory steps."""


@dataclass
class _Found:
    """Samples of a round, a part a step: of what was followed, of what was predicted beside it, and
    of the empty prompt and anchors, which come free."""

    followed: list[Placed] = field(default_factory=list)
    beside: list[Placed] = field(default_factory=list)
    free: list[Placed] = field(default_factory=list)
    evaluations: int = 0


_AFTER_ANCHORS = _MANY
"""Between two steps."""


def _places(width: int, step: int, trajectories: Tensor) -> Tensor:
    """Where samples stand among a round's, whichever ranks they come from: by the predictions that
    their terms need, the most first, then by step, then by trajectory."""
    return ((-width * _MANY + step) * 2 * _MANY) + trajectories


class Bank:
    """Samples rounds of trajectories for terms.

    Attributes:
        prompts: all prompts in play, the empty one first; `conditioning` has a row for each, on the
            CPU.
        evaluations: rows of the network evaluated so far.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        source: TermSource,
        trajectory: TrajectoryConfig,
        size: tuple[int, int],
        sampling_batch: int | None = None,
        weigh: Weigh | None = None,
        ranks: Alone = ALONE,
    ) -> None:
        """
        Args:
            size: width and height of the pictures, in pixels.
            weigh: what samples of a noise level count in the loss; without it, by the form of the
                model's own output.
            sampling_batch: how many evaluations go through the network together; None for all of
                a step.
            ranks: who samples a round's trajectories, each its share.

        Raises:
            ConfigError: the text encoder sees nothing in a concept.
        """
        self.denoiser, self.trajectory, self._size = denoiser, trajectory, size
        self.source, self._sampling_batch, self._ranks = source, sampling_batch, ranks
        self._weigh = weigh or denoiser.prediction.loss_weight
        preserving = (term for term in source.terms if term.concept is None)
        self._empty = next((term for term in preserving if not term.student), None)
        self.prompts = prompts_of(source.terms)
        self._places = {prompt: place for place, prompt in enumerate(self.prompts)}
        self.conditioning = self._encoded()
        self.evaluations = 0
        self._refuse_meaningless()

    def _encoded(self) -> Conditioning:
        """A part at a time, on the CPU, and each rank its share: there may be many hundreds."""
        own = self._ranks.share(range(len(self.prompts)))
        parts = []
        for start in range(0, len(own), _ENCODED):
            prompts = [self.prompts[place] for place in own[start : start + _ENCODED]]
            found = self.denoiser.encode(prompts, *self._size)
            parts.append(found.map(lambda tensor: tensor.cpu()))
        shares = self._ranks.gather((own, parts))
        places = torch.tensor([place for share, _ in shares for place in share])
        encoded = Conditioning.cat([part for _, theirs in shares for part in theirs])
        return encoded.select(places.argsort())

    def _refuse_meaningless(self) -> None:
        context = self.conditioning.context
        for term in self.source.terms:
            concept = term.concept
            if concept is not None and torch.equal(context[self._places[concept]], context[0]):
                raise ConfigError(
                    f'the concept "{concept}" encodes to the same tokens as the empty prompt: '
                    "name it in words that the text encoder knows"
                )

    def rows(self, condition: Tensor) -> Conditioning:
        """What the student is given for samples of these prompts, on the device."""
        return self.conditioning.select(condition.cpu()).map(
            lambda tensor: tensor.to(self.denoiser.device)
        )

    def sample_round(
        self, index: int, noise: torch.Generator, student: Mapping[str, Weight] | None = None
    ) -> Samples:
        """Round number `index`: `trajectory.count` trajectories that erase, and samples that
        preserve, as many as the terms want where there are as many; on the CPU.

        Args:
            noise: the stream that the initial latents and the choice of states come from.
            student: its tensors, when trajectories are sampled on policy.
        """
        own = self._rollout_all(self.source.of_round(index), noise, student or {})
        found = self._ranks.gather(own)
        self.evaluations += sum(part.evaluations for part in found)
        beside = [one for part in found for one in part.beside]
        free = [one for part in found for one in part.free]
        followed = Placed.in_order([one for part in found for one in part.followed])
        lacking = (1 + self.source.preserving) * followed.erasing - len(followed)
        parts = [followed]
        if beside:
            fresh = Placed.in_order(beside)
            share = min(round(_BESIDE * lacking) if free else lacking, len(fresh))
            parts.append(fresh.subsample(share, noise))
            lacking -= share
        if free:
            parts.append(Placed.in_order(free).subsample(lacking, noise))
        return Samples.cat(parts)

    def _rollout_all(
        self, terms: RoundTerms, noise: torch.Generator, student: Mapping[str, Weight]
    ) -> _Found:
        """This rank's share of the trajectories, from the noise that is drawn for all.

        Terms that need as many predictions a step are followed side by side.
        """
        x = self._starts(len(terms.followed), noise)
        steps, found = self.trajectory.steps, _Found()
        schedule = self.denoiser.schedule(steps, *self._size)
        parts = terms.parts(steps)
        widths = [len(term.rollout()) for term in parts[0][1]]
        own = self._ranks.share(sorted(range(len(x)), key=lambda row: -widths[row]))
        for part, leading in parts:
            levels = schedule.part(part)
            widths = [len(term.rollout()) for term in leading]
            for width in sorted({*widths}, reverse=True):
                rows = [row for row in range(len(x)) if widths[row] == width and row in own]
                if rows:
                    followed = {row: leading[row] for row in rows}
                    beside = [terms.beside[row :: terms.erasing] for row in rows]
                    x[rows] = self._rollout(followed, x[rows], levels, part, found, student, beside)
        return found

    def _starts(self, count: int, noise: torch.Generator) -> Tensor:
        shape = self.denoiser.latent_shape(*self._size)
        return unit_noise((count, *shape), noise, self.denoiser.device)

    def _rollout(
        self,
        followed: Mapping[int, Term],
        x: Tensor,
        schedule: Schedule,
        steps: range,
        found: _Found,
        student: Mapping[str, Weight],
        beside: Sequence[Sequence[Term]] = (),
    ) -> Tensor:
        """Adds to `found` what trajectories show that need as many predictions a step.

        Args:
            followed: terms by trajectory, those that erase first.
            x: where they start. schedule: the levels of these steps.
            steps: their numbers in the whole trajectory.
            student: its tensors, on policy, or none.
            beside: for each trajectory that erases, a preserving term for every step of the whole.

        Returns:
            Where they end.
        """
        terms = list(followed.values())
        asked = zip(*(term.rollout() for term in terms), strict=True)
        columns = [self._conditions(prompts) for prompts in asked]
        erasing = sum(term.concept is not None for term in terms)
        trajectories, numbers = torch.tensor([*followed]), iter(steps)
        weights = self.denoiser.parameters()

        def on_step(x: Tensor, sigma: float, predictions: Sequence[Tensor]) -> None:
            step = next(numbers)
            here = _places(len(columns), step, trajectories)
            found.evaluations += 0 if columns[0].guidance is None else len(x)  # that led here
            # The teacher, also in the midst of the student's trajectory.
            with self.denoiser.swapped({name: weights[name] for name in student}):
                teacher = self._predict(x, sigma, columns, found) if student else predictions
                found.evaluations += len(x) * len(predictions)
                found.followed.append(Placed(here, self._samples(terms, x, sigma, teacher)))
                found.free += self._free(terms, x, sigma, teacher, here)
                fresh = [of_row[step] for of_row in beside[:erasing] if of_row]
                if fresh:
                    seen = x[: len(fresh)]
                    own = self._conditions([term.student for term in fresh])
                    predicted = self._predict(seen, sigma, [own], found)
                    samples = self._samples(fresh, seen, sigma, predicted)
                    found.beside.append(Placed(here[: len(fresh)], samples))

        with self.denoiser.swapped(student):
            guiding = columns[:2] if student else columns
            guidance, together = self.trajectory.guidance, self._sampling_batch
            return sample(self.denoiser, x, guiding, schedule, guidance, on_step, together)

    def _predict(
        self, x: Tensor, sigma: float, columns: Sequence[Conditioning], found: _Found
    ) -> list[Tensor]:
        """As `predict_together`, and counted."""
        found.evaluations += len(x) * len(columns)
        return predict_together(self.denoiser, x, sigma, columns, self._sampling_batch)

    def _free(
        self,
        terms: Sequence[Term],
        x: Tensor,
        sigma: float,
        predictions: Sequence[Tensor],
        places: Tensor,
    ) -> list[Placed]:
        """Preserving samples of prompts that are predicted along the way anyhow."""
        if not self._empty:
            return []
        of_empty = self._samples([self._empty] * len(terms), x, sigma, [predictions[1]])
        empty = Placed(places + _AFTER_ANCHORS, of_empty)
        erasing = [i for i, term in enumerate(terms) if term.concept is not None]
        rows = [i for i in erasing if terms[i].anchor not in ("", terms[i].student)]
        if not (rows and self.source.preserves_anchors):
            return [empty]
        weight = self._empty.weight
        anchors = [Term(terms[i].anchor, terms[i].anchor, weight=weight) for i in rows]
        own = [predictions[terms[i].rollout().index(terms[i].anchor)][i] for i in rows]
        of_anchors = self._samples(anchors, x[rows], sigma, [torch.stack(own)])
        return [Placed(places[rows], of_anchors), empty]

    def _conditions(self, prompts: Sequence[str]) -> Conditioning:
        return self.rows(torch.tensor([self._places[prompt] for prompt in prompts]))

    def _samples(
        self, terms: Sequence[Term], x: Tensor, sigma: float, predictions: Sequence[Tensor]
    ) -> Samples:
        """One sample a term, given the teacher's predictions for the prompts of its rollout, of
        which one that preserves needs the first alone; terms that erase come first."""
        targets = [
            term.target(dict(zip(term.rollout(), row, strict=False)))
            for term, row in zip(terms, zip(*predictions, strict=True), strict=True)
        ]
        weight = self._weigh(sigma)
        return Samples(
            x.cpu(),
            torch.full((len(terms),), sigma),
            torch.tensor([self._places[term.student] for term in terms]),
            torch.stack(targets).cpu(),
            torch.tensor([weight * term.weight for term in terms]),
            sum(term.concept is not None for term in terms),
        )
