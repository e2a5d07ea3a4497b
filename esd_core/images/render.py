"""Pictures of prompts and seeds, for comparing models."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..method.sampling import sample
from ..models.denoiser import Conditioning
from ..models.headless import Headless

OnProgress = Callable[[int], object]
"""Called with how many more pictures are done."""


@torch.no_grad()
def render(
    denoiser: Headless,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    width: int,
    height: int,
    negative: str = "",
    batch: int = 32,
    on_picture: OnProgress | None = None,
) -> Tensor:
    """One picture a prompt, float32 [N, 3, H, W] in 0..1 on the CPU.

    A picture's noise follows from its own seed and size alone, so that it is the same in every
    batch and for every model of one architecture.

    Args:
        prompts, seeds: N each.
        guidance: 1 follows the prompt's own prediction.
        width, height: in pixels.
        negative: what guidance leads away from.
        batch: how many pictures are sampled side by side.
        on_picture: told after every batch.

    Raises:
        ConfigError: the model has no latents for that size.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts, but {len(seeds)} seeds")
    shape = denoiser.latent_shape(width, height)
    if not prompts:
        return torch.empty(0, 3, height, width)
    schedule = denoiser.schedule(steps, width, height)
    rows, encoded = _encode(denoiser, [*prompts, negative], width, height, batch)
    pictures: list[Tensor] = []
    for start in range(0, len(prompts), batch):
        noise = picture_noise(seeds[start : start + batch], shape).to(denoiser.device)
        own = rows[start : start + len(noise)]
        against = [rows[-1]] * len(noise)
        latents = sample(
            denoiser, noise, [encoded.select(own), encoded.select(against)], schedule, guidance
        )
        pictures.append(denoiser.decode(latents))
        if on_picture:
            on_picture(len(noise))
    return torch.cat(pictures)


def picture_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Unit noise, float32 [N, *shape] on the CPU, one generator a seed."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=stream) for stream in streams])


def _encode(
    denoiser: Headless, prompts: Sequence[str], width: int, height: int, batch: int
) -> tuple[list[int], Conditioning]:
    """Every different prompt once, and for each prompt which row it is."""
    unique = list(dict.fromkeys(prompts))
    parts = [
        denoiser.encode(unique[start : start + batch], width, height)
        for start in range(0, len(unique), batch)
    ]
    return [unique.index(prompt) for prompt in prompts], Conditioning.cat(parts)
