"""`esd bench`: the same erasure by the bank and by the schedule of the public codes, in pairs."""

from __future__ import annotations

import json
import platform
import statistics
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ErasureConfig, override
from ..presets import load_preset
from ..settings import Bounds, Field
from . import erase, evaluate, models, outputs
from .console import StopRequest, note
from .events import TerminalEvents
from .flags import add_fields, given, value

if TYPE_CHECKING:
    from ..bank import Bank
    from ..diffusers_denoiser import DiffusersDenoiser
    from ..pocket.judge import Reading

PAIRS = Field("pairs", int, 3, "Pairs of runs, one seed after the other.", bounds=Bounds(1, 100))
DEFAULT_CONCEPT = "Van Gogh"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name",
        choices=("erase",),
        help="erase: a whole run, against fresh trajectories of up to 50 steps for every sample.",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="Where to write the result.")
    outputs.add_force(parser)
    add_fields(parser, "runs", [PAIRS, evaluate.PER_PAIR])
    erase.add_settings(parser)


def run(arguments: Namespace) -> int:
    """Prints {"name", "ours", "other", "pairs", "ratio", ...}; ratio is the median of ours / other.

    ours and other are the seconds of each run, sampling and training; `evaluations` and `shown`
    (the share of pictures that still show the concept) stand beside them.
    """
    outputs.check_outputs([arguments.json], force=arguments.force)
    denoiser = models.load(models.POCKET)
    from ..bank import Bank
    from ..fresh import FreshBank
    from ..pocket.judge import judge

    per_pair = value(arguments, evaluate.PER_PAIR)
    before = judge(denoiser, [], per_pair).before
    settings = {"concepts": [DEFAULT_CONCEPT], **load_preset(models.POCKET)}
    first = ErasureConfig.from_mapping(override(settings, given(arguments, erase.FIELDS)))
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "other": []}
    for seed in range(value(arguments, PAIRS)):
        config = first.override({"seed": first.seed + seed})
        for side, bank_type in (("ours", Bank), ("other", FreshBank)):
            note(f"seed {config.seed}: {side}")
            runs[side].append(_measure(denoiser, config, bank_type, before, per_pair))
    result = _result(arguments.name, runs)
    print(json.dumps(result, indent=2))
    if arguments.json:
        outputs.write_json(arguments.json, result, arguments.force)
    return 0


def _measure(
    denoiser: DiffusersDenoiser,
    config: ErasureConfig,
    bank_type: type[Bank],
    before: tuple[Reading, ...],
    per_pair: int,
) -> dict[str, float]:
    from ..erase import erase as train
    from ..pocket.judge import judge

    events = TerminalEvents(denoiser, config, Path())
    with events.bar, StopRequest() as commands:
        result = train(denoiser, config, events, commands, bank_type=bank_type)
    judged = judge(denoiser, [(result.erasure, 1.0)], per_pair, before=before).as_dict()
    erased = [c["after"] for c in judged["concepts"].values() if c["erased"]]
    return {
        "seconds": result.report["seconds"],
        "evaluations": result.report["teacher_evaluations"],
        "samples": result.report["samples"],
        "shown": max(erased),
        "worst_drop": judged["worst_drop"],
    }


def _result(name: str, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    import torch

    seconds = {side: [run["seconds"] for run in of_side] for side, of_side in runs.items()}
    pairs = [a / b for a, b in zip(seconds["ours"], seconds["other"], strict=True)]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "name": name,
        **seconds,
        "pairs": pairs,
        "ratio": statistics.median(pairs),
        "runs": runs,
        "versions": versions,
        "threads": torch.get_num_threads(),
    }
