"""`esd erase-many`: a list of erasures, each a run of its own and a file of its own."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.presets import load_settings
from ..config.settings import ErasureConfig, override
from ..errors import ConfigError, ESDError, FileError
from ..method.shares import Alone
from ..models.architectures import SDXL
from . import launch, outputs
from . import model as models
from .console import StopRequest, note, say
from .erase import resolve_config
from .events import TerminalEvents
from .flags import by_flag

if TYPE_CHECKING:
    from ..models.headless import Headless

_LIST = "erase"
_EXAMPLE = """\
LIST.toml holds settings of all runs, as a file for --config does, and then a table for each run:

  method = "esd-x"
  [training]
  steps = 100
  [[erase]]
  name = "van-gogh"
  concepts = ["Van Gogh (style)"]
  [[erase]]
  name = "boats"
  concepts = ["boat (object)"]
  training.steps = 200

writes FOLDER/van-gogh.safetensors and FOLDER/boats.safetensors. What is there already is left as it
is, and a run that was stopped goes on."""


@dataclass(frozen=True)
class Entry:
    """A run of the list, and the settings that were asked for it."""

    name: str
    asked: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """How a run came out. `seconds` is None where it was done before, `error` is empty where it is
    done."""

    name: str
    file: str
    left: float | None = None
    drift: float | None = None
    seconds: float | None = None
    error: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("list", metavar="LIST.toml", help="What to erase; see below.")
    models.add_arguments(parser)
    outputs.add_out(parser, "FOLDER", "Where the erasures go.")
    launch.add_arguments(parser)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLE


def run(arguments: Namespace) -> int:
    """0 when all are done, 2 when one has failed, 130 when it was stopped."""
    return launch.run(arguments, _run)


def _run(arguments: Namespace, ranks: Alone) -> int:
    """Each rank, or this process alone, takes the next of the list when it is free."""
    common, entries = read_list(arguments.list)
    for entry in entries:  # as far as that goes without the model
        _config(entry, arguments.model, SDXL)
        launch.allow_deterministic(entry.asked)
    outputs.check_outputs([arguments.out], [arguments.list], force=True, folder=True)
    precision = common.get("training", {}).get("precision", "auto")
    denoiser = models.load(arguments.model, precision, arguments.device)
    with StopRequest(ranks) as control:
        own = [*_rows(arguments, ranks, denoiser, entries, control)]
        is_stopped = ranks.any(control.should_stop())
        rows = {row.name: row for part in ranks.gather(own) for row in part}
    if ranks.is_first:
        say(table([rows[entry.name] for entry in entries if entry.name in rows]))
    if is_stopped and len(rows) < len(entries):
        return 130
    return 2 if any(row.error for row in rows.values()) else 0


def _rows(
    arguments: Namespace,
    ranks: Alone,
    denoiser: Headless,
    entries: list[Entry],
    control: StopRequest,
) -> Iterator[Row]:
    """Of those that this rank runs to their end."""
    for number in ranks.queue(len(entries)):
        if control.should_stop():
            return
        entry = entries[number]
        out = arguments.out / f"{entry.name}.safetensors"
        try:
            with models.memory_told():
                row = _erased(entry, out, denoiser, control, arguments)
        except ESDError as error:
            row = Row(entry.name, str(out), error=by_flag(str(error)))
        if row is None:  # stopped, and saved
            return
        note(f"{number + 1} of {len(entries)}, {row.name}: {row.error or 'done'}")
        yield row


def _erased(
    entry: Entry,
    out: Path,
    denoiser: Headless,
    control: StopRequest,
    arguments: Namespace,
) -> Row | None:
    """Runs one, unless its file is there; None when it was stopped."""
    from ..files.apply import fingerprint
    from ..files.cover import covered
    from ..files.metadata import Key
    from ..files.native import write_erasure
    from ..storage.reading import read_header
    from ..training.checkpoint import state_path
    from ..training.run import erase

    config = _config(entry, arguments.model, denoiser.architecture, denoiser.is_guided)
    if out.exists() and not arguments.force:
        metadata = read_header(out).metadata
        made = metadata.get(Key.DIGEST), metadata.get(Key.FINGERPRINT)
        if made != (config.digest(), fingerprint(denoiser.parameters())):
            raise FileError(f"{out} is there, and is of other settings or of another model")
        return _row(entry, out, json.loads(metadata[Key.PROBES]), None)
    state = state_path(out)
    outputs.check_writable(state)
    events = TerminalEvents(denoiser, config, out, is_shown=False)
    resume = state.is_file() and not arguments.force
    result = erase(denoiser, config, events, control, state, resume)
    if result.outcome.ending == "stopped":
        return None
    write_erasure(out, covered(result.erasure, events.cover), arguments.force)
    state.unlink(missing_ok=True)
    return _row(entry, out, result.report["probes"], result.outcome.seconds)


def _row(entry: Entry, out: Path, probes: dict[str, Any], seconds: float | None) -> Row:
    left, drift = (max(probes.get(what, {}).values(), default=None) for what in ("share", "drift"))
    return Row(entry.name, str(out), left, drift, seconds)


def read_list(path: str) -> tuple[dict[str, Any], list[Entry]]:
    """The settings of all runs, and the runs; ConfigError, with its place, for what is wrong."""
    common = load_settings(path)
    tables = common.pop(_LIST, None)
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables) or not tables:
        raise ConfigError(f"{path} lists no run: write a table [[{_LIST}]] for each")
    entries: list[Entry] = []
    for place, asked in enumerate(tables, 1):
        name = asked.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ConfigError(f"{path}: run {place} needs a `name` of letters, digits, - and _")
        if name.casefold() in (entry.name.casefold() for entry in entries):
            raise ConfigError(f"{path}: two runs are named {name}")
        if "precision" in asked.get("training", {}):
            raise ConfigError(f"{path}: {name} sets `training.precision`, which is one for all")
        entries.append(Entry(name, override(common, asked)))
    return common, entries


def _config(entry: Entry, model: str, architecture: Any, is_guided: bool = True) -> ErasureConfig:
    try:
        return resolve_config(entry.asked, model, architecture, is_guided)
    except ConfigError as error:
        raise ConfigError(f"{entry.name}: {error}") from error


def table(rows: list[Row]) -> str:
    """Markdown, those that failed at the end."""
    done, failed = ([row for row in rows if bool(row.error) == is_bad] for is_bad in (False, True))
    lines = ["| name | file | what is left | worst drift | seconds |", "| --- " * 5 + "|"]
    for row in done:
        left, drift = (_share(value) for value in (row.left, row.drift))
        seconds = "done before" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(f"| {row.name} | {row.file} | {left} | {drift} | {seconds} |")
    lines += [f"| {row.name} | failed: {row.error} | | | |" for row in failed]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
