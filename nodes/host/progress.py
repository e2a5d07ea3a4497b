"""What a run shows on its node: a bar, a line of text and a preview."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.utils
import latent_preview
import torch
from comfy_api.latest import ui
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...esd_core.config.settings import ErasureConfig
from ...esd_core.method.sampling import sample, unit_noise
from ...esd_core.method.terms import erasing
from ...esd_core.storage.output import megabytes
from ...esd_core.training.events import Progress
from .denoiser import HostDenoiser
from .folders import shown

_PREVIEW_STEPS = 12
_PREVIEW_EDGE = 512


def say(text: str, node: str | None) -> None:
    """Text on the node. Nodes 2.0 join its lines: it should read without their ends, too."""
    if node is not None:
        PromptServer.instance.send_progress_text(text, node)


def told(text: str, node: str | None) -> ui.PreviewText:
    """Says it, and gives it to the history: of that alone the page shows nothing."""
    say(text, node)
    return ui.PreviewText(text)


def on_steps(total: int) -> Callable[..., None]:
    """A bar over the steps of several pictures, for the host's samplers to call at each."""
    bar = comfy.utils.ProgressBar(total)
    return lambda *_: bar.update(1)


class NodeEvents:
    """Speaks for a training on its node."""

    def __init__(self, denoiser: HostDenoiser, config: ErasureConfig, node: str | None) -> None:
        self._denoiser, self._config, self._node = denoiser, config, node
        self._bar = comfy.utils.ProgressBar(config.training.steps)
        self.cover: Image.Image | None = None
        """The last preview."""

    def on_step(self, progress: Progress) -> None:
        self._bar.update_absolute(progress.step, progress.total)
        say(
            f"step {progress.step} of {progress.total}, loss {progress.loss:.4g},\n"
            f"{progress.seconds:.2f} s a step, {_clock(progress.left)} left",
            self._node,
        )

    def on_preview(self, step: int, student: dict[str, Tensor]) -> None:
        with self._denoiser.swapped(student):
            self.cover = self._draw()
        if self.cover:
            self._bar.update_absolute(step, preview=("JPEG", self.cover, _PREVIEW_EDGE))

    def on_save(self, step: int, path: Path) -> None:
        size = megabytes(path.stat().st_size)
        say(
            f"the state of step {step} ({size}) is in {shown(path)};\n"
            "to go on with it, queue the same again; it is removed when the run is done",
            self._node,
        )

    def _draw(self) -> Image.Image | None:
        """The first concept's prompt, drawn by the student from the seed's noise."""
        denoiser, config = self._denoiser, self._config
        prompt = erasing(config)[0].student
        shape = denoiser.latent_shape(config.width, config.height)
        generator = torch.Generator().manual_seed(config.seed)
        noise = unit_noise((1, *shape), generator, denoiser.device)
        rows = denoiser.encode([prompt, ""], config.width, config.height)
        pair = [rows.select([0]), rows.select([1])]
        schedule = denoiser.schedule(_PREVIEW_STEPS)
        latents = sample(denoiser, noise, pair, schedule, config.trajectory.guidance)
        return _picture(denoiser, latents)


def _picture(denoiser: HostDenoiser, latents: Tensor) -> Image.Image | None:
    """What the host's previewer makes of latents, or a linear map where it is switched off."""
    latent_format = denoiser.model.model.latent_format
    previewer = latent_preview.get_previewer(denoiser.device, latent_format)
    if previewer is None and latent_format.latent_rgb_factors is not None:
        previewer = latent_preview.Latent2RGBPreviewer(
            latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
        )
    if previewer is None:
        return None
    image: Image.Image = previewer.decode_latent_to_preview(latents)
    return image


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
