"""What a training shows on its node: a bar, a line of text, a chart and previews."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import comfy.utils
from comfy.model_management import InterruptProcessingException
from comfy_api.latest import ui
from PIL import Image

from ...esd_core.config.settings import ErasureConfig
from ...esd_core.errors import first_line
from ...esd_core.files.cover import jpeg
from ...esd_core.method.probes import ProbeReport
from ...esd_core.models.swap import Weight
from ...esd_core.storage.output import megabytes
from ...esd_core.training.collapse import collapse
from ...esd_core.training.events import Progress
from ...esd_core.training.plan import Plan
from ...esd_core.training.trainer import Trainer
from ...esd_core.training.work import Work, expected, recording_rows, remaining
from .clock import Clock, written
from .denoiser import HostDenoiser
from .folders import shown
from .live import LiveRun, say
from .previews import Previewer

_BAR = 1000
_EDGE = 320
"""Of the pictures that a page is sent."""
_SECONDS = 0.5
"""Between two lines of text that no step has caused."""
_PROBES = 6
"""Points of the chart's shares, where the config asks for no probes: it takes that many to see
whether to stop."""


def told(text: str, node: str | None) -> ui.PreviewText:
    """Says it, and gives it to the history: of that alone the page shows nothing."""
    say(text, node)
    return ui.PreviewText(text)


def on_steps(total: int) -> Callable[..., None]:
    """A bar over the steps of several pictures, for the host's samplers to call at each."""
    bar = comfy.utils.ProgressBar(total)
    return lambda *_: bar.update(1)


class NodeEvents:
    """Speaks for a training on its node.

    The bar and the time left are of all that the network does: recording what the model predicts,
    sampling trajectories, steps, probes and previews.
    """

    def __init__(
        self,
        denoiser: HostDenoiser,
        config: ErasureConfig,
        live: LiveRun,
        previewer: Previewer,
        plan: Plan,
    ) -> None:
        self._config, self._live, self._previewer = config, live, previewer
        self._sampling_batch = plan.sampling_batch
        self._bar, self._clock, self._said = comfy.utils.ProgressBar(_BAR), Clock(), 0.0
        self._pictures: list[Image.Image] = []
        self._doing = f"{plan};\nrecording what the model predicts"
        training = config.training
        self._interval = training.probe_interval or max(1, training.steps // _PROBES)
        work = expected(config, denoiser, self._interval)
        self._expect(work, 0, recording_rows(config, denoiser))
        denoiser.on_rows = self._on_rows
        self._say()

    @property
    def cover(self) -> Image.Image | None:
        """The last preview."""
        return self._pictures[-1] if len(self._pictures) > 1 else None

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step: from here on it is known how much is left."""
        trainer.probe_interval = self._interval
        self._expect(remaining(trainer), trainer.step)
        total, step = self._config.training.steps, trainer.step
        # A run that goes on may still have batches of the round that it was cancelled in.
        is_sampling = trainer.rounds.ready == 0
        self._doing = "sampling trajectories" if is_sampling else f"step {step} of {total}"
        self._live.show(step=step, total=total, concepts=[*map(str, self._config.concepts)])
        self._say()
        if self._config.training.preview_every:
            self.on_preview(0, {})

    def on_step(self, progress: Progress) -> None:
        self._doing = f"step {progress.step} of {progress.total}, loss {progress.loss:.4g}"
        self._live.show(step=progress.step, loss=progress.loss)
        self._say()

    def on_probe(self, step: int, report: ProbeReport) -> None:
        ruined = bool(collapse(report.as_dict(), self._config.negative_guidance))
        told = {"share": report.share, "drift": report.drift, "ruined": ruined}
        self._live.show(probe={"step": step, **told})
        self._say()

    def on_preview(self, step: int, student: Mapping[str, Weight]) -> None:
        try:
            picture = self._previewer.draw(student, self._sampling_batch)
        except InterruptProcessingException:
            raise
        except Exception as error:  # not worth losing the run
            self._live.say(f"no preview of step {step}: {first_line(error)}")
            return
        if picture is None:
            return
        self._pictures = [*self._pictures[:1], picture]
        if not self._live.is_drawn:
            self._bar.update_absolute(self._share(), _BAR, ("JPEG", _row(self._pictures), None))
            return
        small = picture.copy()
        small.thumbnail((_EDGE, _EDGE))
        image = f"data:image/jpeg;base64,{jpeg(small)}"
        self._live.show(picture={"step": step, "image": image})

    def on_save(self, step: int, path: Path) -> None:
        size = megabytes(path.stat().st_size)
        self._live.parting = (
            f"the state of step {step} ({size}) is in {shown(path)};\n"
            "to go on with it, queue the same again; it is removed when the run is done"
        )

    def _on_rows(self, rows: int, is_trained: bool) -> None:
        self._clock.count(rows, is_trained)
        if time.monotonic() - self._said > _SECONDS:
            self._say()

    def _say(self) -> None:
        left = self._clock.seconds_left
        when = "" if left is None else f",\n{written(left)} left"
        self._live.say(self._doing + when)
        self._bar.update_absolute(self._share(), _BAR)
        self._said = time.monotonic()

    def _share(self) -> int:
        return round(_BAR * self._clock.share_done)

    def _expect(self, work: Work, step: int, recording: int = 0) -> None:
        """From that step on; previews come at the start, on the way and at the end."""
        every, steps = self._config.training.preview_every, self._config.training.steps
        drawn = 2 + (steps - 1) // every - step // every if every else 0
        self._clock.expect(work.evaluated + recording + self._previewer.rows * drawn, work.trained)


def _row(pictures: list[Image.Image]) -> Image.Image:
    """Side by side."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * width, 0))
    return row
