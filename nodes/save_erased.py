"""ESDSaveErased: writes an erasure, or an erased model, in other formats."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..esd_core.files.erasure import Erasure
from ..esd_core.files.formats import FORMATS, WRITTEN
from .host import folders, saving
from .host.progress import told
from .schema import schema
from .types import Erased
from .widgets import plain_errors, verdict


class ESDSaveErased(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ESDSaveErased",
            display_name="ESD Save Erased",
            description=(
                "Writes an erasure for LoRA loaders, whole or at a low rank, or an erased UNet "
                "for ComfyUI's UNETLoader or for diffusers. Converts saved files, too: with ESD "
                "Load Erased before it. What was removed or unlearned stays so in all of them."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "format",
                    options=list(WRITTEN),
                    default=next(iter(WRITTEN)),
                    tooltip=" ".join(
                        f"{label}: {FORMATS[name].purpose}." for label, name in WRITTEN.items()
                    ),
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
                    tooltip="From ESD Train or ESD Load Erased; for the formats erasure, LoRA and "
                    "official. UNet notes in its file what was erased.",
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
            outputs=[io.String.Output("path", tooltip="Where it was written.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str) -> bool | str:
        return verdict(folders.check_prefix, filename_prefix)

    @classmethod
    def execute(
        cls,
        format: str,
        filename_prefix: str,
        erasure: Erasure | None = None,
        model: Any = None,
        rank: int = 16,
    ) -> io.NodeOutput:
        with plain_errors(cls.hidden.unique_id):
            path, report = saving.save(WRITTEN[format], filename_prefix, erasure, model, rank)
        further = f";\n{report}" if report else ""
        said = f"written to {folders.shown(path)}{further}"
        return io.NodeOutput(str(path), ui=told(said, cls.hidden.unique_id))
