"""ESDCompare: pictures of a model and of its erased self, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..esd_core.errors import ConfigError
from ..esd_core.images.grid import DIFFERENCE_HEADER, Row, comparison_grid, difference
from ..esd_core.images.measures import measures
from .host import sampling
from .host.progress import Steps
from .host.sampling import Sampling

_MOST = 64


class ESDCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ESDCompare",
            display_name="ESD Compare",
            category="ESD",
            description=(
                "Draws every prompt with the original and with the erased model, from the same "
                "noise, and measures what has changed. The pictures are those of KSampler."
            ),
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[*_models(), *_widgets()],
            outputs=[
                io.Image.Output(
                    "grid", "grid", tooltip="All pictures with labels, a row a prompt."
                ),
                io.Image.Output(
                    "originals", "originals", tooltip="The original's pictures, as a batch."
                ),
                io.Image.Output(
                    "erased_images",
                    "erased_images",
                    tooltip="The erased model's, in the same order.",
                ),
                io.String.Output("report", "report", tooltip="How far each picture has moved."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None) -> bool | str:
        """Sees a literal alone: prompts that a link gives are None here."""
        if prompts is None:
            return True
        lines = _lines(prompts)
        if not lines:
            return _NO_PROMPT
        return True if len(lines) <= _MOST else f"prompts has {len(lines)} lines: {_MOST} at most"

    @classmethod
    def execute(
        cls,
        original: Any,
        erased: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        negative: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        clip_vision: Any = None,
        slider: Any = None,
    ) -> io.NodeOutput:
        lines = _lines(prompts)
        if not lines:
            raise ConfigError(_NO_PROMPT)
        asked = Sampling(seed, steps, cfg, sampler_name, scheduler, width, height)
        texts = [sampling.encode(clip, line) for line in lines]
        against = sampling.encode(clip, negative)
        bar = Steps(2 * len(lines) * steps)
        columns = [
            torch.cat([sampling.draw(m, vae, text, against, asked, bar.on_step) for text in texts])
            for m in (original, erased)
        ]
        measured = _measured(columns, clip_vision)
        image = _grid(lines, columns, asked)
        report = _report(lines, measured, asked)
        return io.NodeOutput(image, *columns, report, ui=cls._shown(image, columns))

    @classmethod
    def _shown(cls, grid: Tensor, columns: Sequence[Tensor]) -> dict[str, Any]:
        """The grid, and what web/compare.js puts into the slider."""
        before, after = (ui.PreviewImage(column, cls=cls).as_dict()["images"] for column in columns)
        return ui.PreviewImage(grid, cls=cls).as_dict() | {"a_images": before, "b_images": after}


_NO_PROMPT = "prompts is empty: write at least one prompt to draw, one a line"


def _models() -> list[io.Input]:
    return [
        io.Model.Input("original", tooltip="The model before the erasure."),
        io.Model.Input("erased", tooltip="The model from ESD Train or ESD Load Erased."),
        io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
    ]


def _widgets() -> list[io.Input]:
    size = {"default": 1024, "min": 64, "max": 4096, "step": 8}
    return [
        io.String.Input(
            "prompts",
            multiline=True,
            default="",
            placeholder="one prompt a line",
            tooltip="One a line: some with the concept, some near it, some that have nothing to do "
            "with it and must stay.",
        ),
        io.String.Input("negative", default="", tooltip="What guidance leads away from."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,
            tooltip="Of the noise, the same for every picture.",
        ),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps a picture."),
        io.Float.Input(
            "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance, as in KSampler."
        ),
        io.Combo.Input(
            "sampler_name",
            options=sampling.SAMPLERS,
            default="euler",
            tooltip="As in KSampler.",
        ),
        io.Combo.Input(
            "scheduler", options=sampling.SCHEDULERS, default="normal", tooltip="As in KSampler."
        ),
        io.Int.Input("width", tooltip="Of a picture, in pixels.", **size),
        io.Int.Input("height", tooltip="Of a picture, in pixels.", **size),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="Adds how alike the pictures are in what they show, by their embeddings.",
        ),
        *_slider(),
    ]


def _slider() -> list[io.Input]:
    """The host's widget for comparing pictures, where it has one."""
    if not hasattr(io, "ImageCompare"):
        return []
    tooltip = "Original and erased under one slider, after a run."
    return [io.ImageCompare.Input("slider", optional=True, tooltip=tooltip)]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _chw(pictures: Tensor) -> Tensor:
    return pictures.movedim(-1, 1)


def _measured(columns: Sequence[Tensor], vision: Any) -> list[dict[str, float]]:
    """By name, a row a prompt."""
    rows = [measures(a, b) for a, b in zip(*map(_chw, columns), strict=True)]
    if vision is not None:
        for row, cosine in zip(rows, sampling.likeness(vision, *columns), strict=True):
            row["clip cosine"] = round(cosine, 5)
    return rows


def _grid(lines: Sequence[str], columns: Sequence[Tensor], asked: Sampling) -> Tensor:
    """IMAGE, [1, H, W, 3]."""
    rows = [
        Row(line, [a, b, difference(a, b)], sublabel=f"seed {asked.seed}")
        for line, a, b in zip(lines, *map(_chw, columns), strict=True)
    ]
    footer = (
        f"{asked.steps} steps of {asked.sampler}, {asked.scheduler}, cfg {asked.cfg:g}, "
        f"{asked.width}x{asked.height}"
    )
    image = comparison_grid(rows, ["original", "erased", DIFFERENCE_HEADER], footer=footer)
    return _tensor(image)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def _report(lines: Sequence[str], measured: Sequence[dict[str, float]], asked: Sampling) -> str:
    """A line a prompt, then the means."""
    names = list(measured[0])
    means = {n: sum(row[n] for row in measured) / len(measured) for n in names}
    rows = [*zip(measured, lines, strict=True), (means, "mean of all")]
    text = [
        f"{'  '.join(f'{name} {row[name]:.3f}' for name in names)}  {label}" for row, label in rows
    ]
    return "\n".join([f"erased against original, seed {asked.seed}", *text])
