"""What the core needs of a diffusion model, whatever host holds it.

A prediction is the direction (x - denoised) / sigma at the model's own noise level sigma: eps-hat
for eps- and v-models, whose noisy latents are x = x0 + sigma * eps (Karras et al. 2022), and the
velocity for flows, x = (1 - sigma) * x0 + sigma * eps. A step of Euler's method along it is right
in every form, and so is the target of the erasure, which is affine in the predictions with
coefficients that sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ESDError
from .architectures import Architecture
from .prediction import Prediction
from .swap import Weight

MASK = "attention_mask"
"""Of the tokens: 0 where there is none."""
TARGET_GUIDANCE = 1.0
"""Of networks that take guidance as an input, as the official code has it for FLUX
(rohitgandikota/erasing at 2ff19a1)."""


@dataclass(frozen=True)
class Conditioning:
    """What a batch of prompts becomes.

    Attributes:
        context: token states, [B, L, C].
        pooled: pooled text, [B, P], where the architecture takes one.
        time_ids: (height, width, top, left, height, width) in pixels, [B, 6], where it takes them.
        guidance: [B], where guidance is an input of the network, as of distilled models.
        extra: what else goes into it, [B, ...] by the name that it has there; MASK is [B, L].
        lengths: how many of the L tokens are each row's own, where prompts differ in that.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    guidance: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.context)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(value.nbytes for _, value in self._named())

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("context", "pooled", "time_ids", "guidance"):
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """With every part changed alike."""
        extra = {name: change(value) for name, value in self.extra.items()}
        changed: dict[str, Any] = {name: change(value) for name, value in self._named()}
        return replace(self, **changed, extra=extra)

    def select(self, rows: Sequence[int] | Tensor) -> Conditioning:
        """The given rows, in the given order; a row may come several times."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.context.device)
        chosen = self.map(lambda part: part[index])
        if self.lengths is None:
            return chosen
        return replace(chosen, lengths=tuple(self.lengths[int(row)] for row in rows))

    def guided(self, guidance: float) -> Conditioning:
        """With that much guidance as an input of the network, where it takes it."""
        if self.guidance is None:
            return self
        return replace(self, guidance=torch.full_like(self.guidance, guidance))

    def by_length(self) -> list[tuple[list[int], Conditioning]]:
        """Which rows have equally many tokens, and those without any padding.

        A network may count picture tokens from where the text ends, and need not know a mask: rows
        that are as long as they are give what each gives alone.
        """
        if self.lengths is None:
            return [([*range(len(self))], self)]
        groups = []
        for length in sorted({*self.lengths}):
            rows = [row for row, own in enumerate(self.lengths) if own == length]
            groups.append((rows, self.select(rows)._cut(length)))
        return groups

    def _cut(self, length: int) -> Conditioning:
        extra = dict(self.extra)
        if MASK in extra:
            extra[MASK] = extra[MASK][:, :length]
        return replace(self, context=self.context[:, :length], extra=extra, lengths=None)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts, in order; the parts are of one model. Where they have different
        numbers of tokens, the shorter are padded with zeros, and `lengths` remembers it.

        Raises ESDError where they differ in the tokens of another part, which `lengths` is not of.
        """
        first = parts[0]
        joined: dict[str, Any] = {
            n: _padded([getattr(part, n) for part in parts]) for n, _ in first._named()
        }
        extra = {
            n: (_padded if n == MASK else _joined)([part.extra[n] for part in parts])
            for n in first.extra
        }
        lengths = [n for p in parts for n in p.lengths or (p.context.shape[1],) * len(p)]
        are_equal = len({*lengths}) == 1 and lengths[0] == joined["context"].shape[1]
        return replace(first, **joined, extra=extra, lengths=None if are_equal else tuple(lengths))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    counts = sorted({tensor.shape[1] for tensor in tensors if tensor.ndim > 1})
    if len(counts) > 1:
        raise ESDError(
            f"a text encoder gives {counts[0]} tokens for one prompt and {counts[-1]} for another, "
            "where this model has as many for all: leave out what changes that"
        )
    return torch.cat([*tensors])


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along the rows, those with fewer tokens, [B, L, ...], filled up with zeros."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat([*tensors])
    most = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([F.pad(t, (0, 0) * (t.ndim - 2) + (0, most - t.shape[1])) for t in tensors])


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one sampling run.

    Attributes:
        sigmas: float32 [steps + 1] on the CPU, descending, ending in 0.
        initial_scale: sampling starts from initial_scale * unit noise.
    """

    sigmas: Tensor
    initial_scale: float

    def part(self, steps: range) -> Schedule:
        """These steps of it, of which only the first of all starts from unit noise."""
        sigmas = self.sigmas[steps.start : steps.stop + 1]
        return Schedule(sigmas, 1.0 if steps.start else self.initial_scale)


class Denoiser(Protocol):
    """A diffusion model in the hands of the core.

    The network is one. Outside of `swapped` it is the teacher; inside, the given tensors stand in
    for its parameters and it is the student. A host's own tensors are never written to.
    """

    architecture: Architecture
    prediction: Prediction
    """The form of the network's own output, in which errors count."""
    device: torch.device
    compute_dtype: torch.dtype
    """What the network computes in; swapped-in tensors must be of this dtype."""

    @property
    def is_guided(self) -> bool:
        """Whether guidance is an input of the network, as of distilled ones."""
        ...

    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        """One row a prompt, with the guidance that targets have, where the network takes one.

        width, height: of the picture, in pixels, for models that are told.
        """
        ...

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """The direction (x - denoised) / sigma, float32, in the shape of x.

        Args:
            x: noisy latents, float32 [B, C, h, w], or [B, C, 1, h, w] as video models have them.
            sigma: noise levels, float32 [B].
            conditioning: B rows.
        """
        ...

    def parameters(self) -> Mapping[str, Tensor]:
        """The teacher's tensors under their canonical (LDM) names, in the model's order."""
        ...

    def swapped(self, tensors: Mapping[str, Weight]) -> AbstractContextManager[None]:
        """Inside, the network computes with these tensors, and gradients flow into them.

        Stay inside until backward has run: recomputation under checkpointing reads them again.
        """
        ...

    def checkpointed(self, enabled: bool) -> AbstractContextManager[None]:
        """Inside, gradient checkpointing is on (or off); outside, as the host had it."""
        ...

    def schedule(self, steps: int, width: int, height: int) -> Schedule:
        """The model's own schedule of `steps` noise levels, for a picture of that many pixels."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """(channels, height, width), or (channels, 1, height, width) of video models, of the
        latents of a picture of that many pixels."""
        ...


class Rehearsable(Denoiser, Protocol):
    """What the plan of a run's memory needs beside a Denoiser."""

    network: nn.Module
    """The UNet or transformer itself."""

    def free_memory(self) -> int:
        """Bytes that can still be had on the device."""
        ...

    def hollow(self) -> Rehearsable:
        """A Denoiser of the same network, in tensors of the CPU that have shapes and no contents.

        To be called, and used, inside torch's FakeTensorMode.
        """
        ...
