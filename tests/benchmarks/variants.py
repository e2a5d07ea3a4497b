"""Other ways to run a step's network: channels last, compiled, checkpointed, each against plain.

What does not pay is not done. Compiled is the plain network, without the swapping of tensors that
a training does at every step: it is the most that could be won.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import pocket
from .bare import Bare
from .figure import Figure, seconds

_REPEATS = 4


def run(pairs: int) -> list[Figure]:
    """The bare forward and backward of pocket's student, turn by turn."""
    plain, figures = _bare(), []
    for name, change in VARIANTS.items():
        varied = _bare()
        first = seconds(lambda varied=varied, change=change: _begin(varied, change))
        plain.step()
        sides: tuple[list[float], list[float]] = ([], [])
        for _ in range(pairs):
            for side, bare in zip(sides, (varied, plain), strict=True):
                side.append(sum(seconds(bare.step) for _ in range(_REPEATS)) / _REPEATS)
        what = f"the student's forward and backward on pocket, {name}, against plain"
        figures.append(Figure(f"step, {name}", what, "s", None, *sides, {"first": first}))
    return figures


def _bare() -> Bare:
    return Bare(pocket.trainer(pocket.load(), pocket.config()))


def _begin(bare: Bare, change: Callable[[Bare], None]) -> None:
    change(bare)
    bare.step()


def _channels_last(bare: Bare) -> None:
    bare.unet.to(memory_format=torch.channels_last)


def _compiled(bare: Bare) -> None:
    bare.unet.compile()


def _checkpointed(bare: Bare) -> None:
    bare.unet.enable_gradient_checkpointing()


VARIANTS = {
    "channels last": _channels_last,
    "compiled": _compiled,
    "checkpointed": _checkpointed,
}
