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

ERASURE, UNET, DIFFUSERS = "erasure", "UNet", "diffusers"
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
                "Writes an erasure for LoRA loaders, or a whole erased UNet for ComfyUI's "
                "UNETLoader or for diffusers."
            ),
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "format",
                    options=[ERASURE, UNET, DIFFUSERS],
                    default=ERASURE,
                    tooltip="erasure: the change alone, a LoRA file. UNet: all weights, for "
                    "UNETLoader. diffusers: a folder for UNet2DConditionModel.from_pretrained.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="esd/erased",
                    tooltip="Name below output/loras, output/diffusion_models or "
                    "output/diffusers; it gets a number.",
                ),
                Erased.Input(
                    "erasure", optional=True, tooltip="From ESD Train; for the format erasure."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The erased model, for the formats UNet and diffusers. It is written "
                    "with all that is patched into it.",
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
    ) -> io.NodeOutput:
        path = _write(format, filename_prefix, erasure, model)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"written to {folders.shown(path)}"))


def _write(form: str, prefix: str, erasure: Erasure | None, model: Any) -> Path:
    if form == ERASURE:
        if erasure is None:
            raise ConfigError(
                "the format erasure needs the input erasure: connect that output of ESD Train, or "
                "choose the format UNet or diffusers for a MODEL"
            )
        path = folders.next_file(folders.LORAS, prefix)
        write_erasure(path, erasure)
        return path
    if model is None:
        raise ConfigError(
            f"the format {form} needs the input model: connect the erased MODEL of ESD Train or "
            "ESD Load Erased"
        )
    return _WHOLE[form](model, prefix)
