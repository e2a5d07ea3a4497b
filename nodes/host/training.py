"""From a MODEL and a CLIP to an erasure on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
from comfy.cli_args import args
from comfy.model_management import (
    InterruptProcessingException,
    throw_exception_if_processing_interrupted,
)
from comfy.model_patcher import ModelPatcher

from ...esd_core.config.settings import ErasureConfig
from ...esd_core.errors import ESDError
from ...esd_core.files.cover import covered
from ...esd_core.files.erasure import Erasure
from ...esd_core.files.metadata import Key
from ...esd_core.files.native import read_erasure, write_erasure
from ...esd_core.training.checkpoint import resumable
from ...esd_core.training.out_of_memory import oom_as_error
from ...esd_core.training.plan import check
from ...esd_core.training.run import Result, encoded_prompts, finish, prepare, probed_prompts
from ...esd_core.training.trainer import Trainer
from . import finished, folders, runs, states
from .denoiser import HostDenoiser
from .live import LiveRun
from .model import architecture, refuse_quantised, refuse_split
from .previews import Previewer
from .progress import NodeEvents
from .session import borrowed
from .text import Texts

_REPORTING = {"training.save_every", "training.preview_every"}
_EVERYTHING = 1e20


@dataclass(frozen=True)
class Trained:
    """An erasure that lies in a file.

    Attributes:
        source: the file of the same run that it was taken from; None when it was trained now.
        notes: what else there is to say of how it came about.
    """

    erasure: Erasure
    path: Path
    source: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def losses(self) -> list[float]:
        """Two at least, and not all equal: the stock graph divides by their range."""
        losses: list[float] = json.loads(self.erasure.metadata.get(Key.LOSSES, "[]")) or [0.0]
        is_flat = min(losses) == max(losses)
        return [*losses, math.nextafter(losses[-1], math.inf)] if is_flat else losses


def train(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    config: ErasureConfig,
    prefix: str,
    resume: bool,
    live: LiveRun,
    vae: Any = None,
) -> Trained:
    """Trains as `config` says and writes the erasure, or finds what the same inputs made before.

    Args:
        prefix: of the file's name, below output/loras.
        resume: go on from the state that a stopped run of the same inputs has left, if there is
            one.
        live: what shows it on its node.
        vae: VAE of the same checkpoint, for true previews.

    Raises:
        ESDError: an input does not fit.
        InterruptProcessingException: on Cancel; the state is saved.
    """
    kind = architecture(model)
    refuse_quantised(model)
    refuse_split(model)
    _refuse_too_late(model, config)
    texts = Texts(clip)
    with oom_as_error("free more of the device for the text encoders, or take a smaller model"):
        texts.learn(encoded_prompts(config, kind), partial(_tell, live, "encoding prompt"))
    # On an accelerator everything else makes room; on the CPU there is nowhere to go.
    needed = 0 if comfy.model_management.is_device_cpu(model.load_device) else _EVERYTHING
    with oom_as_error(), borrowed(model, config.training.precision, needed) as own:
        denoiser = HostDenoiser(own, texts)
        course = _course(config, denoiser, texts)
        run = _digest([course, {n: v for n, v in config.flat().items() if n not in _REPORTING}])
        known = finished.find(prefix, run, config.training.steps)
        if known:
            states.clear(course, config.training.steps)
            return _taken(known, prefix)
        previewer = Previewer(denoiser, config, vae)
        plan = check(denoiser, config, partial(_tell, live, "planning memory: counting"))
        events = NodeEvents(denoiser, config, live, previewer, plan)
        state, notes = _state(course, config, resume)
        trainer = prepare(denoiser, config, plan, state, state.is_file())
        result = _train(trainer, events, live)
    trained = replace(_write(result, prefix, run), notes=notes)
    runs.remember(trainer, result.outcome.ending, result.outcome.probes, trained.path)
    if finished.is_whole(trained.erasure.metadata, config.training.steps):
        states.clear(course, len(trainer.losses))
    return trained


def _refuse_too_late(model: ModelPatcher, config: ErasureConfig) -> None:
    """ESDError for same bits each time where the host has not asked for them at its start."""
    is_cpu = comfy.model_management.is_device_cpu(model.load_device)
    if config.training.deterministic and not (is_cpu or args.deterministic):
        raise ESDError(
            "`training.deterministic` has to be known before a GPU is first used: start ComfyUI "
            "with --deterministic, or switch it off"
        )


def _tell(live: LiveRun, doing: str, what: str) -> None:
    """Before each piece of what comes before the first step; Cancel ends it there."""
    throw_exception_if_processing_interrupted()
    live.say(f"{doing} {what}")


def _state(course: str, config: ErasureConfig, resume: bool) -> tuple[Path, tuple[str, ...]]:
    """The state to go on from, or the name of a new one; and what there is to say of it."""
    longest, beyond = states.find(course, config.training.steps)
    if longest and resume:
        return longest.path, (f"went on from step {longest.step} of a stopped run",)
    left = [*([longest] if longest else []), *beyond]
    why = "resume is off" if longest else "those are more steps than are asked for"
    notes = (
        f"started afresh beside the state of step {state.step} in {folders.shown(state.path)} "
        f"({why})"
        for state in left
    )
    return states.new_file(course, config), tuple(notes)


def _train(trainer: Trainer, events: NodeEvents, live: LiveRun) -> Result:
    events.on_start(trainer)
    try:
        outcome = trainer.run(events, live)
    except BaseException as error:
        is_cancel = isinstance(error, InterruptProcessingException)
        runs.remember(trainer, "stopped" if is_cancel else "failed")
        raise
    if outcome.ending == "stopped":
        runs.remember(trainer, "stopped", outcome.probes)
        raise InterruptProcessingException
    result = finish(trainer, outcome)
    return replace(result, erasure=covered(result.erasure, events.cover))


def _write(result: Result, prefix: str, run: str) -> Trained:
    outcome = result.outcome
    own = {
        Key.LOSSES: json.dumps([float(f"{loss:.6g}") for loss in outcome.losses]),
        Key.ENDING: outcome.ending,
    }
    if outcome.ending != "by hand":  # the inputs alone do not make that file again
        own[Key.RUN] = run
    erasure = replace(result.erasure, metadata={**result.erasure.metadata, **own})
    return _written(erasure, prefix)


def _written(erasure: Erasure, prefix: str) -> Trained:
    path = folders.next_file(folders.LORAS, prefix)
    write_erasure(path, erasure)
    return Trained(replace(erasure, path=path), path)


def _taken(known: Path, prefix: str) -> Trained:
    """What the same inputs have made, under the name that is asked for now."""
    erasure = read_erasure(known)
    if known in folders.numbered_files(folders.LORAS, prefix):
        return Trained(erasure, known, source=known)
    return replace(_written(erasure, prefix), source=known)


# -- what makes a run the same -----------------------------------------------------------------


def _course(config: ErasureConfig, denoiser: HostDenoiser, texts: Texts) -> str:
    """A digest of what decides the course of a run, but not its end: settings, weights, CLIP."""
    flat = config.flat()
    settings = {name: value for name, value in flat.items() if name not in resumable(flat)}
    weights = [
        [name, float(tensor.float().sum()), float(tensor.float().norm())]
        for name, tensor in denoiser.parameters().items()
    ]
    states = [texts.condition(prompt)["cond"] for prompt in probed_prompts(config)]
    text = [[float(state.sum()), float(state.norm())] for state in states]
    levels = float(denoiser.model.model.model_sampling.sigmas.sum())
    return _digest([settings, weights, text, levels, denoiser.prediction.name])


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
