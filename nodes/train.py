"""ESDTrain: erases concepts from a MODEL."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..esd_core.config.settings import AUTO, ErasureConfig
from ..esd_core.errors import ESDError
from ..esd_core.files.metadata import Key
from ..esd_core.training.endings import ENDINGS
from .defaults import resolved
from .host import patches, training
from .host.folders import check_prefix, shown
from .host.model import preset
from .host.progress import told
from .schema import schema
from .train_options import Options
from .types import Erased, Loss, TrainOptions
from .widgets import OWN_DEFAULTS, by_widget, input_id, plain_errors, settings, widget

WIDGETS = (
    *("concepts", "preserve", "method", "training.steps", "training.learning_rate"),
    *("negative_guidance", "width", "height", "seed"),
)


class ESDTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ESDTrain",
            display_name="ESD Train (erase concepts)",
            description=(
                "Erases concepts from the weights of a model, given only their names, and writes "
                "the change as a LoRA file: the model unlearns, forgets or deletes a style, an "
                "object, a person or nudity (NSFW). The model that comes in stays as it is. Papers "
                "also say ablate; LECO has the same aim."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    lazy=True,
                    tooltip="Stable Diffusion 1.x, 2.x or SDXL. What is patched into it, LoRAs "
                    "for example, is trained as it stands.",
                ),
                io.Clip.Input("clip", lazy=True, tooltip="The CLIP of the same checkpoint."),
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
            ],
        )

    @classmethod
    def validate_inputs(cls, concepts: str | None = None) -> bool | str:
        """What a link gives is None here, and checked later.

        The host blames every input that is named here: the one that is empty at first is named,
        and `check_lazy_status` tells of the others.
        """
        if concepts is None:
            return True
        try:
            with plain_errors():
                ErasureConfig.from_mapping(settings({"concepts": concepts}))
        except ESDError as error:
            return str(error)
        return True

    @classmethod
    def check_lazy_status(
        cls, filename_prefix: str, options: Options | None = None, **values: Any
    ) -> list[str]:
        """Checks all widgets before a MODEL is loaded for them, which can take minutes."""
        with plain_errors(cls.hidden.unique_id):
            check_prefix(filename_prefix)
            resolved(_asked(values, options))
        return ["model", "clip"]

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        filename_prefix: str,
        options: Options | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        node = cls.hidden.unique_id
        resume = bool(options and options.resume)
        with plain_errors(node):
            asked = _asked(values, options)
            config = resolved(asked, preset(model, values["method"]))
            trained = training.train(model, clip, config, filename_prefix, resume, node)
        report = f"{_report(trained)}{_by_model(asked, config)}"
        erased = patches.erased(model, trained.erasure.tensors, 1.0)
        return io.NodeOutput(
            erased, trained.erasure, {"loss": trained.losses}, report, ui=told(report, node)
        )


def _asked(values: dict[str, Any], options: Options | None) -> dict[str, Any]:
    """Settings by dotted name, with None where a widget says auto."""
    further = options.settings if options else OWN_DEFAULTS
    return {**further, **settings(values)}


def _by_model(asked: dict[str, Any], config: ErasureConfig) -> str:
    """A line on what the widgets that said auto have stood for, or ""."""
    found = config.flat()
    told = ", ".join(f"{input_id(name)} {found[name]}" for name in WIDGETS if asked[name] is None)
    return f";\n{AUTO} stood for {told}" if told else ""


def _report(trained: training.Trained) -> str:
    """Where the file is, how the run ended, and what the probes measured."""
    metadata = trained.erasure.metadata
    verb = "written to" if trained.is_new else "the same inputs made this before, so it is taken:"
    ending = by_widget(ENDINGS.get(metadata.get(Key.ENDING, ""), ""))
    probes = json.loads(metadata.get(Key.PROBES, "{}"))
    return ";\n".join(
        (
            f"{verb} {shown(trained.path)}",
            f"{metadata.get(Key.STEPS)} steps, {ending}",
            f"left of it, by the probe (0 % and below: gone): {_listed(probes.get('share', {}))}",
            f"drift of other prompts: {_listed(probes.get('drift', {}))}",
        )
    )


def _listed(measured: dict[str, float]) -> str:
    """On one line, which wraps: a node has little room for text."""
    return ", ".join(
        f"{prompt or '(empty prompt)'} {part:.1%}" for prompt, part in measured.items()
    )
