"""ESDLoadErased: applies a saved erasure to a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..esd_core.errors import ESDError
from .host import erased, folders
from .host.progress import told


class ESDLoadErased(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESDLoadErased",
            display_name="ESD Load Erased",
            category="ESD",
            description=(
                "Applies an erasure from a file, and checks that it was made for this kind of "
                "model. Also reads the official code's esd-*.safetensors, and LoRAs."
            ),
            is_output_node=False,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Combo.Input(
                    "file",
                    options=folders.lora_names(),
                    tooltip="A file in the folders for LoRAs: models/loras, or output/loras where "
                    "ESD Train writes. Press R after a training.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="1 is what was trained; 0 changes nothing, below 0 strengthens the "
                    "concept.",
                ),
            ],
            outputs=[
                io.Model.Output("erased", "erased", tooltip="The model with the change applied.")
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        try:
            folders.lora_path(file)
        except ESDError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> str:
        """A file that has been written anew is read anew."""
        status = folders.lora_path(file).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, model: Any, file: str, strength: float) -> io.NodeOutput:
        changed, warning = erased.load(model, folders.lora_path(file), strength)
        # Said also where all is well: the page keeps the last words, a warning of another file's.
        return io.NodeOutput(changed, ui=told(warning or f"applied {file}", cls.hidden.unique_id))
