"""The embedded models in ComfyUI: the weights of the diffusers folder in the host's own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...esd_core.models.embedded import FLOW_SCALE, POCKET, POCKET_DIT, WEIGHTS
from ...esd_core.models.keys import diffusers_to_canonical
from ...esd_core.storage.reading import read_tensors


def _config(part: str) -> dict[str, Any]:
    return json.loads((WEIGHTS / part / "config.json").read_text("utf-8"))


def _tensors(part: str, file: str) -> dict[str, Tensor]:
    tensors = read_tensors(WEIGHTS / part / f"{file}.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


_NETWORK = "diffusion_pytorch_model"
"""What diffusers calls the file of one."""
_UNET, _TRANSFORMER, _VAE = _config("unet"), _config("transformer"), _config("vae")


class PocketLatent(comfy.latent_formats.SDXL):
    """Latents as pocket's own autoencoder makes them."""

    scale_factor = _VAE["scaling_factor"]

    def __init__(self) -> None:
        super().__init__()
        self.taesd_decoder_name = None  # those are for SDXL's latents
        # Least squares over 192 of its own pictures (r2 0.58): for previews only.
        self.latent_rgb_factors = [
            [-1.1292, -0.8972, -0.3860],
            [-0.0187, 0.0402, 0.0921],
            [0.0058, -0.1585, -0.2121],
            [0.0940, -0.4840, -0.8451],
        ]
        self.latent_rgb_factors_bias = [0.1737, 0.0746, -0.0175]


class LoudPocketLatent(PocketLatent):
    """The same latents as pocket-dit takes them."""

    scale_factor = FLOW_SCALE * PocketLatent.scale_factor

    def __init__(self) -> None:
        super().__init__()
        self.latent_rgb_factors = [
            [factor / FLOW_SCALE for factor in row] for row in self.latent_rgb_factors
        ]


class PocketSDXL(comfy.supported_models.SDXL):
    """How the host knows pocket's UNet by its sizes."""

    unet_config = {
        "model_channels": _UNET["block_out_channels"][0],
        "use_linear_in_transformer": True,
        "context_dim": _UNET["cross_attention_dim"],
        "adm_in_channels": _UNET["projection_class_embeddings_input_dim"],
        "use_temporal_attention": False,
    }
    # Heads are as wide everywhere.
    unet_extra_config = {
        "num_heads": -1,
        "num_head_channels": _UNET["block_out_channels"][0] // _UNET["attention_head_dim"][0],
    }
    latent_format = PocketLatent

    def get_model(
        self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None
    ) -> comfy.model_base.SDXL:
        model = super().get_model(state_dict, prefix, device)
        model.embedder = Timestep(_UNET["addition_time_embed_dim"])
        return model


class PocketSD3(comfy.supported_models.SD3):
    """How the host knows pocket-dit's transformer by its sizes."""

    unet_config = {
        "in_channels": _TRANSFORMER["in_channels"],
        "depth": _TRANSFORMER["num_layers"],
        "adm_in_channels": _TRANSFORMER["pooled_projection_dim"],
    }
    sampling_settings = {"shift": 1.0}
    latent_format = LoudPocketLatent


KINDS = {POCKET: PocketSDXL, POCKET_DIT: PocketSD3}
"""The embedded models, by name."""


def name_of(model: ModelPatcher) -> str | None:
    """The embedded model that a MODEL is."""
    kind = type(model.model.model_config)
    return next((name for name, own in KINDS.items() if own is kind), None)


def register() -> None:
    """Lets UNETLoader know them from here on, so that what is saved of them loads again."""
    for kind in KINDS.values():
        if kind not in comfy.supported_models.models:
            comfy.supported_models.models.insert(0, kind)


def load_model(name: str, disable_dynamic: bool = False) -> ModelPatcher:
    """MODEL. `disable_dynamic` is what the host asks for when it wants a copy of its own."""
    register()
    only_newer_hosts_know = {"disable_dynamic": True} if disable_dynamic else {}
    # The host knows diffusers' names of a transformer by itself.
    state = _unet_state() if name == POCKET else _tensors("transformer", _NETWORK)
    model = comfy.sd.load_diffusion_model_state_dict(
        state, model_options={"dtype": torch.float32}, **only_newer_hosts_know
    )
    model.cached_patcher_init = (load_model, (name,))
    return model


def _unet_state() -> dict[str, Tensor]:
    names = diffusers_to_canonical(_UNET)
    return {names[name]: tensor for name, tensor in _tensors("unet", _NETWORK).items()}


def load_clip() -> comfy.sd.CLIP:
    """CLIP: SDXL's two towers, with pocket's sizes."""
    target = comfy.supported_models_base.ClipTarget(
        comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
    )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={
            "dtype": torch.float32,
            "clip_l_model_config": _config("text_encoder"),
            "clip_g_model_config": _config("text_encoder_2"),
        },
    )
    clip.load_sd(_clip_state(), full_model=True)
    return clip


def _clip_state() -> dict[str, Tensor]:
    towers = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    state = {
        f"{tower}.transformer.{_clip_name(name)}": tensor
        for tower, folder in towers.items()
        for name, tensor in _tensors(folder, "model").items()
    }
    # The first tower's pooled text is not used; the host wants its projection all the same.
    width = _config("text_encoder")["hidden_size"]
    state["clip_l.transformer.text_projection.weight"] = torch.eye(width)
    return state


def _clip_name(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def load_vae() -> comfy.sd.VAE:
    """VAE. The host's autoencoder attends in its middle and pocket's does not: with a projection
    of zeros that attention adds nothing."""
    widths = _VAE["block_out_channels"]
    state = _tensors("vae", _NETWORK)
    for side in ("encoder", "decoder"):
        state |= _idle_attention(f"{side}.mid.attn_1", widths[-1])
    config = {
        "double_z": True,
        "z_channels": _VAE["latent_channels"],
        "resolution": _VAE["sample_size"],
        "in_channels": _VAE["in_channels"],
        "out_ch": _VAE["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": _VAE["layers_per_block"],
        "attn_resolutions": [],
    }
    params = {"ddconfig": config, "embed_dim": _VAE["latent_channels"]}
    return comfy.sd.VAE(sd=state, config={"params": params})


def _idle_attention(path: str, width: int) -> dict[str, Tensor]:
    """Matrices, as diffusers has them: the host makes 1x1 convolutions of those too."""
    state = {f"{path}.norm.weight": torch.ones(width), f"{path}.norm.bias": torch.zeros(width)}
    for layer in ("q", "k", "v", "proj_out"):
        state[f"{path}.{layer}.weight"] = torch.zeros(width, width)
        state[f"{path}.{layer}.bias"] = torch.zeros(width)
    return state
