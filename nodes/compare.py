"""ESDCompare: pictures of a model and of its erased self, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from einops import rearrange
from torch import Tensor

from ..esd_core.config.rules import limits
from ..esd_core.config.settings import AUTO, SIZES
from ..esd_core.errors import ConfigError, counted
from ..esd_core.images import comparison
from .host import sampling
from .host.model import cfg as cfg_of
from .host.progress import on_steps
from .host.sampling import Sampling
from .schema import schema
from .widgets import number, number_or_auto, plain_errors

_MAX_PROMPTS, _MAX_CFG = 64, 100


class ESDCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ESDCompare",
            display_name="ESD Compare",
            description=(
                "Draws every prompt with the original and with the erased model, from the same "
                "noise, and measures what has changed: whether a concept was removed and "
                "forgotten, and what else went with it. The pictures are those of KSampler."
            ),
            is_output_node=True,
            inputs=[*_models(), *_widgets()],
            outputs=[
                io.Image.Output("grid", tooltip="All pictures with labels, a row a prompt."),
                io.Image.Output("originals", tooltip="The original's pictures, as a batch."),
                io.Image.Output("erased_images", tooltip="The erased model's, in the same order."),
                io.String.Output("report", tooltip="How far each picture has moved."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None) -> bool | str:
        """Sees the widget only: linked prompts are None here, and checked when the node runs."""
        if prompts is None:
            return True
        lines = _lines(prompts)
        if not lines:
            return _NO_PROMPT
        if len(lines) > _MAX_PROMPTS:
            return f"prompts has {len(lines)} lines: {_MAX_PROMPTS} at most"
        return True

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
        cfg: str,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        lines = _lines(prompts)
        if not lines:
            raise ConfigError(_NO_PROMPT)
        with plain_errors():
            guidance = _guidance(cfg, original)
        asked = Sampling(seed, steps, guidance, sampler_name, scheduler, width, height)
        texts = [sampling.encode(clip, line) for line in lines]
        against = sampling.encode(clip, negative)
        on_step = on_steps(2 * len(lines) * steps)
        columns = [
            torch.cat([sampling.draw(m, vae, text, against, asked, on_step) for text in texts])
            for m in (original, erased)
        ]
        pictures = [rearrange(column, "n h w c -> n c h w") for column in columns]
        image = _grid(lines, pictures, asked)
        rows = [row for (row,) in comparison.measure(pictures)]
        if clip_vision is not None:
            for row, cosine in zip(rows, sampling.likeness(clip_vision, *columns), strict=True):
                row["clip cosine"] = round(cosine, 5)
        report = f"erased against original, seed {seed}\n{comparison.report(lines, rows)}"
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
    size = limits(SIZES)
    return [
        io.String.Input(
            "prompts",
            multiline=True,
            default="",
            placeholder="PROMPTS TO DRAW, one a line:\na house in the style of Van Gogh",
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
        io.String.Input(
            "cfg",
            default=AUTO,
            tooltip="Guidance, as in KSampler. auto: what suits the MODEL, or a number. FLUX dev "
            "takes guidance as an input, at ComfyUI's own 3.5, and a cfg of 1.",
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
        *(
            number(name, int, size, {"default": 1024, "tooltip": "Of a picture, in pixels."})
            for name in ("width", "height")
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="Adds how alike the pictures are in what they show, by their embeddings.",
        ),
    ]


def _guidance(text: str, model: Any) -> float:
    """What the widget says; where that is auto, what suits the MODEL."""
    found = number_or_auto("cfg", text)
    if found is None:
        return cfg_of(model)
    if not 0 <= found <= _MAX_CFG:
        raise ConfigError(f"`cfg` must be {AUTO} or a number from 0 to {_MAX_CFG}, not {found:g}")
    return found


def _grid(prompts: Sequence[str], columns: Sequence[Tensor], asked: Sampling) -> Tensor:
    """IMAGE, [1, H, W, 3] in 0..1: all pictures with labels, the original's first.

    columns: [N, 3, H, W] a model.
    """
    image = comparison.draw(
        [(prompt, asked.seed) for prompt in prompts],
        ["erased"],
        columns,
        f"{counted(asked.steps, 'step')} of {asked.sampler}, {asked.scheduler}, cfg {asked.cfg:g}, "
        f"{asked.width}x{asked.height}",
    )
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
