"""A training step on tensors that have shapes and no contents, to count what would be alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..method.objective import regression_loss
from ..models.architectures import Architecture
from ..models.keys import diffusers_to_canonical
from ..models.swap import replaced, slot
from .gradients import ShortGradients
from .selection import select
from .student import FullStudent, LowRankStudent, Student, dense

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_TOKENS = 77


@dataclass(frozen=True)
class Trial:
    """A UNet without contents, in `weight_dtype`, computing in `compute_dtype` at a latent size."""

    unet_config: tuple[tuple[str, Any], ...]
    architecture: Architecture
    weight_dtype: torch.dtype
    compute_dtype: torch.dtype
    size: tuple[int, int]

    @lru_cache(maxsize=256)  # noqa: B019  # frozen, and there are few
    def step(
        self, method: str, rank: int, batch: int, checkpointing: bool, short: bool
    ) -> tuple[tuple[torch.Size, ...], int]:
        """The masters' shapes, and the peak of a pass with `batch` samples, gradients included.

        short: whether ShortGradients holds them.
        """
        with FakeTensorMode(), torch.enable_grad():
            unet, base = self._network()
            if checkpointing:
                unet.enable_gradient_checkpointing()
            names = select(method, base, self.architecture)
            student: Student = FullStudent(base, names, self.compute_dtype)
            if rank:
                start = torch.Generator().manual_seed(0)
                student = LowRankStudent(base, names, self.compute_dtype, rank, rank, start)
            modules = dict(unet.named_modules())
            places = diffusers_to_canonical(unet.config)
            slots = {canonical: slot(modules, name) for name, canonical in places.items()}
            masters = list(student.masters.values())
            if short:
                ShortGradients(masters)
            held = [*base.values(), *masters]
            with _Peak(held) as peak, replaced(slots, student.made()):
                x = self._predict(unet, batch)
                regression_loss(x, torch.zeros_like(x), torch.ones(batch)).backward()
            shapes = tuple(master.shape for master in masters)
        return shapes, peak.most

    @lru_cache(maxsize=256)  # noqa: B019
    def evaluation(self) -> int:
        """The peak of one row's evaluation, of which nothing is kept for a gradient."""
        with FakeTensorMode(), torch.no_grad():
            unet, base = self._network()
            with _Peak(base.values()) as peak:
                self._predict(unet, 1)
        return peak.most

    def _network(self) -> tuple[UNet2DConditionModel, dict[str, Tensor]]:
        from diffusers import UNet2DConditionModel  # the nodes load without it

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(self.unet_config))
        for module in unet.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, dtype=self.weight_dtype)
                    module._parameters[name] = nn.Parameter(empty, requires_grad=False)
            if self.weight_dtype != self.compute_dtype and isinstance(module, _CASTING):
                module.forward = _casting(module)  # type: ignore[method-assign]
        names = diffusers_to_canonical(unet.config)
        return unet, {names[name]: p for name, p in unet.named_parameters()}

    def _predict(self, unet: UNet2DConditionModel, batch: int) -> Tensor:
        config, dtype = unet.config, self.compute_dtype
        added = {}
        if config.addition_embed_type:
            ids = 6 * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - ids
            added = {
                "text_embeds": torch.empty(batch, pooled, dtype=dtype),
                "time_ids": torch.empty(batch, 6),
            }
        x = torch.empty(batch, config.in_channels, *self.size, dtype=dtype)
        context = torch.empty(batch, _TOKENS, config.cross_attention_dim, dtype=dtype)
        predicted: Tensor = unet(
            x, torch.ones(batch), context, added_cond_kwargs=added, return_dict=False
        )[0]
        return predicted.float()


_CASTING = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


def _casting(module: nn.Module) -> Any:
    """A layer that makes copies of its weights in the input's dtype, as hosts do on the way."""
    own = type(module).forward

    def forward(x: Tensor) -> Tensor:
        kept = dict(module._parameters)
        for name, parameter in kept.items():
            if parameter is not None:
                cast = dense(parameter).to(x.dtype)
                module._parameters[name] = cast
        try:
            return own(module, x)
        finally:
            module._parameters.update(kept)

    return forward


class _Peak(TorchDispatchMode):
    """Counts the bytes that are alive of what is allocated inside; `most` is their peak.

    before: tensors that are there already, and whose views cost nothing.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self.most = self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._before:
            return
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key)
