"""`esd erase`: from concepts to an erasure file."""

from __future__ import annotations

import shlex
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.mappings import override
from ..config.presets import load_settings, preset_names, settled
from ..config.settings import ErasureConfig
from ..errors import ESDError, FileError, counted
from ..files import history
from ..method.shares import Alone
from ..models.architectures import SDXL, Architecture
from ..models.embedded import EMBEDDED
from ..training.collapse import collapse
from ..training.endings import ENDINGS
from . import launch, outputs
from . import model as models
from .console import StopRequest, note
from .events import TerminalEvents
from .flags import CONFIG, add_flags, by_flag, given

if TYPE_CHECKING:
    from ..files.erasure import Erasure
    from ..models.headless import Headless
    from ..training.events import Outcome
    from ..training.run import Result
    from ..training.trainer import Trainer

_GROUPS = {"": "what to erase, and how", "trajectory": "trajectories", "training": "training"}


def add_arguments(parser: ArgumentParser) -> None:
    """Every setting is a flag; further ones say where everything comes from and goes to."""
    models.add_arguments(parser)
    outputs.add_out(parser, "FILE", "The erasure file to write.")
    parser.add_argument(
        "--report", metavar="FILE.json", type=Path, help="Where to write costs, probes and config."
    )
    parser.add_argument(
        "--resume", action="store_true", help="Go on with the stopped run of the same --out."
    )
    launch.add_arguments(parser)
    parser.add_argument(
        "--shard-optimizer",
        action="store_true",
        help="On several GPUs, keep a part of the optimizer's state on each, for methods that "
        "train many weights; the run is then saved by --save-every and Ctrl-C, and not on errors.",
    )
    add_settings(parser)


def add_settings(parser: ArgumentParser) -> None:
    """--config, and a flag for every field of the config."""
    parser.add_argument(
        "--config",
        metavar="PRESET|FILE.toml",
        help=f"Settings from a TOML file, or of a preset: {', '.join(preset_names())}.",
    )
    parser.epilog = (
        "Defaults are those for SDXL. A model has a preset of its own, which lies over them: "
        "pocket has pocket, pocket-dit has pocket-dit, SD 1.x and 2.x have sd, SD 3 has sd3, "
        "FLUX.1 has flux or flux-schnell. --config lies over that, and flags win over all."
    )
    for table, title in _GROUPS.items():
        add_flags(parser, title, {n: f for n, f in CONFIG.items() if n.rpartition(".")[0] == table})


def run(arguments: Namespace) -> int:
    """Alone, or as one of several ranks, of which the first reads and writes the files."""
    return launch.run(arguments, _run, arguments.shard_optimizer)


def _run(arguments: Namespace, ranks: Alone) -> int:
    """Checks all that can be checked without the model, then loads it and trains."""
    from ..training.checkpoint import state_path

    asked = asked_settings(arguments)
    state_file = state_path(arguments.out)
    if ranks.is_first:
        inputs = [arguments.model] if Path(arguments.model).is_file() else []
        outputs.check_outputs([arguments.out, arguments.report], inputs, arguments.force)
        _check_state(arguments, state_file)
    denoiser, config = load_model(arguments, asked)
    trainer, result = _train(arguments, denoiser, config, state_file, ranks)
    if not ranks.is_first:
        return 130 if result.outcome.ending == "stopped" else 0
    if result.outcome.ending == "stopped":
        _remember(arguments, config, result.outcome, state_file)
        _tell_how_to_resume(arguments, state_file, result.outcome.step)
        return 130
    _write_erasure(arguments, trainer, result.erasure)
    state_file.unlink(missing_ok=True)
    _remember(arguments, config, result.outcome, arguments.out)
    if arguments.report:
        _write_report(arguments, denoiser, config, result)
    print(_summary(arguments.out, result))
    warning = collapse(result.report["probes"], config.negative_guidance)
    if warning:
        note(f"esd: warning: {by_flag(warning)}")
    return 0


def asked_settings(arguments: Namespace) -> dict[str, Any]:
    """What --config and, over it, the flags say; checked as far as that goes without the model."""
    asked = load_settings(arguments.config) if arguments.config else {}
    asked = override(asked, given(arguments, CONFIG))
    resolve_config(asked, arguments.model, SDXL)
    return asked


def load_model(arguments: Namespace, asked: Mapping[str, Any]) -> tuple[Headless, ErasureConfig]:
    """The model, and the settings for it."""
    launch.allow_deterministic(asked)
    precision = asked.get("training", {}).get("precision", "auto")
    denoiser = models.load(arguments.model, precision, arguments.device)
    known = denoiser.architecture
    return denoiser, resolve_config(asked, arguments.model, known, denoiser.is_guided)


def resolve_config(
    asked: Mapping[str, Any], model: str, architecture: Architecture, is_guided: bool = True
) -> ErasureConfig:
    """The settings asked for, over the preset of an embedded model, or of the architecture.

    is_guided: whether guidance is an input of the network.
    """
    method = asked.get("method", CONFIG["method"].default)
    preset = model if model in EMBEDDED else architecture.preset_for(method, is_guided)
    return settled(preset, asked)


def _check_state(arguments: Namespace, path: Path) -> None:
    """FileError if a state would be lost, or is missing for --resume."""
    outputs.check_writable(path)
    if arguments.resume and not path.is_file():
        raise FileError(f"there is no stopped run at {path} to go on with: leave --resume out")
    if path.exists() and not (arguments.resume or arguments.force):
        raise FileError(
            f"{path} holds a stopped run: add --resume to go on with it, or --force to start anew"
        )


def _train(
    arguments: Namespace,
    denoiser: Headless,
    config: ErasureConfig,
    state_file: Path,
    ranks: Alone,
) -> tuple[Trainer, Result]:
    from ..files.cover import covered
    from ..storage.dtypes import PRECISIONS
    from ..training.plan import check
    from ..training.run import finish, prepare

    events = TerminalEvents(denoiser, config, arguments.out, ranks.is_first)
    try:
        with models.memory_told(), events.bar, StopRequest(ranks) as control:
            if ranks.is_first:
                note("planning what the run needs of memory")
            plan = check(denoiser, config, partial(_end_planning, control), ranks)
            if ranks.is_first:
                note(str(plan))
            trainer = prepare(denoiser, config, plan, state_file, arguments.resume, ranks)
            values = sum(master.numel() for master in trainer.student.masters.values())
            itemsize = PRECISIONS[config.training.save_dtype].itemsize
            if ranks.is_first:
                outputs.check_room(arguments.out, values * itemsize)
            result = finish(trainer, _outcome(arguments, trainer, events, control))
            return trainer, replace(result, erasure=covered(result.erasure, events.cover))
    except KeyboardInterrupt:
        if events.saved:
            _tell_how_to_resume(arguments, state_file, events.saved)
        raise
    except ESDError as error:
        if ranks.count == 1 or not events.saved:
            raise
        state = f"the state of step {events.saved} is in {state_file}"
        raise type(error)(f"{error}; {state}: repeat the command with --resume") from error


def _end_planning(control: StopRequest, _: str) -> None:
    """It has nothing that could be lost: the first Ctrl-C ends it."""
    if control.should_stop():
        raise KeyboardInterrupt


def _write_erasure(arguments: Namespace, trainer: Trainer, erasure: Erasure) -> None:
    """FileError when it cannot be written; the training is then kept, and the error says where."""
    from ..files.native import write_erasure

    try:
        write_erasure(arguments.out, erasure, arguments.force)
    except FileError as error:
        kept = _keep(trainer)
        if not kept:
            raise
        raise FileError(
            f"{error}; the training is kept in {kept}: repeat the command with --resume and "
            f"--out {kept.parent / arguments.out.name}, there or in a folder to which you move it"
        ) from error


def _keep(trainer: Trainer) -> Path | None:
    """The file that the whole state was saved in, in the system's temporary folder if it must."""
    own = trainer.state_file
    assert own
    for path in (own.path, Path(tempfile.gettempdir()) / own.path.name):
        with suppress(FileError):
            replace(own, path=path).write(trainer.state_dict())
            return path
    return None


def _write_report(
    arguments: Namespace, denoiser: Headless, config: ErasureConfig, result: Result
) -> None:
    report: dict[str, Any] = {
        "file": str(arguments.out),
        "model": arguments.model,
        "architecture": denoiser.architecture.name,
        "config": config.to_mapping(),
        "config_digest": config.digest(),
        "training": result.report,
    }
    try:
        outputs.write_json(arguments.report, report, arguments.force)
    except FileError as error:
        raise FileError(f"{error}; the erasure is whole, in {arguments.out}") from error


def _outcome(
    arguments: Namespace, trainer: Trainer, events: TerminalEvents, control: StopRequest
) -> Outcome:
    """Of the run; one that fails is remembered too."""
    from ..training.events import Outcome

    try:
        return trainer.run(events, control)
    except BaseException:
        path = trainer.state_file.path if trainer.state_file and events.saved else None
        failed = Outcome("failed", trainer.step, 0)
        _remember(arguments, trainer.config, failed, path)
        raise


def _remember(
    arguments: Namespace, config: ErasureConfig, outcome: Outcome, file: Path | None
) -> None:
    """Adds the run to the history beside --out; a log that cannot be written loses no run."""
    probes = outcome.probes.as_dict() if outcome.probes else {}
    where = str(file) if file else ""
    entry = history.record(config, arguments.model, outcome.ending, outcome.step, probes, where)
    try:
        history.append(arguments.out.with_name(history.NAME), entry)
    except FileError as error:
        note(f"esd: warning: {error}")


def _tell_how_to_resume(arguments: Namespace, state_file: Path, step: int) -> None:
    words = ["esd", *arguments.command_line]
    command = shlex.join(words if arguments.resume else [*words, "--resume"])
    note(f"stopped; the state of step {step} is in {state_file}. To go on with it:\n  {command}")


def _summary(out: Path, result: Result) -> str:
    report, probes = result.report, result.outcome.probes
    lines = [
        f"{by_flag(ENDINGS[result.outcome.ending])}: {counted(report['student_steps'], 'step')}, "
        f"{report['teacher_evaluations']} evaluations for samples, {report['seconds']:.1f} s"
    ]
    if probes:
        lines.append(
            "left of the concept, by its probe's worst prompt (up to 20 %: maybe by chance)"
        )
        for line, share in probes.share.items():
            lines.append(f'  {share:8.1%}  {line}, asked as "{probes.prompt[line]}"')
        lines.append("drift of other prompts")
        lines += [f"  {d:8.1%}  {prompt or '(empty prompt)'}" for prompt, d in probes.drift.items()]
    return "\n".join([*lines, f"written to {out}"])
