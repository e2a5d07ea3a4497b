"""ESDSaveErased: writes an erasure, or an erased model, in other formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..esd_core.erasure import Erasure, write_erasure
from ..esd_core.errors import ConfigError, ESDError
from .host import folders, saving
from .types import Erased

ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL = "erasure", "lora", "UNet", "diffusers", "official"
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
                "Writes an erasure for LoRA loaders, at full or at low rank, or a whole erased "
                "UNet for ComfyUI's UNETLoader or for diffusers."
            ),
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "format",
                    options=[ERASURE, UNET, DIFFUSERS, LORA, OFFICIAL],
                    default=ERASURE,
                    tooltip="erasure: the change alone, a LoRA file. UNet: all weights, for "
                    "UNETLoader. diffusers: a folder for UNet2DConditionModel.from_pretrained. "
                    "lora: the change at low rank, for every loader of LoRAs. official: the erased "
                    "weights alone, for the official code.",
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
                    tooltip="From ESD Train; for erasure, lora and official.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The erased model. UNet and diffusers are written with all that is "
                    "patched into it; lora and official take its own weights, without patches.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Of a lora's layers; at 0 every layer has the rank that keeps 99 % of "
                    "its squared change.",
                    optional=True,
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where it was written.")],
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
        rank: int = 0,
    ) -> io.NodeOutput:
        path, report = _write(format, filename_prefix, erasure, model, rank)
        told = "\n".join(filter(None, (report, f"written to {folders.shown(path)}")))
        return io.NodeOutput(str(path), ui=ui.PreviewText(told))


def _write(
    form: str, prefix: str, erasure: Erasure | None, model: Any, rank: int
) -> tuple[Path, str]:
    """The path, and what is to be told of the file."""
    if form not in _WHOLE and erasure is None:
        raise ConfigError(
            f"the format {form} needs the input erasure: connect that output of ESD Train, or "
            "choose the format UNet or diffusers for a MODEL"
        )
    if form == ERASURE and erasure is not None:
        path = folders.next_file(folders.LORAS, prefix)
        write_erasure(path, erasure)
        return path, ""
    if model is None:
        raise ConfigError(
            f"the format {form} needs the input model: connect the erased MODEL of ESD Train or "
            "ESD Load Erased"
        )
    if erasure is not None and form not in _WHOLE:
        return saving.write_change(form, model, erasure, prefix, rank)
    return _WHOLE[form](model, prefix), ""
