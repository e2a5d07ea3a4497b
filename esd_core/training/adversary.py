"""An adversary beside the student: it learns how to move prompts to where the concept comes back.

What is erased by its words is not erased from the space that a text encoder's states lie in: who
searches there, with the weights at hand, finds states that draw the concept again. RACE (Kim et al.
2024, arXiv 2405.16341) trains on what a few steps of projected gradient descent find, begun anew
for each sample. Here the search goes on all through a run, as an attacker's does: one move, the
same for all prompts (universal adversarial training, Shafahi et al. 2018, arXiv 1811.11304), which
goes a few steps before every second one of the student's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..method.bank import Bank
from ..method.objective import regression_loss
from ..method.samples import Samples
from ..method.shares import ALONE, Alone
from ..models.denoiser import Conditioning
from ..models.swap import Weight

REACH = 0.5
"""How far a prompt is moved at most, as a share of its distance from the empty prompt."""
STEPS, LENGTH = 3, 0.15
"""Of the search on a batch, and how long each is, as a share of the reach."""
_STREAM = 0xADE5
_SCALE = 2.0**10
"""Of a loss, that its slopes in fp16 do not vanish; their length is not looked at."""


class Adversary:
    """Moves the text states of what erases, in every second step.

    Attributes:
        move: [L, C] on the CPU, of length 1 at most; in float32 but beside text in float64.
    """

    def __init__(self, bank: Bank, seed: int, ranks: Alone = ALONE) -> None:
        self._bank, self._ranks = bank, ranks
        noise = torch.Generator().manual_seed(seed ^ _STREAM)
        context = bank.conditioning.context
        move = torch.randn(context.shape[1:], generator=noise)
        move = move.to(torch.promote_types(move.dtype, context.dtype))
        self.move = move / _length(move) / 2

    def learn(
        self, batch: Samples, micro_batch: int, student: Mapping[str, Weight], step: int
    ) -> None:
        """Steps of the search, to where the student predicts for the batch what the teacher does
        for the concept; none in a step that moves nothing.

        Args:
            micro_batch: samples that go through the network together.
            student: its tensors.
            step: of the run, from 0 on.
        """
        if not _moves(step):
            return
        denoiser, erasing = self._bank.denoiser, batch.select(torch.arange(batch.erasing))
        parts = [part.to(denoiser.device) for part in erasing.share(self._ranks).split(micro_batch)]
        wanted = [self._teacher(part) for part in parts]
        self._bank.evaluations += len(erasing)
        for _ in range(STEPS):
            move = self.move.to(denoiser.device).requires_grad_()
            slope = torch.zeros_like(move)
            with denoiser.swapped(student):
                for part, predictions in zip(parts, wanted, strict=True):
                    slope += self._slope(part, predictions, move)
            self._ranks.add_up([slope])
            if torch.isfinite(slope).all():
                moved = (move.detach() - LENGTH * slope / _length(slope)).cpu()
                self.move = moved / _length(moved).clamp(min=1)

    @torch.no_grad()
    def _teacher(self, samples: Samples) -> Tensor:
        prompts = self._bank.rows(samples.condition)
        return self._bank.denoiser.predict(samples.x, samples.sigma, prompts)

    def _slope(self, samples: Samples, wanted: Tensor, move: Tensor) -> Tensor:
        """Of the distance from the teacher's predictions, by the move."""
        prompts = self._moved(self._bank.rows(samples.condition), move)
        found = self._bank.denoiser.predict(samples.x, samples.sigma, prompts)
        loss = _SCALE * len(samples) * regression_loss(found, wanted, samples.weight)
        return torch.autograd.grad(loss, move)[0]

    def prompts(self, samples: Samples, step: int) -> Conditioning:
        """What the student is given for these samples in that step, on the device."""
        prompts = self._bank.rows(samples.condition)
        if not _moves(step):
            return prompts
        moved = self._moved(prompts, self.move.to(prompts.context.device)).context
        rows = samples.erasing
        return replace(prompts, context=torch.cat([moved[:rows], prompts.context[rows:]]))

    def _moved(self, prompts: Conditioning, move: Tensor) -> Conditioning:
        context = prompts.context
        empty = self._bank.rows(torch.zeros(1, dtype=torch.long)).context
        reach = REACH * _length(context.to(move.dtype) - empty.to(move.dtype))
        return replace(prompts, context=context + (reach * move).to(context.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {"move": self.move}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """KeyError or ValueError when the state is not of such a model."""
        if state["move"].shape != self.move.shape:
            raise ValueError("the state is of another model")
        self.move = state["move"]


def _moves(step: int) -> bool:
    return step % 2 == 1


def _length(states: Tensor) -> Tensor:
    """Of one prompt's states, or of each row's: [..., L, C] to [..., 1, 1]."""
    return states.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
