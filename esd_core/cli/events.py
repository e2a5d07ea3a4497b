"""Progress of a run on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import ErasureConfig
from ..errors import first_line
from . import outputs
from .console import note, progress_bar
from .room import Room

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..method.probes import ProbeReport
    from ..models.headless import Headless
    from ..models.swap import Weight
    from ..training.events import Progress

_PREVIEW_STEPS = 20


class TerminalEvents:
    """Shows the run on the terminal; previews become pictures beside the erasure."""

    def __init__(
        self, denoiser: Headless, config: ErasureConfig, out: Path, is_shown: bool = True
    ) -> None:
        """is_shown: whether there is a bar, which one of several runs or ranks would disturb."""
        self.bar = progress_bar(config.training.steps, "steps", is_shown)
        self.saved = 0
        self.cover: Image | None = None
        """The first concept's last picture."""
        self._denoiser, self._config, self._out = denoiser, config, out
        self._room: Room | None = None

    def on_step(self, progress: Progress) -> None:
        if self.bar.n == 0:
            # Steps of an earlier run do not count for the time left.
            self.bar.initial = progress.step - 1
        self.bar.set_postfix_str(f"loss {progress.loss:.4g}", refresh=False)
        self.bar.update(progress.step - self.bar.n)

    def on_preview(self, step: int, student: Mapping[str, Weight]) -> None:
        path = self._out.with_name(f"{self._out.stem}.step-{step:06}.png")
        try:
            self._draw(path, step, student)
        except Exception as error:  # not worth losing the run
            note(f"esd: warning: no preview of step {step}: {first_line(error)}")

    def on_probe(self, step: int, report: ProbeReport) -> None:
        """The report at the end says the last one."""

    def on_save(self, step: int, path: Path) -> None:
        self.saved = step

    def _draw(self, path: Path, step: int, student: Mapping[str, Weight]) -> None:
        from ..images.grid import Row, comparison_grid, to_image
        from ..images.render import render
        from ..method.terms import erasing

        config = self._config
        prompts = [term.student for term in erasing(config)]
        seeds, guidance = [config.seed] * len(prompts), config.trajectory.guidance
        size = (config.width, config.height)
        self._room = self._room or Room(self._denoiser, *size)
        self._room.side_by_side(1)  # or there is none, and the run goes on
        with self._denoiser.swapped(student):
            pictures = render(
                self._denoiser, prompts, seeds, _PREVIEW_STEPS, guidance, *size, batch=1
            )
        self.cover = to_image(pictures[0])
        rows = [Row(p, [picture]) for p, picture in zip(prompts, pictures, strict=True)]
        outputs.write_png(path, comparison_grid(rows, [f"step {step}"]), force=True)
