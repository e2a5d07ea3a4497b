"""ESDSaveErased: writes an erasure, or an erased model, in other formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..esd_core.errors import ConfigError, ESDError
from ..esd_core.files.erasure import Erasure, write_erasure
from ..esd_core.files.lora import low_rank, write_lora
from .host import folders, saving
from .host.progress import told
from .types import Erased

ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL = "erasure", "LoRA", "UNet", "diffusers", "official"
_CHANGES = (ERASURE, LORA, OFFICIAL)
_WHOLE: dict[str, Callable[[Any, str], Path]] = {
    UNET: saving.write_whole_unet,
    DIFFUSERS: saving.write_diffusers,
}


class ESDSaveErased(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESDSaveErased",
            display_name="ESD Save Erased",
            category="ESD",
            description=(
                "Writes an erasure for LoRA loaders, whole or at a low rank, or an erased UNet "
                "for ComfyUI's UNETLoader or for diffusers."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "format",
                    options=[ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL],
                    default=ERASURE,
                    tooltip="erasure: the change alone, exactly, for ComfyUI's LoRA loaders. LoRA: "
                    "the change at a low rank, small, for other programs' loaders too. UNet: all "
                    "weights, for UNETLoader. diffusers: a folder for "
                    "UNet2DConditionModel.from_pretrained. official: the erased weights alone, "
                    "for the official code.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="esd/erased",
                    tooltip="Name below output/loras, output/diffusion_models or "
                    "output/diffusers; it gets a number.",
                ),
                Erased.Input(
                    "erasure",
                    optional=True,
                    tooltip="From ESD Train; for the formats erasure, LoRA and official.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The erased model, for the formats UNet and diffusers: it is written "
                    "with all that is patched into it. official takes its own weights alone.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="For the format LoRA: more keeps more of the change and makes a larger "
                    "file. The node says how much is kept.",
                ),
            ],
            outputs=[io.String.Output("path", "path", tooltip="Where it was written.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str) -> bool | str:
        try:
            folders.check_prefix(filename_prefix)
        except ESDError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        format: str,
        filename_prefix: str,
        erasure: Erasure | None = None,
        model: Any = None,
        rank: int = 16,
    ) -> io.NodeOutput:
        if format in _CHANGES:
            path, further = _write_change(format, filename_prefix, erasure, model, rank)
        else:
            path, further = _write_model(format, filename_prefix, model), ""
        report = f"written to {folders.shown(path)}{further}"
        return io.NodeOutput(str(path), ui=told(report, cls.hidden.unique_id))


def _write_change(
    form: str, prefix: str, erasure: Erasure | None, model: Any, rank: int
) -> tuple[Path, str]:
    """The path, and what to say of it."""
    if erasure is None:
        raise ConfigError(
            f"the format {form} needs the input erasure: connect that output of ESD Train, or "
            "choose the format UNet or diffusers for a MODEL"
        )
    if form == OFFICIAL:
        return saving.write_official_file(_needed(form, model), erasure, prefix), ""
    path = folders.next_file(folders.LORAS, prefix)
    if form == ERASURE:
        write_erasure(path, erasure)
        return path, ""
    lora = low_rank(erasure.change(), rank)
    write_lora(path, lora, erasure.architecture, erasure.metadata, torch.float16)
    return path, f";\n{lora}"


def _write_model(form: str, prefix: str, model: Any) -> Path:
    return _WHOLE[form](_needed(form, model), prefix)


def _needed(form: str, model: Any) -> Any:
    if model is None:
        raise ConfigError(
            f"the format {form} needs the input model: connect the erased MODEL of ESD Train or "
            "ESD Load Erased"
        )
    return model
