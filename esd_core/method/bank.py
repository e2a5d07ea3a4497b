"""The bank: every step of a guided trajectory becomes a training sample.

Guidance already evaluates the teacher on the prompt and on the empty prompt at each step, and
those two predictions are the target of the erasure. So a sample costs two evaluations, not the
fifty that sampling a fresh trajectory for each one takes. A prompt to preserve is followed in the
same way, and its own prediction is the target; the empty prompt's comes free with any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..config.concepts import Concept
from ..config.settings import ErasureConfig
from ..errors import ConfigError
from ..models.denoiser import Conditioning, Denoiser, Schedule
from .objective import erasure_target
from .sampling import predict_together, sample, unit_noise


@dataclass(frozen=True)
class Samples:
    """N regression samples, on the CPU; the first `erasing` of them erase, the rest preserve.

    Attributes:
        x: noisy latents, float32 [N, C, h, w]. sigma: their noise levels, float32 [N].
        condition: which of the bank's prompts the student is given, int64 [N].
        target: what it should predict, float32 [N, C, h, w]. weight: in the loss, float32 [N].
    """

    x: Tensor
    sigma: Tensor
    condition: Tensor
    target: Tensor
    weight: Tensor
    erasing: int

    def __len__(self) -> int:
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "erasing"}

    def rows(self, rows: Tensor) -> dict[str, Tensor]:
        """The tensors of these samples."""
        return {name: value[rows] for name, value in self.tensors().items()}

    def last(self) -> Samples:
        """The last sample alone, of a bank of one trajectory."""
        return Samples(**self.rows(torch.tensor([len(self) - 1])), erasing=min(1, self.erasing))

    def order(self, generator: torch.Generator, batch_size: int, reuse: int) -> Tensor:
        """Rows of shuffled batches, int64 [batches, B]: every one erases and preserves in halves.

        Each erasing sample comes `reuse` times, but for the few that fill no whole batch.
        """
        preserving = len(self) - self.erasing
        share = batch_size - (batch_size // 2 if preserving else 0)
        halves = [(0, self.erasing, min(share, self.erasing))]
        if preserving:
            halves.append((self.erasing, preserving, min(batch_size // 2, preserving)))
        passes = []
        for _ in range(reuse):
            shuffled = [start + torch.randperm(n, generator=generator) for start, n, _ in halves]
            batches = min(n // size for _, n, size in halves)
            parts = [
                rows[: batches * size].view(batches, size)
                for rows, (_, _, size) in zip(shuffled, halves, strict=True)
            ]
            passes.append(torch.cat(parts, 1))
        return torch.cat(passes)


@dataclass(frozen=True)
class Line:
    """What one trajectory follows, and the further prompt it needs predicted ("" for none)."""

    follow: str
    further: str = ""
    concept: Concept | None = None


class Bank:
    """Samples rounds of trajectories for the concepts and the preserved prompts of a config.

    Attributes:
        prompts: all prompts in play, the empty one first; `conditioning` has a row for each.
        evaluations: rows of the network evaluated so far.
        together: how many of them at a time; None for all of a step.
    """

    def __init__(self, denoiser: Denoiser, config: ErasureConfig) -> None:
        self.denoiser, self.config = denoiser, config
        self.concepts = config.concepts
        mentioned = [p for c in self.concepts for p in (c.name, c.student_prompt, c.target_base)]
        self.prompts = tuple(dict.fromkeys(["", *mentioned, *config.preserved]))
        self.conditioning = denoiser.encode(self.prompts, config.width, config.height)
        self.evaluations = 0
        self.together: int | None = None
        self._refuse_meaningless()

    def _refuse_meaningless(self) -> None:
        context = self.conditioning.context
        for concept in self.concepts:
            if torch.equal(context[self.prompts.index(concept.name)], context[0]):
                raise ConfigError(
                    f'the concept "{concept.name}" encodes to the same tokens as the empty prompt: '
                    "name it in words that the text encoder knows"
                )

    def _rows(self, prompts: Sequence[str]) -> Conditioning:
        return self.conditioning.select([self.prompts.index(p) for p in prompts])

    def sample_round(
        self, index: int, noise: torch.Generator, student: Mapping[str, Tensor] | None = None
    ) -> Samples:
        """Round number `index`: `trajectory.count` trajectories that erase, and as many samples
        that preserve.

        Args:
            noise: the stream that the initial latents and the choice of states come from.
            student: its tensors, when trajectories are sampled on policy.
        """
        own, empty = self._gather(self._lines(index), noise, student)
        if self.config.preserved and self.config.preserve_empty:
            lacking = 2 * own.erasing - len(own)
            own = join([own, choose(empty, lacking, noise)])
        return own

    def _gather(
        self, lines: list[Line], noise: torch.Generator, student: Mapping[str, Tensor] | None
    ) -> tuple[Samples, Samples]:
        """Samples of all steps of all trajectories, and the empty prompt's at the same states."""
        starts = self._starts(len(lines), noise)
        schedule = self.denoiser.schedule(self.config.trajectory.steps)
        parts = []
        for further in (True, False):
            rows = [i for i, line in enumerate(lines) if bool(line.further) == further]
            if rows:
                parts.append(
                    self._follow([lines[i] for i in rows], starts[rows], schedule, student)
                )
        own, empty = zip(*parts, strict=True)
        return join(own), join(empty)

    def _starts(self, count: int, noise: torch.Generator) -> Tensor:
        shape = self.denoiser.latent_shape(self.config.width, self.config.height)
        return unit_noise((count, *shape), noise, self.denoiser.device)

    def _lines(self, index: int) -> list[Line]:
        """The round's trajectories: concepts, then named preserved prompts, each in turn."""
        count = self.config.trajectory.count
        lines = []
        for i in range(index * count, (index + 1) * count):
            concept = self.concepts[i % len(self.concepts)]
            further = concept.name if concept.erase_from else concept.anchor
            lines.append(Line(concept.student_prompt, further, concept))
        preserved = self.config.preserved
        if preserved:
            # The empty prompt has its turn like the others, but needs no trajectory of its own.
            turns = [
                preserved[i % len(preserved)] for i in range(index * count, (index + 1) * count)
            ]
            lines += [Line(prompt) for prompt in turns if prompt]
        return lines

    def _follow(
        self,
        lines: list[Line],
        noise: Tensor,
        schedule: Schedule,
        student: Mapping[str, Tensor] | None = None,
    ) -> tuple[Samples, Samples]:
        """As `_gather`, for lines that all have a further prompt, or none of them has."""
        prompts = [self._rows([line.follow for line in lines]), self._rows([""] * len(lines))]
        furthers = [line.further for line in lines if line.further]
        extra = [self._rows(furthers)] if furthers else []
        own: list[Samples] = []
        empty: list[Samples] = []

        def record(x: Tensor, sigma: float, predictions: Sequence[Tensor]) -> None:
            teacher = predictions
            if student:
                with self._teacher(student):
                    teacher = predict_together(
                        self.denoiser, x, sigma, [*prompts, *extra], self.together
                    )
                self.evaluations += len(x) * len(teacher)
            self.evaluations += len(x) * len(predictions)
            own.append(self._samples(lines, x, sigma, teacher))
            empty.append(self._samples([Line("")] * len(lines), x, sigma, [teacher[1]]))

        with self.denoiser.swapped(student) if student else nullcontext():
            asked = prompts if student else [*prompts, *extra]
            guidance = self.config.trajectory.guidance
            sample(self.denoiser, noise, asked, schedule, guidance, record, self.together)
        return join(own), join(empty)

    def _teacher(self, student: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        teacher = self.denoiser.parameters()
        return self.denoiser.swapped({name: teacher[name] for name in student})

    def _samples(
        self, lines: list[Line], x: Tensor, sigma: float, predictions: Sequence[Tensor]
    ) -> Samples:
        """One sample a line; lines that erase come first (they always do in a round)."""
        targets = [self._target(line, [p[i] for p in predictions]) for i, line in enumerate(lines)]
        own_form = self.denoiser.prediction.loss_weight(sigma)
        weights = [
            own_form * (1.0 if line.concept else self.config.preserve_weight) for line in lines
        ]
        return Samples(
            x.cpu(),
            torch.full((len(lines),), sigma),
            torch.tensor([self.prompts.index(line.follow) for line in lines]),
            torch.stack(targets).cpu(),
            torch.tensor(weights),
            sum(line.concept is not None for line in lines),
        )

    def _target(self, line: Line, predictions: Sequence[Tensor]) -> Tensor:
        if line.concept is None:
            return predictions[0]
        followed, empty = predictions[:2]
        push = self.config.negative_guidance
        if line.concept.erase_from:
            # The anchor holds the concept here: one more step away from it is the published run.
            return erasure_target(followed, predictions[2], empty, push + 1)
        anchor = predictions[2] if line.concept.anchor else empty
        return erasure_target(anchor, followed, empty, push)


def join(parts: Sequence[Samples]) -> Samples:
    """All samples of all parts, those that erase first."""
    erasing = [torch.arange(len(p)) < p.erasing for p in parts]
    order = torch.cat(erasing).int().argsort(descending=True, stable=True)
    joined = {
        name: torch.cat([p.tensors()[name] for p in parts])[order] for name in parts[0].tensors()
    }
    return Samples(**joined, erasing=sum(p.erasing for p in parts))


def choose(samples: Samples, count: int, generator: torch.Generator) -> Samples:
    """As many of them, at random."""
    rows = torch.randperm(len(samples), generator=generator)[:count]
    return Samples(**samples.rows(rows), erasing=0)
