"""Models of diffusers from wherever they are: by name, folder, single file or hub id."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from ..errors import ConfigError, ESDError, FileError, first_line
from ..storage.dtypes import PRECISIONS
from ..storage.reading import read_header
from .diffusers_backend import DiffusersDenoiser
from .embedded import EMBEDDED, FLOW_SCALE, POCKET_DIT, WEIGHTS
from .headless import Headless
from .texts import sdxl_texts
from .transformer_backend import TransformerDenoiser


def denoiser_of(pipeline: DiffusionPipeline) -> Headless:
    """ESDError for a pipeline that cannot be erased from."""
    if isinstance(pipeline, (StableDiffusion3Pipeline, FluxPipeline)):
        return TransformerDenoiser.of(pipeline)
    if isinstance(pipeline, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        found = DiffusersDenoiser(pipeline)
        if found.architecture.layers:
            return found
    raise ESDError(
        f"the model is a {type(pipeline).__name__}, and only Stable Diffusion 1.x, 2.x, XL, 3 and "
        "3.5 and FLUX.1 can be erased from here: give another model"
    )


def computes_bf16(device: torch.device) -> bool:
    """Whether it does so itself. Emulation takes longer than fp32, on a CPU without AVX-512 thirty
    times as long."""
    if device.type == "cpu":
        # As torch's own tests ask; builds without oneDNN lack the question.
        return torch.backends.mkldnn.is_available() and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):  # of which it asks; before Ampere bf16 is emulated
        return torch.cuda.is_bf16_supported(including_emulation=False)


def automatic_precision(device: torch.device) -> torch.dtype:
    """fp32 on the CPU; on an accelerator bf16 where it has it, else fp16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if computes_bf16(device) else torch.float16


def quick_precision(device: str | None = None) -> str:
    """For pictures that need not be exact: on a CPU that computes bf16, that, which takes half of
    fp32's time there."""
    place = _device(device or _first_device())
    return "bf16" if place.type == "cpu" and computes_bf16(place) else "auto"


def load_denoiser(model: str, precision: str = "auto", device: str | None = None) -> Headless:
    """Loads a model by name, folder, single file or hub id.

    Args:
        model: "pocket", "pocket-dit", the folder of a diffusers pipeline, a .safetensors
            checkpoint, or a hub id.
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
    pipeline.to(place)
    if model == POCKET_DIT:
        network = SD3Transformer2DModel.from_pretrained(
            WEIGHTS / "transformer", torch_dtype=dtype, use_safetensors=True
        )
        return with_transformer(pipeline, network.to(place))
    return denoiser_of(pipeline)


def with_transformer(
    pocket: StableDiffusionXLPipeline, network: SD3Transformer2DModel
) -> TransformerDenoiser:
    """pocket-dit: that network behind pocket's text encoders and before its autoencoder, which is
    told that latents are louder."""
    config = pocket.vae.config
    pocket.vae.register_to_config(scaling_factor=FLOW_SCALE * config.scaling_factor)
    schedule = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return TransformerDenoiser(network, partial(sdxl_texts, pocket), pocket.vae, schedule)


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
        if model in EMBEDDED:
            unused = {"unet": None} if model == POCKET_DIT else {}
            return StableDiffusionXLPipeline.from_pretrained(
                WEIGHTS, add_watermarker=False, **quiet, **unused
            )
        if path.is_file():
            return _load_single_file(path, dtype)
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise FileError(
                f"{model} is a folder without model_index.json: give a diffusers pipeline folder"
            )
        absent = _absent(path) if path.is_dir() else {}
        return DiffusionPipeline.from_pretrained(model, **quiet, **absent)
    except ESDError:
        raise
    except Exception as error:  # a damaged or foreign model trips the loaders in many ways
        raise FileError(
            f"no model can be loaded from {model}: give {', '.join(EMBEDDED)}, a diffusers folder, "
            f"a .safetensors checkpoint or a hub id ({first_line(error)})"
        ) from error


def _absent(folder: Path) -> dict[str, None]:
    """Parts that a pipeline was saved without, as SD3's often is without T5: the loader has to be
    told."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {name: None for name in _T5 if name in index and None in (index[name] or [None])}


_T5 = ("text_encoder_3", "tokenizer_3")


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
