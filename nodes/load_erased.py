"""ESDLoadErased: applies a saved erasure to a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from .host import erased, folders
from .host.progress import told
from .schema import schema
from .types import Erased
from .widgets import plain_errors, verdict


class ESDLoadErased(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ESDLoadErased",
            display_name="ESD Load Erased",
            description=(
                "Applies an erasure from a file, so that the model forgets or has unlearned a "
                "concept, and checks that it was made for this kind of model. Also reads the "
                "official code's esd-*.safetensors, LECO files and other LoRAs. Several nodes in a "
                "row add up."
            ),
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to erase from."),
                io.Combo.Input(
                    "file",
                    options=folders.lora_names(),
                    tooltip="A file in the folders for LoRAs: models/loras, or output/loras where "
                    "ESD Train writes. Press R after a training. (official format): weights as the "
                    "official code writes them, which stock LoRA loaders do not read.",
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
                io.Model.Output("erased", tooltip="The model with the change applied."),
                Erased.Output(
                    "erasure",
                    tooltip="The change alone, at strength 1, for ESD Save Erased: to convert the "
                    "file.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return verdict(folders.lora_path, file)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> str:
        """A file that has been written anew is read anew."""
        status = folders.lora_path(file).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, model: Any, file: str, strength: float) -> io.NodeOutput:
        with plain_errors(cls.hidden.unique_id):
            loaded = erased.load(model, folders.lora_path(file), strength)
        # Said also where all is well: the page keeps the last words, a warning of another file's.
        shown = told(loaded.told, cls.hidden.unique_id)
        return io.NodeOutput(loaded.model, loaded.erasure or _none_of(file), ui=shown)


def _none_of(file: str) -> ExecutionBlocker:
    """What a node meets that asks for the erasure of an adapter that only the host reads."""
    return ExecutionBlocker(
        f"{file} is an adapter of another kind than LoRA, which ESD Save Erased cannot convert: "
        "give it an erasure, a LoRA or weights of an erased UNet"
    )
