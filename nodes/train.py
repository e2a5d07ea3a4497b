"""ESDTrain: erases concepts from a MODEL."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..esd_core.config.settings import ErasureConfig
from ..esd_core.errors import ESDError
from ..esd_core.files.metadata import Key
from ..esd_core.training.collapse import collapse
from ..esd_core.training.endings import ENDINGS
from .host import finished, patches, runs, training
from .host.folders import check_prefix, shown
from .host.progress import told
from .train_options import Options
from .types import Erased, Loss, TrainOptions
from .widgets import by_widget, errors_by_widget, settings, widget

WIDGETS = (
    *("concepts", "preserve", "method", "training.steps", "training.learning_rate"),
    *("negative_guidance", "width", "height", "seed"),
)


class ESDTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESDTrain",
            display_name="ESD Train (erase concepts)",
            category="ESD",
            description=(
                "Erases concepts from the weights of a model, given only their names, and writes "
                "the change as a LoRA file. The model that comes in stays as it is."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Stable Diffusion 1.x, 2.x or SDXL. What is patched into it, LoRAs "
                    "for example, is trained as it stands.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                *map(widget, WIDGETS),
                io.String.Input(
                    "filename_prefix",
                    default="esd/erased",
                    tooltip="Name of the file below output/loras; it gets a number. Stock LoRA "
                    "loaders list it after R is pressed.",
                ),
                TrainOptions.Input(
                    "options", optional=True, tooltip="From ESD Train Options; without, defaults."
                ),
            ],
            # The second name is what older hosts show: without one, the type.
            outputs=[
                io.Model.Output("erased", "erased", tooltip="The model with the concepts erased."),
                Erased.Output(
                    "erasure", "erasure", tooltip="The change alone, for ESD Save Erased."
                ),
                Loss.Output("loss", "loss", tooltip="For the stock node Plot Loss Graph."),
                io.String.Output(
                    "report", "report", tooltip="What came of it: what is left, what moved."
                ),
                io.String.Output(
                    "history",
                    "history",
                    tooltip="The last runs, one a line, and the stopped ones that can go on.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        concepts: str | None = None,
        preserve: str | None = None,
        width: int | None = None,
        height: int | None = None,
        filename_prefix: str | None = None,
    ) -> bool | str:
        """Sees literals alone: what a link gives is None here, and checked when it runs.

        The page shows the answer once for every input that is named here: of the others the host
        checks the bounds, and `execute` the rest before it trains.
        """
        values = {"concepts": concepts, "preserve": preserve, "width": width, "height": height}
        given = {name: value for name, value in values.items() if value is not None}
        try:
            if concepts is not None:
                _config(given, None)
            if filename_prefix is not None:
                check_prefix(filename_prefix)
        except ESDError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, filename_prefix: str | None = None, **_: Any) -> int:
        """Another one once a file that was made for that name has been deleted."""
        return finished.handed_out.losses(filename_prefix)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        filename_prefix: str,
        options: Options | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        config = _config(values, options)
        node = cls.hidden.unique_id
        resume = options.resume if options else True
        with errors_by_widget():
            trained = training.train(model, clip, config, filename_prefix, resume, node)
        finished.handed_out.add(filename_prefix, trained.path)
        report = _report(trained, config)
        erased = patches.erased(model, trained.erasure.tensors, 1.0)
        return io.NodeOutput(
            erased,
            trained.erasure,
            {"loss": trained.losses},
            report,
            runs.listed(),
            ui=told(report, node),
        )


def _config(values: dict[str, Any], options: Options | None) -> ErasureConfig:
    further = options.settings if options else {}
    with errors_by_widget():
        return ErasureConfig.from_mapping({**further, **settings(values)})


def _report(trained: training.Trained, config: ErasureConfig) -> str:
    """Where the file is, how the run ended, and what the probes measured."""
    metadata = trained.erasure.metadata
    ending = by_widget(ENDINGS.get(metadata.get(Key.ENDING, ""), ""))
    probes = json.loads(metadata.get(Key.PROBES, "{}"))
    warning = by_widget(collapse(probes, config.negative_guidance))
    return ";\n".join(
        (
            *([f"WARNING: {warning}"] if warning else []),
            _file(trained),
            *trained.notes,
            f"{metadata.get(Key.STEPS)} steps, {ending}",
            f"left of it, by the probe (0 % and below: gone): {_listed(probes.get('share', {}))}",
            f"drift of other prompts: {_listed(probes.get('drift', {}))}",
        )
    )


def _file(trained: training.Trained) -> str:
    if trained.source is None:
        return f"written to {shown(trained.path)}"
    if trained.source == trained.path:
        return f"the same inputs made this before, so it is taken: {shown(trained.path)}"
    return (
        f"the same inputs made {shown(trained.source)} before, so it is copied to "
        f"{shown(trained.path)}"
    )


def _listed(measured: dict[str, float]) -> str:
    """On one line, which wraps: a node has little room for text."""
    return ", ".join(
        f"{prompt or '(empty prompt)'} {part:.1%}" for prompt, part in measured.items()
    )
