"""A step of the optimizer, with all that belongs to it: learning rate, unscaling, clipping."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config.settings import TrainingConfig
from ..errors import ESDError
from ..method.shares import ALONE, Alone
from .gradients import Bf16Gradients
from .optimizer import make_optimizer

_LEAST_SCALE = 2.0**-10
"""Of a loss in fp16, below which it is not its scale that overflows."""


class Update:
    """Takes gradients by `backward`, and moves the masters by `step`."""

    def __init__(
        self,
        masters: list[nn.Parameter],
        training: TrainingConfig,
        dtype: torch.dtype,
        keeps_bf16: bool,
        ranks: Alone = ALONE,
    ) -> None:
        """
        Args:
            dtype: what the network computes in.
            keeps_bf16: whether gradients wait for the step in bf16.
        """
        self._masters, self._training, self._ranks = masters, training, ranks
        self.optimizer = make_optimizer(training, masters, ranks)
        self.bf16_gradients = Bf16Gradients(masters) if keeps_bf16 else None
        self._is_scaled = dtype == torch.float16
        self.scaler = self._new_scaler()

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self._masters[0].device.type, enabled=self._is_scaled)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def add_up(self) -> None:
        """Sums the gradients of all ranks, each of which has those of its share of the batch."""
        if self._ranks.count == 1:
            return
        for master in self._masters:
            if master.grad is None:  # its share is empty
                master.grad = torch.zeros_like(master)
        self._ranks.add_up([master.grad for master in self._masters if master.grad is not None])

    def step(self, number: int) -> bool:
        """Moves all masters; none when it raises, or when gradients in fp16 have overflowed.

        Args:
            number: of the step, from 0 on, for the learning rate.

        Returns:
            Whether it has moved them. If not, the next gradients are scaled less.

        Raises:
            ESDError: they overflow at every scale.
        """
        training = self._training
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * self._factor(number)
        if self.bf16_gradients:
            self.bf16_gradients.step(self.optimizer, training.max_grad_norm)
            return True
        scale = self.scaler.get_scale()
        if scale < _LEAST_SCALE:
            raise ESDError(
                "the gradients are not finite: set `training.precision` to bf16 or fp32, or lower "
                "`training.learning_rate`"
            )
        self.scaler.unscale_(self.optimizer)
        if training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._masters, training.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return self.scaler.get_scale() >= scale

    def _factor(self, number: int) -> float:
        """Rises over the warm-up; a linear schedule falls to 0 over the second half."""
        training = self._training
        falling = 2 * (1 - number / training.steps) if training.schedule == "linear" else 1.0
        return min(1.0, (number + 1) / (training.warmup + 1), falling)

    def discard(self) -> None:
        """Forgets the gradients of a step that was broken off."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.bf16_gradients:
            self.bf16_gradients.clear()
        # A scaler remembers that it has unscaled the gradients, and would refuse the next ones.
        state, self.scaler = self.scaler.state_dict(), self._new_scaler()
        self.scaler.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self._ranks.state_of(self.optimizer),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ValueError or KeyError when the state is of other masters."""
        entries = {int(index): dict(entry) for index, entry in state["optimizer"].items()}
        self._ranks.load_state(self.optimizer, entries)
        self.scaler.load_state_dict(state["scaler"])
