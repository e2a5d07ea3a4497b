"""The bank: every step of a guided trajectory becomes a training sample.

Guidance already evaluates the teacher on the prompt and on the empty prompt at each step, and
those two predictions are the target of the erasure. So a sample costs two evaluations, not the
fifty that sampling a fresh trajectory for each one takes. A prompt to preserve is followed in the
same way, and its own prediction is the target; the empty prompt's comes free with any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..config.settings import TrajectoryConfig
from ..errors import ConfigError
from ..models.denoiser import Conditioning, Denoiser, Schedule
from .samples import Samples
from .sampling import predict_together, sample, unit_noise
from .terms import Term, prompts_of


class Bank:
    """Samples rounds of trajectories for terms.

    Attributes:
        prompts: all prompts in play, the empty one first; `conditioning` has a row for each.
        evaluations: rows of the network evaluated so far.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        terms: Sequence[Term],
        trajectory: TrajectoryConfig,
        size: tuple[int, int],
        sampling_batch: int | None = None,
    ) -> None:
        """
        Args:
            size: width and height of the pictures, in pixels.
            sampling_batch: how many evaluations go through the network together; None for all of
                a step.

        Raises:
            ConfigError: the text encoder sees nothing in a concept.
        """
        self.denoiser, self.trajectory, self._size = denoiser, trajectory, size
        self._sampling_batch = sampling_batch
        self._erasing = [term for term in terms if term.concept is not None]
        self._preserving = [term for term in terms if term.concept is None]
        self._empty = next((term for term in self._preserving if not term.student), None)
        self.prompts = prompts_of(terms)
        self.conditioning = denoiser.encode(self.prompts, *size)
        self.evaluations = 0
        self._refuse_meaningless()

    def _refuse_meaningless(self) -> None:
        context = self.conditioning.context
        for term in self._erasing:
            if torch.equal(context[self.prompts.index(str(term.concept))], context[0]):
                raise ConfigError(
                    f'the concept "{term.concept}" encodes to the same tokens as the empty prompt: '
                    "name it in words that the text encoder knows"
                )

    def sample_round(
        self, index: int, noise: torch.Generator, student: Mapping[str, Tensor] | None = None
    ) -> Samples:
        """Round number `index`: `trajectory.count` trajectories that erase, and as many samples
        that preserve; on the CPU.

        Args:
            noise: the stream that the initial latents and the choice of states come from.
            student: its tensors, when trajectories are sampled on policy.
        """
        followed, empty = self._rollout_all(self._turns(index), noise, student)
        if empty:
            lacking = 2 * followed.erasing - len(followed)
            followed = Samples.cat([followed, Samples.cat(empty).subsample(lacking, noise)])
        return followed

    def _turns(self, index: int) -> list[Term]:
        """The round's trajectories: terms that erase, then those that preserve, each in turn."""
        count = self.trajectory.count
        turns = range(index * count, (index + 1) * count)
        terms = [self._erasing[i % len(self._erasing)] for i in turns]
        if self._preserving:
            preserving = [self._preserving[i % len(self._preserving)] for i in turns]
            # The empty prompt has its turn like the others, but needs no trajectory of its own.
            terms += [term for term in preserving if term.student]
        return terms

    def _rollout_all(
        self, terms: list[Term], noise: torch.Generator, student: Mapping[str, Tensor] | None
    ) -> tuple[Samples, list[Samples]]:
        """Samples of all steps of all trajectories, and, where it is preserved, the empty prompt's
        at the same states.

        Terms that need as many predictions a step are followed side by side.
        """
        starts = self._starts(len(terms), noise)
        schedule = self.denoiser.schedule(self.trajectory.steps)
        followed: list[Samples] = []
        empty: list[Samples] = []
        for width in sorted({len(term.rollout()) for term in terms}, reverse=True):
            rows = [i for i, term in enumerate(terms) if len(term.rollout()) == width]
            found = self._rollout([terms[i] for i in rows], starts[rows], schedule, student)
            followed += found[0]
            empty += found[1]
        return Samples.cat(followed), empty

    def _starts(self, count: int, noise: torch.Generator) -> Tensor:
        shape = self.denoiser.latent_shape(*self._size)
        return unit_noise((count, *shape), noise, self.denoiser.device)

    def _rollout(
        self,
        terms: list[Term],
        noise: Tensor,
        schedule: Schedule,
        student: Mapping[str, Tensor] | None = None,
    ) -> tuple[list[Samples], list[Samples]]:
        """As `_rollout_all`, a Samples a step, for terms that need as many predictions."""
        columns = [
            self._rows(prompts) for prompts in zip(*(t.rollout() for t in terms), strict=True)
        ]
        followed: list[Samples] = []
        empty: list[Samples] = []

        def on_step(x: Tensor, sigma: float, predictions: Sequence[Tensor]) -> None:
            teacher = predictions
            if student:
                with self._teacher(student):
                    teacher = predict_together(
                        self.denoiser, x, sigma, columns, self._sampling_batch
                    )
                self.evaluations += len(x) * len(teacher)
            self.evaluations += len(x) * len(predictions)
            followed.append(self._samples(terms, x, sigma, teacher))
            if self._empty:
                empty.append(self._samples([self._empty] * len(terms), x, sigma, [teacher[1]]))

        with self.denoiser.swapped(student) if student else nullcontext():
            followed_by = columns[:2] if student else columns
            guidance = self.trajectory.guidance
            sample(
                self.denoiser, noise, followed_by, schedule, guidance, on_step, self._sampling_batch
            )
        return followed, empty

    def _rows(self, prompts: Sequence[str]) -> Conditioning:
        return self.conditioning.select([self.prompts.index(p) for p in prompts])

    def _teacher(self, student: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        teacher = self.denoiser.parameters()
        return self.denoiser.swapped({name: teacher[name] for name in student})

    def _samples(
        self, terms: list[Term], x: Tensor, sigma: float, predictions: Sequence[Tensor]
    ) -> Samples:
        """One sample a term, given the teacher's predictions for the prompts of its rollout; terms
        that erase come first (they always do in a round)."""
        targets = [
            term.target(dict(zip(term.rollout(), row, strict=True)))
            for term, row in zip(terms, zip(*predictions, strict=True), strict=True)
        ]
        weight = self.denoiser.prediction.loss_weight(sigma)
        return Samples(
            x.cpu(),
            torch.full((len(terms),), sigma),
            torch.tensor([self.prompts.index(term.student) for term in terms]),
            torch.stack(targets).cpu(),
            torch.tensor([weight * term.weight for term in terms]),
            sum(term.concept is not None for term in terms),
        )
