"""The transformer's stage: flow matching on the latents of drawn pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from ...models.embedded import FLOW_SCALE
from ...models.headless import Headless
from ...models.loading import computes_bf16
from ..models import build_transformer
from ..world import SIZE
from .batches import BATCH, Batches
from .loop import Course, Loop
from .pictures import encode_pictures

COURSE = Course(steps=11000, learning_rate=1.5e-3, averaging=0.999)


def train_transformer(work: Path, seed: int, pocket: Headless) -> SD3Transformer2DModel:
    """The transformer, for the text towers and the autoencoder of that pocket.

    It learns the velocity noise - clean of (1 - sigma) * clean + sigma * noise (Liu et al., arXiv
    2209.03003; Esser et al., arXiv 2403.03206).
    """

    def encode(prompts: list[str]) -> tuple[Tensor, Tensor]:
        rows = pocket.encode(prompts, SIZE, SIZE)
        assert rows.pooled is not None, "SDXL's texts have it"
        return rows.context, rows.pooled

    vae = pocket.latents.vae
    latents = encode_pictures(work / "latents.safetensors", vae, 7200, seed + 31)
    batches = Batches(latents, FLOW_SCALE * vae.config.scaling_factor, encode)
    torch.manual_seed(seed)
    transformer = build_transformer()
    quick = computes_bf16(torch.device("cpu"))  # as good as fp32, in 6 tenths of its time

    def loss_of(rng: np.random.Generator) -> Tensor:
        batch = batches.draw(rng)
        # Evenly over all levels, one in each of as many parts as there are pictures.
        sigma = (torch.randperm(BATCH) + torch.rand(BATCH)) / BATCH
        level = sigma.view(-1, 1, 1, 1)
        noise = torch.randn_like(batch.latents)
        noisy = (1 - level) * batch.latents + level * noise
        with torch.autocast("cpu", torch.bfloat16, quick):
            guess = transformer(noisy, batch.context, batch.pooled, 1000 * sigma).sample
        return (guess - (noise - batch.latents)).square().mean()

    Loop(transformer, work / "transformer.safetensors", COURSE).run(loss_of)
    return transformer
