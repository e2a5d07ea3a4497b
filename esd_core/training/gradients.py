"""Gradients between the backward pass and the optimizer's step, in as few bits as they came in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")
_PARTS = 16


def are_short(compute_dtype: torch.dtype, rank: int, passes: int) -> bool:
    """Whether 16 bits hold a step's gradients without loss.

    They do when each comes from one bf16 tensor in one backward pass. A sum of several passes has
    more digits, those of a low-rank student come from products in float32, and those of fp16 lose
    theirs when they are unscaled.
    """
    return compute_dtype == torch.bfloat16 and not rank and passes == 1


def in_parts(items: Sequence[_T]) -> list[Sequence[_T]]:
    """The parts that take their step one after the other."""
    size = -(-len(items) // _PARTS)
    return [items[start : start + size] for start in range(0, len(items), size)]


class ShortGradients:
    """Takes every gradient as it arrives at its float32 master, and keeps it in bf16.

    The optimizer sees a part of them at a time in float32, so that of all but that part half the
    memory is saved. What comes out is the same to the last bit, but for a rounding in the norm.
    """

    def __init__(self, masters: Sequence[nn.Parameter]) -> None:
        # By place, since a master that its own hook refers to is not freed with its last user.
        self._held: dict[int, Tensor] = {}
        for place, master in enumerate(masters):
            master.register_post_accumulate_grad_hook(partial(self._take, place))

    def _take(self, place: int, master: Tensor) -> None:
        assert master.grad is not None
        assert place not in self._held, "a second pass would need more than 16 bits"
        self._held[place] = master.grad.to(torch.bfloat16)
        master.grad = None

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """One optimizer step, after which no gradient is left.

        Args:
            optimizer: of the same masters in the same order; it passes over those that have no
                gradient.
            max_norm: a larger norm of all gradients is scaled down to it, as by
                torch.nn.utils.clip_grad_norm_; 0 switches that off.
        """
        scale = self._scale(max_norm) if max_norm else 1.0
        masters = [master for group in optimizer.param_groups for master in group["params"]]
        for part in in_parts([*enumerate(masters)]):
            for place, master in part:
                held = self._held.pop(place, None)
                master.grad = None if held is None else held.float().mul_(scale)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _scale(self, max_norm: float) -> Tensor:
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self._held.values()]
        return (max_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)

    def clear(self) -> None:
        """Forgets those of a step that was broken off."""
        self._held.clear()
