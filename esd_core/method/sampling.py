"""Sampling with guidance, along the model's own noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..models.denoiser import Conditioning, Denoiser, Schedule
from .objective import guided

OnStep = Callable[[Tensor, float, Sequence[Tensor]], None]
"""Called with x [B, C, h, w], its sigma, and the predictions there, one [B, C, h, w] a prompt."""
Lead = Callable[[Sequence[Tensor]], Tensor]
"""From the predictions, one [B, C, h, w] a prompt, to what is followed of them."""


def predict_together(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float,
    prompts: Sequence[Conditioning],
    sampling_batch: int | None = None,
) -> list[Tensor]:
    """Directions at the same latents for several prompts, as one batch.

    Args:
        x: [B, C, h, w].
        prompts: conditionings of B rows each.
        sampling_batch: as many rows at a time, where memory is short.
    """
    together = Conditioning.cat(prompts)
    levels = torch.full((len(together),), sigma, device=x.device)
    xs = repeat(x, "b ... -> (p b) ...", p=len(prompts))
    parts = torch.arange(len(xs)).split(sampling_batch or len(xs))
    predicted = [denoiser.predict(xs[p], levels[p], together.select(p)) for p in parts]
    return list(rearrange(torch.cat(predicted), "(p b) ... -> p b ...", p=len(prompts)))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    noise: Tensor,
    prompts: Sequence[Conditioning],
    schedule: Schedule,
    guidance: float,
    on_step: OnStep | None = None,
    sampling_batch: int | None = None,
    lead: Lead | None = None,
) -> Tensor:
    """Euler's method on the guided prediction; returns the latents, float32 [B, C, h, w].

    Where guidance is an input of the network (FLUX.1 dev), predictions with it are followed as they
    are, and `on_step` sees predictions with the guidance of targets, as in the official code
    (rohitgandikota/erasing at 2ff19a1: sampled at 3.5, targets at 1).

    Args:
        noise: unit noise, float32 [B, C, h, w].
        prompts: the prompts to follow, the empty prompt, and any further ones that are predicted
            on the way for `on_step` alone; conditionings of B rows each.
        guidance: 1 follows the prompt's own prediction.
        on_step: sees every step before it is taken.
        sampling_batch: how many evaluations go through the network together; None for all of a
            step.
        lead: what is followed; without it the first prompt's prediction.
    """
    x = noise * schedule.initial_scale
    levels = schedule.sigmas.tolist()
    is_embedded = prompts[0].guidance is not None
    leading = prompts[:1] if is_embedded and not lead else prompts
    led = [prompt.guided(guidance) for prompt in leading]
    for sigma, following in zip(levels[:-1], levels[1:], strict=True):
        predictions = predict_together(denoiser, x, sigma, led, sampling_batch)
        if on_step and is_embedded:
            on_step(x, sigma, predict_together(denoiser, x, sigma, prompts, sampling_batch))
        elif on_step:
            on_step(x, sigma, predictions)
        direction = lead(predictions) if lead else predictions[0]
        if not is_embedded:
            direction = guided(direction, predictions[1], guidance)
        x = x + (following - sigma) * direction
    return x


def unit_noise(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Drawn on the CPU, so that a seed means the same on every device."""
    return torch.randn(tuple(shape), generator=generator).to(device)
