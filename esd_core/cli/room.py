"""What pictures need of memory, told before the first of them is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config.settings import ErasureConfig
from ..errors import ESDError

if TYPE_CHECKING:
    from ..files.erasure import Erasure
    from ..models.headless import Headless
    from ..training.dry_run import Count


class Room:
    """Plans the pictures of one model in one size, by a rehearsal of a prediction and of decoding.

    Both are counted as a run's plan counts its steps, and leave the same margin.
    """

    def __init__(self, denoiser: Headless, width: int, height: int) -> None:
        from ..training.dry_run import DryRun

        self._denoiser, self._pixels = denoiser, (width, height)
        _, *self._latent = denoiser.latent_shape(width, height)
        # Any prompt will do: all are of one length there.
        one = {"concepts": ["a"], "contexts": [], "width": width, "height": height}
        config = ErasureConfig.from_mapping(one)
        self._rehearsal = DryRun(denoiser, config, lambda _: None)
        self._decoding = _decoding(denoiser)

    def side_by_side(self, wanted: int, changes: Sequence[Erasure] = ()) -> int:
        """How many of so many pictures can be drawn together in the memory that is free now.

        changes: erasures that will be applied, one after the other.

        Raises:
            ESDError: there is no room for a single one.
        """
        from ..training.plan import margin, size

        device = self._denoiser.device
        free = self._denoiser.free_memory()
        free -= margin(device, free)
        applying, held = self._changed(changes)
        fits = wanted
        while fits and max(applying, held + self._needed(fits)) > free:
            fits //= 2
        if not fits:
            needed = max(applying, held + self._needed(1))
            raise ESDError(
                f"a picture of {self._pixels[0]}x{self._pixels[1]} needs {size(needed)} beside the "
                f"model, and {size(max(0, free))} are free on {device}: draw smaller ones"
            )
        return fits

    def _needed(self, pictures: int) -> int:
        """Bytes: of each its prompt and the negative one are predicted together."""
        from ..models.latents import DECODED

        sizes = 2 * pictures, *self._latent
        predicting = self._rehearsal.evaluation(*sizes).peak(*sizes)
        decoding = self._decoding.peak(min(pictures, DECODED), *self._latent)
        drawn = pictures * 3 * 4 * math.prod(self._pixels)
        return max(predicting, decoding + _upcast(self._denoiser) + drawn)

    def _changed(self, changes: Sequence[Erasure]) -> tuple[int, int]:
        """Bytes of the weights that the largest erasure changes, while they are summed in float32,
        and after that."""
        base = self._denoiser.parameters()
        counts = [
            sum(math.prod(base[name].shape) for name in erasure.change() if name in base)
            for erasure in changes
        ]
        values, itemsize = max(counts, default=0), self._denoiser.compute_dtype.itemsize
        return values * (4 + itemsize), values * itemsize


def _upcast(denoiser: Headless) -> int:
    """Bytes by which the autoencoder grows to decode."""
    vae = denoiser.latents.vae
    more = denoiser.latents.dtype.itemsize - vae.dtype.itemsize
    return more * sum(weight.numel() for weight in vae.parameters())


def _decoding(denoiser: Headless) -> Count:
    import torch

    from ..training.dry_run import BATCH, EDGE, LEVELS, counted

    vae, dtype = denoiser.latents.vae, denoiser.latents.dtype
    channels = vae.config.latent_channels

    def decode(vae: torch.nn.Module) -> None:
        latents = torch.empty(BATCH, channels, EDGE * LEVELS, EDGE * LEVELS, dtype=dtype)
        vae.decode(latents).sample.float()  # type: ignore[operator]

    return counted(vae, dtype, decode)
