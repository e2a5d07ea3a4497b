"""From a MODEL and a CLIP to an erasure on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
from comfy.model_management import InterruptProcessingException, processing_interrupted

from ...esd_core.config.settings import ErasureConfig
from ...esd_core.errors import ESDError
from ...esd_core.files.cover import covered
from ...esd_core.files.erasure import Erasure
from ...esd_core.files.metadata import Key
from ...esd_core.files.native import read_erasure, write_erasure
from ...esd_core.storage.reading import read_header
from ...esd_core.training.checkpoint import RESUMABLE
from ...esd_core.training.out_of_memory import oom_as_error
from ...esd_core.training.plan import check
from ...esd_core.training.run import Result, encoded_prompts, finish, prepare
from ...esd_core.training.trainer import Trainer
from . import folders
from .denoiser import HostDenoiser
from .model import architecture, refuse_quantised, refuse_split
from .progress import NodeEvents, say
from .session import borrowed
from .text import Texts

_REPORTING = {"training.save_every", "training.preview_every"}
_EVERYTHING = 1e20


@dataclass(frozen=True)
class Trained:
    """An erasure that lies in a file."""

    erasure: Erasure
    path: Path
    is_new: bool

    @property
    def losses(self) -> list[float]:
        losses: list[float] = json.loads(self.erasure.metadata.get(Key.LOSSES, "[]"))
        return losses


def train(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    config: ErasureConfig,
    prefix: str,
    resume: bool,
    node: str | None,
) -> Trained:
    """Trains as `config` says and writes the erasure, or finds what the same inputs made before.

    Args:
        prefix: of the file's name, below output/loras.
        resume: go on from the state that a cancelled run of the same inputs has left.
        node: whose progress is shown.

    Raises:
        ESDError: an input does not fit.
        InterruptProcessingException: on Cancel; the state is saved.
    """
    folders.check_prefix(prefix)
    architecture(model)
    refuse_quantised(model)
    refuse_split(model)
    texts = Texts(clip)
    texts.learn(encoded_prompts(config))
    with borrowed(model, config.training.precision, _needed(model)) as own, oom_as_error():
        denoiser = HostDenoiser(own, texts)
        course = _course(config, denoiser, texts)
        run = _digest([course, {n: v for n, v in config.flat().items() if n not in _REPORTING}])
        known = _known(prefix, run)
        if known:
            return known
        plan = check(denoiser, config)
        say(f"{plan};\nrecording what the model predicts", node)
        state = folders.state_file(course)
        trainer = prepare(denoiser, config, plan, state, resume and state.is_file())
        result = _train(trainer, NodeEvents(denoiser, config, node), node)
        state.unlink(missing_ok=True)
    return _write(result, prefix, run)


class _Cancel:
    """Asked before every step; the host may also raise in the midst of one."""

    def should_stop(self) -> bool:
        return bool(processing_interrupted())


def _train(trainer: Trainer, events: NodeEvents, node: str | None) -> Result:
    say("sampling trajectories", node)
    outcome = trainer.run(events, _Cancel())
    if outcome.ending == "stopped":
        raise InterruptProcessingException
    result = finish(trainer, outcome)
    return replace(result, erasure=covered(result.erasure, events.cover))


def _write(result: Result, prefix: str, run: str) -> Trained:
    outcome = result.outcome
    own = {
        Key.RUN: run,
        Key.LOSSES: json.dumps([float(f"{loss:.6g}") for loss in outcome.losses]),
        Key.ENDING: outcome.ending,
    }
    erasure = replace(result.erasure, metadata={**result.erasure.metadata, **own})
    path = folders.next_file(folders.LORAS, prefix)
    write_erasure(path, erasure)
    return Trained(replace(erasure, path=path), path, True)


def _known(prefix: str, run: str) -> Trained | None:
    """The file that these inputs made before, if it is still there."""
    for path in folders.numbered_files(folders.LORAS, prefix):
        try:
            if read_header(path).metadata.get(Key.RUN) == run:
                return Trained(read_erasure(path), path, False)
        except ESDError:  # somebody else's file
            continue
    return None


# -- what makes a run the same -----------------------------------------------------------------


def _course(config: ErasureConfig, denoiser: HostDenoiser, texts: Texts) -> str:
    """A digest of all that decides the course of a run: settings, weights and text."""
    settings = {name: value for name, value in config.flat().items() if name not in RESUMABLE}
    weights = [
        [name, float(tensor.float().sum()), float(tensor.float().norm())]
        for name, tensor in denoiser.parameters().items()
    ]
    states, _ = texts.rows(encoded_prompts(config))
    text = [[float(row.sum()), float(row.norm())] for row in states]
    levels = float(denoiser.model.model.model_sampling.sigmas.sum())
    return _digest([settings, weights, text, levels, denoiser.prediction.name])


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# -- memory ------------------------------------------------------------------------------------


def _needed(model: comfy.model_patcher.ModelPatcher) -> float:
    """On an accelerator everything else makes room; on the CPU there is nowhere to go."""
    is_cpu = comfy.model_management.is_device_cpu(model.load_device)
    return 0 if is_cpu else _EVERYTHING
