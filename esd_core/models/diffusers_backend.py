"""The headless backend: pipelines of diffusers behind the Denoiser protocol."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from ..errors import ConfigError, ESDError, FileError, first_line
from ..storage.dtypes import PRECISIONS
from ..storage.reading import read_header
from .architectures import Architecture, like
from .denoiser import Conditioning, Schedule
from .fragments import fragments
from .keys import diffusers_to_canonical
from .prediction import prediction
from .swap import Weight, hollowed, replaced, slots_of

POCKET = "pocket"
"""What the embedded model is asked for by."""
_POCKET_FOLDER = Path(__file__).parents[1] / "pocket" / "weights"
_ENCODED = 8
"""Prompts that are encoded side by side: a run with contexts has a hundred of them."""
DECODED = 4
"""Pictures that are decoded side by side."""


class DiffusersDenoiser:
    """A Stable Diffusion 1.x, 2.x or XL pipeline, of eps- or v-prediction."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.architecture = _architecture(pipeline)
        self.device = pipeline.unet.device
        self.compute_dtype: torch.dtype = pipeline.unet.dtype
        self.prediction = prediction(pipeline.scheduler.config.prediction_type)
        self._take(pipeline.unet.requires_grad_(False))
        scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        alphas = scheduler.alphas_cumprod.double()
        self._train_sigmas = ((1 - alphas) / alphas) ** 0.5

    def _take(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        slots, names = slots_of(unet), diffusers_to_canonical(unet.config)
        self._slots = {canonical: slots[name] for name, canonical in names.items()}
        self._teacher: dict[str, Tensor] = {
            name: module.get_parameter(leaf) for name, (module, leaf) in self._slots.items()
        }

    # -- the protocol

    def parameters(self) -> Mapping[str, Tensor]:
        return self._teacher

    def swapped(self, tensors: Mapping[str, Weight]) -> AbstractContextManager[None]:
        return replaced(self._slots, tensors)

    @contextmanager
    def checkpointed(self, enabled: bool) -> Iterator[None]:
        before = self.unet.is_gradient_checkpointing
        switch = {
            True: self.unet.enable_gradient_checkpointing,
            False: self.unet.disable_gradient_checkpointing,
        }
        switch[enabled]()
        try:
            yield
        finally:
            switch[before]()

    def free_memory(self) -> int:
        if self.device.type == "cpu":
            return psutil.virtual_memory().available
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        memory = torch.get_device_module(self.device)
        held = memory.memory_reserved(self.device) - memory.memory_allocated(self.device)
        free: int = memory.mem_get_info(self.device)[0] + held
        return free - fragments(self.device)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        if width % factor or height % factor:
            raise ConfigError(
                f"width and height must be multiples of {factor}, not {width}x{height}"
            )
        return self.unet.config.in_channels, height // factor, width // factor

    def schedule(self, steps: int) -> Schedule:
        scheduler = EulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        return Schedule(scheduler.sigmas.float(), float(scheduler.init_noise_sigma))

    def encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        parts = [prompts[start : start + _ENCODED] for start in range(0, len(prompts), _ENCODED)]
        return Conditioning.cat([self._encode(part, width, height) for part in parts])

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], width: int, height: int) -> Conditioning:
        if not self.architecture.takes_sizes:
            context, _ = self.pipeline.encode_prompt(
                list(prompts), self.device, 1, do_classifier_free_guidance=False
            )
            return Conditioning(context)
        context, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False
        )
        sizes = [height, width, 0, 0, height, width]
        time_ids = torch.tensor([sizes] * len(prompts), device=self.device, dtype=torch.float32)
        return Conditioning(context, pooled, time_ids)

    def hollow(self) -> DiffusersDenoiser:
        other = copy.copy(self)
        other._take(hollowed(self.unet))
        return other

    @property
    def network(self) -> UNet2DConditionModel:
        return self.unet

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        scale = (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
        added: dict[str, Any] = {}
        if conditioning.pooled is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        raw: Tensor = self.unet(
            (x / scale).to(self.compute_dtype),
            self._timesteps(sigma),
            conditioning.context,
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()
        return self.prediction.direction(raw, x, sigma)

    def _timesteps(self, sigma: Tensor) -> Tensor:
        """Undoes the interpolation by which the Euler scheduler turns timesteps into sigmas."""
        known = self._train_sigmas
        levels = sigma.detach().cpu().double().clamp(known[0], known[-1])
        upper = torch.searchsorted(known, levels).clamp(min=1)
        share = (levels - known[upper - 1]) / (known[upper] - known[upper - 1])
        return (upper - 1 + share).to(sigma.device, torch.float32)

    # -- pictures

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, float32 [B, 3, H, W] in 0..1 on the CPU, of latents in sigma space at 0."""
        with self._upcast() as vae:
            scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
            # A few at a time: an autoencoder's activations are large, and a CPU's caches are not.
            parts = [vae.decode(part).sample.float() for part in scaled.split(DECODED)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1).cpu()

    @property
    def decoding_dtype(self) -> torch.dtype:
        """The autoencoder's own, but float32 in the place of fp16 if its config asks for that:
        SDXL's own overflows, so that pictures are black. As diffusers' pipelines do it."""
        vae, dtype = self.pipeline.vae, self.pipeline.vae.dtype
        overflows = dtype == torch.float16 and vae.config.force_upcast
        return torch.float32 if overflows and self.architecture.takes_sizes else dtype

    @contextmanager
    def _upcast(self) -> Iterator[Any]:
        """The autoencoder, inside as it decodes."""
        vae, before = self.pipeline.vae, self.pipeline.vae.dtype
        vae.to(self.decoding_dtype)
        try:
            yield vae
        finally:
            vae.to(before)


def _architecture(pipeline: DiffusionPipeline) -> Architecture:
    takes_sizes = isinstance(pipeline, StableDiffusionXLPipeline)
    if takes_sizes or isinstance(pipeline, StableDiffusionPipeline):
        found = like(pipeline.unet.config.cross_attention_dim, takes_sizes)
        if found.layers:
            return found
    raise ESDError(
        f"the model is a {type(pipeline).__name__}, and only Stable Diffusion 1.x, 2.x and XL can "
        "be erased from: give another model"
    )


def automatic_precision(device: torch.device) -> torch.dtype:
    """fp32 on the CPU; on an accelerator bf16 where it has it, else fp16."""
    if device.type == "cpu":
        return torch.float32
    if device.type != "cuda":
        return torch.bfloat16
    with torch.cuda.device(device):  # of which it asks; emulation, before Ampere, is slow
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def load_denoiser(
    model: str, precision: str = "auto", device: str | None = None
) -> DiffusersDenoiser:
    """Loads a model by name, folder, single file or hub id.

    Args:
        model: "pocket", the folder of a diffusers pipeline, a .safetensors checkpoint, or a hub id.
        precision: what the frozen weights are held and computed in: auto, fp32, bf16 or fp16.
        device: of torch; by default the first accelerator, else the CPU.

    Raises:
        FileError: nothing can be loaded from there.
        ConfigError: there is no such device here.
    """
    place = _device(device or _first_device())
    dtype = PRECISIONS.get(precision) or automatic_precision(place)
    pipeline = _load_pipeline(model, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return DiffusersDenoiser(pipeline.to(place))


def _device(name: str) -> torch.device:
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # unknown, not built in, or not there
        raise ConfigError(
            f"there is no device {name} here: give cuda, mps or cpu ({first_line(error)})"
        ) from error
    return torch.device(name)


def _first_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_pipeline(model: str, dtype: torch.dtype) -> DiffusionPipeline:
    quiet = {"torch_dtype": dtype, "use_safetensors": True}
    path = Path(model)
    try:
        if model == POCKET:
            return StableDiffusionXLPipeline.from_pretrained(
                _POCKET_FOLDER, add_watermarker=False, **quiet
            )
        if path.is_file():
            return _load_single_file(path, dtype)
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise FileError(
                f"{model} is a folder without model_index.json: give a diffusers pipeline folder"
            )
        return DiffusionPipeline.from_pretrained(model, **quiet)
    except ESDError:
        raise
    except Exception as error:  # a damaged or foreign model trips the loaders in many ways
        raise FileError(
            f"no model can be loaded from {model}: give pocket, a diffusers folder, a .safetensors "
            f"checkpoint or a hub id ({first_line(error)})"
        ) from error


def _load_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    if path.suffix != ".safetensors":
        raise FileError(
            f"{path} is not a .safetensors file: other checkpoints can hide code and are not read"
        )
    names = read_header(path).tensors
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise FileError(f"{path} is not a checkpoint, since it holds no UNet: give a whole model")
    is_xl = any(name.startswith("conditioner.embedders.") for name in names)
    kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    return kind.from_single_file(str(path), torch_dtype=dtype)
