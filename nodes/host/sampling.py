"""Pictures by the host's own samplers, the same as from its KSampler and VAEDecode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .model import latent_shape
from .text import refuse_none
from .vae import decode, refuse_other

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True)
class Sampling:
    """What KSampler is asked for."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int


def encode(clip: comfy.sd.CLIP, prompt: str) -> Any:
    """CONDITIONING, as CLIPTextEncode makes it."""
    refuse_none(clip)
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def draw(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    positive: Any,
    negative: Any,
    sampling: Sampling,
    callback: Any = None,
) -> Tensor:
    """IMAGE, [1, H, W, 3] in 0..1.

    Raises:
        ESDError: the VAE, or the size, is not for the MODEL.
    """
    refuse_other(vae, model)
    shape = latent_shape(model, sampling.width, sampling.height)
    latent = torch.zeros(1, *shape, device=comfy.model_management.intermediate_device())
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, sampling.seed),
        sampling.steps,
        sampling.cfg,
        sampling.sampler,
        sampling.scheduler,
        positive,
        negative,
        latent,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=sampling.seed,
    )
    return decode(vae, samples)


def likeness(vision: Any, originals: Tensor, others: Tensor) -> list[float]:
    """Cosines between the CLIP_VISION embeddings of two batches of pictures."""
    pair = [
        vision.encode_image(pictures)["image_embeds"].float() for pictures in (originals, others)
    ]
    return torch.nn.functional.cosine_similarity(*pair).tolist()
