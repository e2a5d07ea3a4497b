"""What the core needs of a diffusion model, whatever host holds it.

Everything here lives in sigma space: a noisy latent is x = x0 + sigma * eps (Karras et al. 2022),
and a prediction is the direction (x - denoised) / sigma, which is eps-hat for eps- and v-models.
The target of the erasure is affine in the predictions with coefficients that sum to 1, so it is the
same in every form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .architectures import Architecture
from .prediction import Prediction
from .swap import Weight


@dataclass(frozen=True)
class Conditioning:
    """What a batch of prompts becomes.

    Attributes:
        context: token states, [B, L, C].
        pooled: pooled text, [B, P], where the architecture takes one.
        time_ids: (height, width, top, left, height, width) in pixels, [B, 6], where it takes them.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(value.nbytes for _, value in self._parts())

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("context", "pooled", "time_ids"):
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """With every part changed alike."""
        return replace(self, **{name: change(value) for name, value in self._parts()})

    def select(self, rows: Sequence[int] | Tensor) -> Conditioning:
        """The given rows, in the given order; a row may come several times."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.context.device)
        return self.map(lambda part: part[index])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts, in order; the parts are of one model."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name, _ in parts[0]._parts()
        }
        return replace(parts[0], **joined)


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one sampling run.

    Attributes:
        sigmas: float32 [steps + 1] on the CPU, descending, ending in 0.
        initial_scale: sampling starts from initial_scale * unit noise.
    """

    sigmas: Tensor
    initial_scale: float


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

    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        """One row a prompt. width and height, in pixels, go into the time ids."""
        ...

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """The direction (x - denoised) / sigma, float32 [B, C, h, w].

        Args:
            x: noisy latents in sigma space, float32 [B, C, h, w].
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

    def schedule(self, steps: int) -> Schedule:
        """The model's own schedule of `steps` noise levels."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of that many pixels."""
        ...


class Rehearsable(Denoiser, Protocol):
    """What the plan of a run's memory needs beside a Denoiser."""

    def free_memory(self) -> int:
        """Bytes that can still be had on the device."""
        ...

    def hollow(self) -> Rehearsable:
        """A Denoiser of the same network, in tensors of the CPU that have shapes and no contents.

        To be called, and used, inside torch's FakeTensorMode.
        """
        ...

    @property
    def network(self) -> nn.Module:
        """The UNet itself."""
        ...
