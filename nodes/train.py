"""ESDTrain: erases concepts from a MODEL."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ..esd_core.config.settings import AUTO, ErasureConfig
from ..esd_core.errors import counted
from ..esd_core.files.metadata import Key
from ..esd_core.training.collapse import collapse
from ..esd_core.training.endings import ENDINGS
from .defaults import resolved
from .host import finished, patches, runs, training
from .host.folders import check_prefix, shown
from .host.live import LiveRun
from .host.model import preset
from .schema import schema
from .train_options import Options
from .types import Erased, Loss, TrainOptions
from .widgets import OWN_DEFAULTS, by_widget, input_id, plain_errors, settings, verdict, widget

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
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input(
                    "model",
                    lazy=True,
                    tooltip="Stable Diffusion 1.x, 2.x, XL, 3 or 3.5, FLUX, Qwen-Image, Z-Image or "
                    "another that the help page names. What is patched into it, LoRAs for "
                    "example, is trained as it stands.",
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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the same checkpoint: with it, previews are true pictures.",
                ),
            ],
            outputs=[
                io.Model.Output("erased", tooltip="The model with the concepts erased."),
                Erased.Output("erasure", tooltip="The change alone, for ESD Save Erased."),
                Loss.Output("loss", tooltip="For the stock node Plot Loss Graph."),
                io.String.Output("report", tooltip="What came of it: what is left, what moved."),
                io.String.Output(
                    "history",
                    tooltip="The last runs, one a line, and the stopped ones that can go on.",
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
        return verdict(lambda: ErasureConfig.from_mapping(settings({"concepts": concepts})))

    @classmethod
    def fingerprint_inputs(cls, filename_prefix: str | None = None, **_: Any) -> int:
        """Another one once a file that was made for that name has been deleted."""
        return finished.handed_out.losses(filename_prefix)

    @classmethod
    def check_lazy_status(
        cls, filename_prefix: str, options: Options | None = None, **values: Any
    ) -> list[str]:
        """Checks all widgets before a MODEL is loaded for them, which can take minutes."""
        with cls._live(), plain_errors():
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
        vae: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        resume = options.resume if options else True
        with cls._live() as live, plain_errors():
            asked = _asked(values, options)
            config = resolved(asked, preset(model, values["method"]))
            trained = training.train(model, clip, config, filename_prefix, resume, live, vae)
            report = f"{_report(trained, config)}{_by_model(asked, config)}"
            live.say(report)
        finished.handed_out.add(filename_prefix, trained.path)
        erased = patches.erased(model, trained.erasure.tensors, 1.0)
        loss, said = {"loss": trained.losses}, ui.PreviewText(report)
        return io.NodeOutput(
            erased,
            trained.erasure,
            loss,
            report + _drifts(trained),
            runs.listed(),
            ui=said.as_dict() | _OURS,
        )

    @classmethod
    def _live(cls) -> LiveRun:
        return LiveRun(cls.hidden.unique_id, (cls.hidden.extra_pnginfo or {}).get("workflow"))


_OURS = {"esd_train": [True]}
"""By which web/live.js knows text of this node."""


def _asked(values: dict[str, Any], options: Options | None) -> dict[str, Any]:
    """Settings by dotted name, with None where a widget says auto."""
    further = options.settings if options else OWN_DEFAULTS
    return {**further, **settings(values)}


def _by_model(asked: dict[str, Any], config: ErasureConfig) -> str:
    """A line on what the widgets that said auto have stood for, or ""."""
    found = config.flat()
    told = ", ".join(f"{input_id(name)} {found[name]}" for name in WIDGETS if asked[name] is None)
    return f";\n{AUTO} stood for {told}" if told else ""


def _report(trained: training.Trained, config: ErasureConfig) -> str:
    """What is left, what drifted most, how the run ended, and the file: a node has little room."""
    metadata = trained.erasure.metadata
    measured = _measured(trained)
    warning = by_widget(collapse(measured, config.negative_guidance))
    ending = by_widget(ENDINGS.get(metadata.get(Key.ENDING, ""), ""))
    left = ", ".join(f"{name} {_share(part)}" for name, part in measured.get("share", {}).items())
    drifts = measured.get("drift", {})
    most = max(drifts, key=lambda prompt: drifts[prompt], default=None)
    drift = f"most drift: {drifts[most]:.1%}, {_named(most)}" if most is not None else ""
    steps = f"{counted(int(metadata.get(Key.STEPS, 0)), 'step')}, {ending}"
    told = (warning and f"WARNING: {warning}", left, drift, *trained.notes, steps, _file(trained))
    return ";\n".join(filter(None, told))


def _file(trained: training.Trained) -> str:
    if trained.source is None:
        return shown(trained.path)
    if trained.source == trained.path:
        return f"the same inputs made this before: {shown(trained.path)}"
    return f"the same inputs made {shown(trained.source)} before: copied to {shown(trained.path)}"


def _drifts(trained: training.Trained) -> str:
    """The drift of every prompt, for the output alone."""
    drifts = _measured(trained).get("drift", {})
    return "".join(f"\n{_named(prompt)}: drift {part:.1%}" for prompt, part in drifts.items())


def _measured(trained: training.Trained) -> dict[str, dict[str, float]]:
    return json.loads(trained.erasure.metadata.get(Key.PROBES, "{}"))


def _share(part: float) -> str:
    return f"{part:.0%} left"


def _named(prompt: str) -> str:
    return f'"{prompt}"' if prompt else "the empty prompt"
