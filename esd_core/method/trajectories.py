"""Guided trajectories of several prompts, all from the same noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.settings import ErasureConfig
from ..models.denoiser import Conditioning, Denoiser
from .sampling import Lead, OnStep, sample, unit_noise


class Trajectories:
    """A few for every prompt, by whatever weights the model computes with when they are asked for.

    Attributes:
        states: of all trajectories of a prompt.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[str],
        config: ErasureConfig,
        count: int,
        steps: int,
        seed: int,
    ) -> None:
        """
        Args:
            prompts: all that can be asked for.
            config: says their size and guidance, and how many steps they have at the most.
            count: of trajectories a prompt. seed: of their noise.
        """
        self._denoiser, self._guidance = denoiser, config.trajectory.guidance
        self._count, size = count, (config.width, config.height)
        self._schedule = denoiser.schedule(min(steps, config.trajectory.steps), *size)
        self.states = count * (len(self._schedule.sigmas) - 1)
        shape = (count, *denoiser.latent_shape(*size))
        generator = torch.Generator().manual_seed(seed)
        self._noise = unit_noise(shape, generator, denoiser.device)
        self._places = {prompt: place for place, prompt in enumerate(prompts)}
        # To the CPU: a row of some models is tens of MB.
        self._encoded = denoiser.encode(prompts, *size).map(lambda tensor: tensor.cpu())

    def rows(self, prompt: str, count: int) -> Conditioning:
        """So many of the prompt, on the device."""
        rows = self._encoded.select([self._places[prompt]] * count)
        return rows.map(lambda tensor: tensor.to(self._denoiser.device))

    def follow(
        self,
        prompts: Sequence[str],
        together: int | None = None,
        see: OnStep | None = None,
        lead: Lead | None = None,
    ) -> Tensor:
        """Where they end, [count, C, h, w] on the CPU.

        Args:
            prompts: the one that they follow, the empty one, and any others to predict on the way.
            together: how many evaluations go through the network at once; None for all of a step.
            see, lead: as in `sample`.
        """
        columns = [self.rows(prompt, self._count) for prompt in prompts]
        asked = (columns, self._schedule, self._guidance, see, together, lead)
        return sample(self._denoiser, self._noise, *asked).cpu()
