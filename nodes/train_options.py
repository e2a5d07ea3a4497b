"""ESDTrainOptions: what ESDTrain has no room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..esd_core.config.settings import ErasureConfig
from .schema import schema
from .types import TrainOptions
from .widgets import plain_errors, settings, verdict, widget

WIDGETS = (
    *("trajectory.source", "trajectory.steps", "trajectory.guidance", "trajectory.count"),
    *("trajectory.reuse", "preserve_empty", "preserve_weight"),
    *("training.batch_size", "training.optimizer", "training.weight_decay", "training.warmup"),
    *("training.max_grad_norm", "training.rank", "training.alpha", "training.precision"),
    *("training.gradient_checkpointing", "training.save_every", "training.preview_every"),
    *("training.probe_every", "training.until", "training.max_drift", "training.save_dtype"),
)
LATER = (
    *("contexts", "training.schedule", "training.loss_weight", "training.deterministic"),
    "training.robust",
)
"""Last, so that workflows of before open as they were."""
EVERYDAY = {
    *("preserve_weight", "training.batch_size", "training.optimizer", "training.rank"),
    *("training.gradient_checkpointing", "training.preview_every", "training.until"),
    *("training.max_drift", "contexts"),
}
"""The others are hidden until a person asks for more, where the host can."""


@dataclass(frozen=True)
class Options:
    """Settings by dotted name, and whether to go on with a cancelled run."""

    settings: Mapping[str, Any]
    resume: bool


class ESDTrainOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ESDTrainOptions",
            display_name="ESD Train Options",
            description=(
                "Further settings of ESD Train, for those who want to forget or unlearn a concept "
                "in another way. auto is what suits the MODEL."
            ),
            inputs=[
                *map(_widget, WIDGETS),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on from the state that a stopped run with the same inputs has "
                    "left, if there is one. Off: start afresh, and leave that state alone.",
                ),
                *map(_widget, LATER),
            ],
            outputs=[TrainOptions.Output("options", tooltip="For ESD Train.")],
        )

    @classmethod
    def validate_inputs(cls, gradient_checkpointing: bool | str) -> bool | str:
        """Named, so that the host does not look: it was a switch in workflows of version 0.1."""
        asked = {"concepts": ["any"], "training.gradient_checkpointing": gradient_checkpointing}
        return verdict(ErasureConfig.from_mapping, asked)

    @classmethod
    def execute(cls, resume: bool, **values: Any) -> io.NodeOutput:
        with plain_errors():
            return io.NodeOutput(Options(settings(values), resume))


def _widget(name: str) -> io.Input:
    return widget(name, is_advanced=name not in EVERYDAY)
