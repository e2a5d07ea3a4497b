"""Blocks of a network that come many times alike, of which a dry run takes two.

SDXL has transformers of ten equal blocks. Each allocates what the others do, so it is enough to
rehearse the first, which may be the one where gradients begin, and one more for all that follow.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

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


def watch(
    block: nn.Module,
    on_begin: Callable[[], None],
    on_end: Callable[[], None],
    on_backward: Callable[[], None],
    on_backward_end: Callable[[], None],
) -> list[Any]:
    """Calls back around the block's first pass forward, and around the backward pass of it.

    Returns handles that `remove` the hooks. Only passes that record a graph count; recomputation
    calls the block once more and is left out.
    """
    passes: list[None] = []

    def before(_module: nn.Module, _args: Any) -> None:
        if not passes:
            on_begin()

    def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if passes or not output.requires_grad:
            return
        passes.append(None)
        on_end()
        output.register_hook(lambda _: on_backward())
        if args[0].requires_grad:
            args[0].register_hook(lambda _: on_backward_end())

    return [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
