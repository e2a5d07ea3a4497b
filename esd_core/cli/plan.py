"""`esd plan`: the memory that `esd erase` would need with the same words, and what is there."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from . import erase
from . import model as models


def add_arguments(parser: ArgumentParser) -> None:
    models.add_arguments(parser)
    erase.add_settings(parser)


def run(arguments: Namespace) -> int:
    """Prints the plan; ESDError, with settings that fit, when it does not."""
    denoiser, config = erase.load_model(arguments, erase.asked_settings(arguments))
    from ..training.plan import Planner

    planner = Planner(denoiser, config)
    made = planner.plan(config)
    print(made)
    planner.check(config, made)
    return 0
