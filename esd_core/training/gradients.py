"""Gradients between the backward pass and the optimizer's step, in as few bits as they came in."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .optimizer import chunks, whole


def keeps_bf16(compute_dtype: torch.dtype, rank: int, passes: int) -> bool:
    """Whether 16 bits hold a step's gradients without loss.

    They do when each comes from one bf16 tensor in one backward pass. A sum of several passes has
    more digits, those of a low-rank student come from products in float32, and those of fp16 lose
    theirs when they are unscaled.
    """
    return compute_dtype == torch.bfloat16 and not rank and passes == 1


class Bf16Gradients:
    """Takes every gradient as it arrives at its float32 master, and keeps it in bf16.

    The optimizer sees a chunk of them at a time in float32, so that of all but that chunk half the
    memory is saved. What comes out is the same to the last bit, but for a rounding in the norm.
    """

    def __init__(self, masters: Sequence[nn.Parameter]) -> None:
        # By index, since a master that its own hook refers to is not freed with its last user.
        self._held: dict[int, Tensor] = {}
        for index, master in enumerate(masters):
            master.register_post_accumulate_grad_hook(partial(self._take, index))

    def _take(self, index: int, master: Tensor) -> None:
        assert master.grad is not None
        assert index not in self._held, "a second pass would need more than 16 bits"
        self._held[index] = master.grad.to(torch.bfloat16)
        master.grad = None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """One optimizer step, taken whole or not at all, after which no gradient is left.

        Args:
            optimizer: of the same masters in the same order; it passes over those that have no
                gradient.
            max_norm: a larger norm of all gradients is scaled down to it, as by
                torch.nn.utils.clip_grad_norm_; 0 switches that off.
        """
        masters = [master for group in optimizer.param_groups for master in group["params"]]
        try:
            scale = self._scale(max_norm) if max_norm else 1.0
            # Before any master moves: what could not be had for a later chunk fails here.
            parts = [[i for i in part if i in self._held] for part in chunks(range(len(masters)))]
            most = max((sum(masters[i].numel() for i in part) for part in parts), default=0)
            room = masters[0].new_empty(most)
            with whole(optimizer):
                for part in parts:
                    self._fill(masters, part, room, scale)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        finally:
            self.clear()
            optimizer.zero_grad(set_to_none=True)

    def _fill(
        self, masters: Sequence[nn.Parameter], part: list[int], room: Tensor, scale: Tensor | float
    ) -> None:
        """Gives these masters their gradients, which lie in `room` one after the other."""
        start = 0
        for index in part:
            end = start + masters[index].numel()
            gradient = room[start:end].view_as(masters[index])
            masters[index].grad = gradient.copy_(self._held.pop(index)).mul_(scale)
            start = end

    def _scale(self, max_norm: float) -> Tensor:
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self._held.values()]
        return (max_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)

    def clear(self) -> None:
        """Forgets those of a step that was broken off."""
        self._held.clear()
