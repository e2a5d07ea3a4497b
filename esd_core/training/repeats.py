"""Blocks of a network that come many times alike, of which a dry run takes two.

SDXL has transformers of ten equal blocks. Each allocates what the others do, so it is enough to
rehearse the first, which may be the one where gradients begin, and one more for all that follow.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

_LISTS = "transformer_blocks"
"""Of blocks that are called one after the other; diffusers and ComfyUI call them the same."""
_FEWEST = 3


class Repeated(nn.ModuleList):
    """A list of equal modules. Iterating gives two of them; the parameters of all are there."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self[0], self[1]])

    @property
    def left_out(self) -> int:
        return len(self) - 2


def fold(network: nn.Module) -> list[Repeated]:
    """Puts `Repeated` in the place of the network's lists of three and more equal blocks."""
    found = []
    for module in [*network.modules()]:
        blocks = getattr(module, _LISTS, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) >= _FEWEST and _are_equal(blocks):
            repeated = Repeated([*blocks])
            setattr(module, _LISTS, repeated)
            found.append(repeated)
    return found


def _are_equal(blocks: nn.ModuleList) -> bool:
    first, *others = map(_signature, blocks)
    return all(other == first for other in others)


def _signature(module: nn.Module) -> list[tuple[Any, ...]]:
    kinds = [(name, type(part)) for name, part in module.named_modules()]
    return [*kinds, *((name, p.shape, p.dtype) for name, p in module.named_parameters())]
