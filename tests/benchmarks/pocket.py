"""The embedded models, and settings of them for benchmarks."""

from __future__ import annotations

from typing import Any

from esd_core.cli import model as models
from esd_core.config.presets import settled
from esd_core.config.settings import ErasureConfig
from esd_core.models.embedded import POCKET
from esd_core.models.headless import Headless
from esd_core.training.plan import check
from esd_core.training.run import prepare
from esd_core.training.trainer import Trainer

CONCEPT = "Van Gogh"


def load(precision: str = "auto", model: str = POCKET) -> Headless:
    return models.load(model, precision)


def load_artist(model: str = POCKET) -> Headless:
    """What draws pictures that are only read."""
    return models.load_artist(model)


def config(model: str = POCKET, **settings: Any) -> ErasureConfig:
    """Its preset with other settings over it, dots written as two underscores."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return settled(model, {"concepts": [CONCEPT], **given})


def trainer(denoiser: Headless, config: ErasureConfig) -> Trainer:
    """As `erase` makes it."""
    return prepare(denoiser, config, check(denoiser, config))


class Silent:
    """Events and control of a run that nobody watches."""

    def on_step(self, progress: object) -> None: ...

    def on_preview(self, step: int, student: object) -> None: ...

    def on_save(self, step: int, path: object) -> None: ...

    def on_probe(self, step: int, report: object) -> None: ...

    def should_stop(self) -> bool:
        return False

    def should_finish(self) -> bool:
        return False
