"""Pictures of a student in training, by the same prompt from the same noise each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
import folder_paths
import latent_preview
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ...esd_core.config.settings import ErasureConfig
from ...esd_core.method.sampling import sample, unit_noise
from ...esd_core.method.terms import erasing
from ...esd_core.models.swap import Weight
from .denoiser import HostDenoiser
from .pocket import PocketLatent, load_vae
from .vae import decode, refuse_other

_STEPS = 12
_SPARE = 1.1
"""The host makes room for a model and a tenth more."""


class Previewer:
    """Draws the first concept's prompt.

    With a VAE its pictures are those of the model; without one they are the host's best guess from
    the latents: TAESD where it is installed, else a linear map.

    Attributes:
        rows: evaluations that a picture takes.
    """

    def __init__(self, denoiser: HostDenoiser, config: ErasureConfig, vae: Any = None) -> None:
        self._denoiser, self._config = denoiser, config
        self.prompt = erasing(config)[0].student
        self.rows = _STEPS if denoiser.is_guided else 2 * _STEPS
        self._format = denoiser.model.model.latent_format
        if vae is not None:
            refuse_other(vae, denoiser.model)
        elif isinstance(self._format, PocketLatent):
            vae = load_vae()  # comes with the pack, and is small
        self._vae, self._guess = vae, None

    def draw(self, student: Mapping[str, Weight], sampling_batch: int) -> Image.Image | None:
        """None where neither the pack nor the host can make a picture of such latents.

        sampling_batch: evaluations that go through the network together.
        """
        with self._denoiser.swapped(student):
            latents = self._latents(sampling_batch)
        if self._vae is not None and self._has_room(latents):
            return self._decoded(latents)
        return self._guessed(latents)

    def _latents(self, sampling_batch: int) -> Tensor:
        denoiser, config = self._denoiser, self._config
        shape = denoiser.latent_shape(config.width, config.height)
        generator = torch.Generator().manual_seed(config.seed)
        noise = unit_noise((1, *shape), generator, denoiser.device)
        rows = denoiser.encode([self.prompt, ""], config.width, config.height)
        pair = [rows.select([0]), rows.select([1])]
        guidance = config.trajectory.guidance
        schedule = denoiser.schedule(_STEPS, config.width, config.height)
        return sample(denoiser, noise, pair, schedule, guidance, sampling_batch=sampling_batch)

    def _has_room(self, latents: Tensor) -> bool:
        """Whether the host decodes beside the run: where it lacks memory, it takes the MODEL from
        the device in the midst of its training."""
        device, vae = self._vae.patcher.load_device, self._vae
        if comfy.model_management.is_device_cpu(device):
            return True
        needed = vae.memory_used_decode(latents.shape, vae.vae_dtype)
        least = comfy.model_management.minimum_inference_memory()
        reserved = comfy.model_management.extra_reserved_memory()
        room = _SPARE * vae.patcher.model_size() + max(least, needed + reserved)
        return bool(comfy.model_management.get_free_memory(device) > room)

    def _decoded(self, latents: Tensor) -> Image.Image:
        with torch.inference_mode():
            pixels = decode(self._vae, self._format.process_out(latents))[0]
        return Image.fromarray(np.uint8((255 * pixels).round().clamp(0, 255).cpu()))

    def _guessed(self, latents: Tensor) -> Image.Image | None:
        self._guess = self._guess or _best_guess(self._denoiser.device, self._format)
        if self._guess is None:
            return None
        with torch.no_grad():
            return self._guess.decode_latent_to_preview(latents)


def _best_guess(device: torch.device, latent_format: Any) -> Any:
    """The host takes TAESD only when it is told to; a run has few previews and can afford it. Those
    of video models it loads as it does VAEs, which may take the MODEL from the device.
    """
    name = latent_format.taesd_decoder_name if latent_format.latent_dimensions == 2 else None
    files = folder_paths.get_filename_list("vae_approx") if name else ()
    is_there = any(file.startswith(name) for file in files)
    asked = args.preview_method
    args.preview_method = LatentPreviewMethod.TAESD if is_there else LatentPreviewMethod.Latent2RGB
    try:
        return latent_preview.get_previewer(device, latent_format)
    finally:
        args.preview_method = asked
