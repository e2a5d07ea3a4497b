"""The optimizers that a student's masters can be trained with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from ..config.settings import TrainingConfig
from ..errors import ConfigError
from ..method.shares import ALONE, Alone
from .out_of_memory import is_oom

_T = TypeVar("_T")
_CHUNKS = 16


def chunks(items: Sequence[_T]) -> list[Sequence[_T]]:
    """Those that take their step together, one chunk after the other."""
    size = -(-len(items) // _CHUNKS)
    return [items[start : start + size] for start in range(0, len(items), size)]


def make_optimizer(
    training: TrainingConfig, masters: list[nn.Parameter], ranks: Alone = ALONE
) -> torch.optim.Optimizer:
    """As `training.optimizer` says; ConfigError where its package is missing."""
    options: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "adafactor":
        options |= {"scale_parameter": False, "relative_step": False}
        return ranks.optimizer(WholeAdafactor, masters, options)
    if training.optimizer == "adamw8bit":
        eight_bit: Any = ranks.optimizer(_eight_bit(), masters, options)
        group = getattr(eight_bit, "optim", eight_bit).param_groups[0]
        for index, master in enumerate(group["params"]):  # as below
            getattr(eight_bit, "optim", eight_bit).init_state(group, master, 0, index)
        return eight_bit
    # Fused: no copies of all masters in between, as the default on an accelerator makes.
    fused = _has_fused_adamw(masters[0].device)
    optimizer = ranks.optimizer(torch.optim.AdamW, masters, {**options, "fused": fused})
    own = getattr(optimizer, "optim", optimizer)  # of a sharded one, what this rank has
    for master in own.param_groups[0]["params"]:  # now, so that no step runs out of memory halfway
        step = torch.zeros((), device=master.device if fused else None)
        moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
        own.state[master] = {"step": step, **moments}
    return optimizer


def _has_fused_adamw(device: torch.device) -> bool:
    """Tried, since no device tells."""
    tried = nn.Parameter(torch.zeros(1, device=device))
    tried.grad = torch.zeros_like(tried)
    try:
        torch.optim.AdamW([tried], fused=True).step()
    except RuntimeError as error:
        if is_oom(error):
            raise
        return False
    return True


def _eight_bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "`training.optimizer` adamw8bit needs the package bitsandbytes: install it, or take "
            "adafactor"
        ) from error
    kind: type[torch.optim.Optimizer] = AdamW8bit
    return kind


def whole(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """The steps of `optimizer` inside are all taken, or none of them where an error comes out.

    AdamW, in 8 bits too, needs nothing for it: once it has its state, its kernels work in place and
    ask for no memory. On a device without such a kernel it is not covered.
    """
    return optimizer.whole() if isinstance(optimizer, WholeAdafactor) else nullcontext()


class WholeAdafactor(Adafactor):
    """Adafactor, which needs memory for each tensor, and takes a step back that broke off.

    What a step changes is kept until it is done, a chunk at a time while the gradients of that
    chunk go: the copies take no more than float32 gradients did.
    """

    _before: list[tuple[nn.Parameter, Tensor, dict[str, Any] | None]] | None = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self._before is not None:  # inside of another, which takes back this part too
            yield
            return
        self._before = []
        try:
            yield
        except BaseException:
            self._undo()
            raise
        finally:
            self._before = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step, taken whole or not at all, after which no gradient is left."""
        masters = [m for group in self.param_groups for m in group["params"] if m.grad is not None]
        gradients = {master: master.grad for master in masters}
        self.zero_grad(set_to_none=True)
        with self.whole():
            for part in chunks(masters):
                for master in part:
                    self._keep(master)
                    master.grad = gradients.pop(master)
                super().step()
                self.zero_grad(set_to_none=True)

    def _keep(self, master: nn.Parameter) -> None:
        assert self._before is not None
        state = self.state.get(master)
        if state is not None:
            state = {n: v.clone() if isinstance(v, Tensor) else v for n, v in state.items()}
        self._before.append((master, master.detach().clone(), state))

    @torch.no_grad()
    def _undo(self) -> None:
        for master, value, state in self._before or ():
            master.copy_(value)
            master.grad = None
            if state is None:
                self.state.pop(master, None)
            else:
                self.state[master] = state


def state_bytes(optimizer: str, shape: torch.Size) -> int:
    """What an optimizer keeps for a master of that shape."""
    if optimizer == "adafactor":
        # Rows and columns of the last two dimensions, where there are two.
        rows_and_columns = shape[:-1].numel() + shape[:-2].numel() * shape[-1:].numel()
        return 4 * (rows_and_columns if len(shape) > 1 else shape.numel())
    return {"adamw": 8, "adamw8bit": 2}[optimizer] * shape.numel()


def step_bytes(optimizer: str, sizes: Sequence[int], state: int, gradients: int, chunk: int) -> int:
    """What is alive during its step beside masters and state.

    Args:
        sizes: of the masters. state: of all of them, as the optimizer holds it.
        gradients: of all of them, as they are held.
        chunk: of a chunk's gradients in float32, where they are held in 16 bits.
    """
    if optimizer != "adafactor":
        return gradients + chunk
    # At the end the copies of all masters and, from the second step on, of their state, a chunk's
    # gradients, and an update with its factors.
    return sum(sizes) + state + max(map(sum, chunks(sizes))) + 3 * max(sizes)
