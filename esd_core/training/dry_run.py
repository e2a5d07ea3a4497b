"""A training step on tensors that have shapes and no contents, to count what would be alive.

The network is the backend's own, so that casts, attention and recomputation count as they are done
there. Of a UNet one rehearsal serves every batch and size: its batch and its latents' edge are
primes, which no layer's width holds, so that the factors of an allocation tell what it grows with.
Of equal blocks in a row two are rehearsed (`repeats`). A transformer puts text and picture into one
row of tokens, whose number has no such factors: it is rehearsed whole, at the size that is asked
for. Where tokens are routed to experts, these share them evenly.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..config.settings import ErasureConfig
from ..method.objective import regression_loss
from ..method.terms import prompts_of, terms
from ..models.denoiser import Rehearsable
from ..models.swap import hollowed
from .repeats import Repeated, fold
from .student import Student, make_student

BATCH, EDGE = 31, 37
LEVELS = 8
"""The edge of rehearsed latents is EDGE * LEVELS, which can be halved three times."""

Growth = tuple[int, int]
"""Of an allocation: the powers of the batch and of the edge that its size is proportional to."""
Event = tuple[Growth | str, int]
"""Bytes that come, or go, and what they grow with; of gradients that arrive, "fp32" or "bf16"."""


class Count:
    """What was alive over the course of a rehearsal, for any batch and size."""

    def __init__(self, events: list[Event]) -> None:
        kinds = [*dict.fromkeys(kind for kind, _ in events)]
        deltas = torch.zeros(len(events) + 1, len(kinds), dtype=torch.float64)
        for row, (kind, size) in enumerate(events):
            deltas[row, kinds.index(kind)] = size
        alive = deltas.cumsum(0).unbind(1)
        self._alive = dict(zip(kinds, alive, strict=True))
        self._none = torch.zeros(len(events) + 1, dtype=torch.float64)

    def peak(self, batch: int, height: int, width: int, gradients: str | int = 0) -> int:
        """Bytes at the worst moment of a pass of `batch` samples, its inputs included.

        Args:
            height, width: of the latents.
            gradients: "fp32" or "bf16" when they are held so as they arrive; or bytes that are
                held all the time.
        """
        edge = (height * width) ** 0.5 / LEVELS
        total = self._none + (gradients if isinstance(gradients, int) else 0)
        for kind, alive in self._alive.items():
            if isinstance(kind, tuple):
                total = total + alive * (batch ** kind[0] * edge ** kind[1])
        if isinstance(gradients, str) and gradients in self._alive:
            total = total + self._alive[gradients]
        return round(float(total.max()))


class DryRun:
    """Rehearses the steps of a denoiser's runs, each kind of them once."""

    def __init__(
        self, denoiser: Rehearsable, config: ErasureConfig, tell: Callable[[str], None]
    ) -> None:
        """
        Args:
            config: whose prompts, the longest of which all rows are as long as.
            tell: called before every rehearsal; what it raises ends the planning.
        """
        self._tell = tell
        longest = max(prompts_of(terms(config)), key=len)
        self._row = denoiser.encode([longest], config.width, config.height)
        self._latent = denoiser.latent_shape(config.width, config.height)
        self._is_exact = not denoiser.architecture.is_unet
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self._network = denoiser.hollow()
        self._repeated = [] if self._is_exact else fold(self._network.network)
        self._students: dict[Any, Student] = {}
        self._counts: dict[Any, Count] = {}

    @property
    def text(self) -> int:
        """Bytes of what a prompt becomes."""
        return self._row.nbytes

    def masters(self, config: ErasureConfig) -> list[Tensor]:
        """The masters of its student."""
        key = config.method, config.training.rank
        if key not in self._students:
            with self._mode:
                self._students[key] = make_student(self._network, config)
        return list(self._students[key].masters.values())

    def step(self, config: ErasureConfig, checkpointing: bool, *sizes: int) -> Count:
        """Of a pass forward and backward.

        sizes: batch, height and width of latents, which a transformer is rehearsed with.
        """
        masters = self.masters(config)
        student = self._students[config.method, config.training.rank]
        sizes = self._rehearsed(sizes)
        key = config.method, config.training.rank, checkpointing, *sizes
        if key not in self._counts:
            self._tell(_named(config, checkpointing))
            there = [*self._there(), *masters]
            with (
                self._mode,
                torch.enable_grad(),
                self._network.checkpointed(checkpointing),
                _Alive(there, masters, self._repeated, self._is_exact) as alive,
                self._network.swapped(student.tensors()),
            ):
                predicted = self._predict(*sizes)
                target, weight = torch.zeros_like(predicted), torch.ones(len(predicted))
                regression_loss(predicted, target, weight).backward()
                del predicted
            self._counts[key] = Count(alive.events)
        return self._counts[key]

    def evaluation(self, *sizes: int) -> Count:
        """Of a prediction of which nothing is kept for a gradient; sizes as for a step."""
        sizes = self._rehearsed(sizes)
        if sizes not in self._counts:
            self._tell("a prediction")
            there = self._there()
            with self._mode, torch.no_grad(), _Alive(there, is_exact=self._is_exact) as alive:
                self._predict(*sizes)
            self._counts[sizes] = Count(alive.events)
        return self._counts[sizes]

    def _there(self) -> list[Tensor]:
        """Weights, of which some backends hold a few in another order too."""
        return [*self._network.network.parameters(), *self._network.parameters().values()]

    def _rehearsed(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return sizes if self._is_exact else (BATCH, EDGE * LEVELS, EDGE * LEVELS)

    def _predict(self, batch: int, height: int, width: int) -> Tensor:
        rows = self._row.map(lambda t: torch.empty(batch, *t.shape[1:], dtype=t.dtype))
        x = torch.empty(batch, *self._latent[:-2], height, width)
        return self._network.predict(x, torch.ones(batch), rows)


def counted(module: nn.Module, dtype: torch.dtype, call: Callable[[nn.Module], object]) -> Count:
    """Of what a module needs in a call of which nothing is kept for a gradient.

    call: is given a hollow copy in that dtype, and calls it with inputs of BATCH and EDGE * LEVELS.
    """
    with FakeTensorMode(), torch.no_grad():
        hollow = hollowed(module, dtype)
        with _Alive([*hollow.parameters(), *hollow.buffers()]) as alive:
            call(hollow)
    return Count(alive.events)


def _named(config: ErasureConfig, checkpointing: bool) -> str:
    rank = config.training.rank
    student = f"{config.method} of rank {rank}" if rank else config.method
    return f"a step of {student} {'with' if checkpointing else 'without'} gradient checkpointing"


_ATEN = torch.ops.aten
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}


class _Alive(TorchDispatchMode):
    """Notes what is allocated and freed inside.

    Args:
        before: tensors that are there already, and whose views cost nothing.
        masters: whose gradients are noted on their own, under "fp32" and "bf16", as they arrive.
        repeated: blocks of which some are not called, and count as the last that is.
        is_exact: whether allocations are taken as they are, and grow with nothing.
    """

    def __init__(
        self,
        before: Iterable[Tensor],
        masters: Iterable[Tensor] = (),
        repeated: Iterable[Repeated] = (),
        is_exact: bool = False,
    ) -> None:
        super().__init__()
        self._is_exact = is_exact
        self._experts = 1  # of the last router
        self.events: list[Event] = []
        self._known = {tensor.untyped_storage()._cdata for tensor in before}
        self._alive: dict[int, tuple[Growth, int]] = {}
        self._hooks = [m.register_post_accumulate_grad_hook(self._take) for m in masters]
        for blocks in repeated:
            others = _Others(self.events, blocks.left_out)
            self._hooks.append(blocks[1].register_forward_pre_hook(others.before_forward))
            self._hooks.append(blocks[1].register_forward_hook(others.after_forward))

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ATEN.topk.default:
            self._experts = args[0].shape[-1]
        if func in _INDEXING:
            args = (args[0], [*map(self._routed, args[1])], *args[2:])
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _routed(self, index: Tensor | None) -> Tensor | None:
        """In place of a mask of the tokens for one expert, as many places as each has when they
        share evenly: how they do, no shape tells. Each token goes to equally many, so all experts
        together have as much in any case."""
        if index is None or index.dtype != torch.bool or index.ndim > 1:
            return index
        return torch.empty(len(index) // self._experts, dtype=torch.long)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._alive:
            return
        bytes_ = storage.nbytes()
        self._alive[key] = growth, size = ((0, 0), bytes_) if self._is_exact else _growth(bytes_)
        self.events.append((growth, size))
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        growth, size = self._alive.pop(key)
        self.events.append((growth, -size))

    def _take(self, master: Tensor) -> None:
        # In 16 bits while the arrived one is still there; in 32 it is the arrived one.
        self.events.append(("bf16", 2 * master.numel()))
        master.grad = None
        self.events.append(("fp32", 4 * master.numel()))


class _Others:
    """Blocks that are not called, counted as one that is.

    Forward it is the last of them, and what it keeps for its backward pass they have kept before.
    Backward it is first, where most is kept, and then once more last, where most gradients are
    there: in between, one goes as evenly as the other comes.

    Only its first pass that records a graph counts: recomputation calls it once more.
    """

    def __init__(self, events: list[Event], number: int) -> None:
        self._events, self._number = events, number
        self._kept: list[Event] = []
        self._begin, self._has_passed = 0, False

    def before_forward(self, _block: nn.Module, _args: Any) -> None:
        if not self._has_passed:
            self._begin = len(self._events)

    def after_forward(self, _block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._has_passed or not output.requires_grad:
            return
        self._has_passed = True
        kept = _summed(self._events[self._begin :])
        self._kept = [(kind, self._number * size) for kind, size in kept.items() if size]
        self._events[self._begin : self._begin] = self._kept
        output.register_hook(self._before_backward)
        if args[0].requires_grad:
            args[0].register_hook(self._after_backward)

    def _before_backward(self, _gradient: Tensor) -> None:
        self._begin = len(self._events)

    def _after_backward(self, _gradient: Tensor) -> None:
        own = self._events[self._begin :]
        change = _summed(own).most_common()  # from the largest on
        arrived = [(kind, size) for kind, size in change if isinstance(kind, str)]
        self._events += [(kind, -size) for kind, size in self._kept]
        # Back to before its pass, by way of less: no more may be counted than was ever there.
        self._events += [(kind, -size) for kind, size in change]
        self._events += [(kind, self._number * size) for kind, size in arrived]
        self._events += own


def _summed(events: Iterable[Event]) -> Counter[Growth | str]:
    """Bytes that they add, by what those grow with."""
    total = Counter[Growth | str]()
    for kind, size in events:
        total[kind] += size
    return total


def _growth(size: int) -> tuple[Growth, int]:
    """What an allocation grows with, and its bytes for one of each."""
    powers = []
    for prime in (BATCH, EDGE):
        power = 0
        while size and size % prime == 0:
            size, power = size // prime, power + 1
        powers.append(power)
    return (powers[0], powers[1]), size
