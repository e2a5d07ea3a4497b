"""The command `esd`.

What goes wrong for a reason of the person's or the machine's is one sentence on stderr and exit
code 2; an interruption is 130. Commands import torch only when they run: help comes at once.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import NoReturn

from ..errors import ConfigError, ESDError
from . import compare, demo, erase, erase_many, evaluate, export, history, inspect, plan
from .console import printable
from .flags import by_flag

FAILED, INTERRUPTED = 2, 130
COMMANDS = {
    "erase": (erase, "Erase concepts from a model, into a small file."),
    "erase-many": (erase_many, "Erase a list of concepts, each into a file of its own."),
    "plan": (plan, "Say what an erasure would need of memory, and whether it is there."),
    "compare": (compare, "Draw pictures with and without erasures, side by side."),
    "evaluate": (evaluate, "Measure on the embedded model what was erased and what survived."),
    "inspect": (inspect, "Say what an erasure file holds."),
    "history": (history, "List the runs that were made in a folder, and those that can go on."),
    "export": (export, "Merge an erasure into a model, for other programs."),
    "demo": (demo, "Erase a concept from the embedded model, with pictures and measures."),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are sentences like all others, without the whole usage before them."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` lists what there is)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 2 (one sentence on stderr) or 130."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a concept may be in any script
    try:
        arguments = _parsed(words)
        arguments.command_line = words
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except ESDError as error:
        print(f"esd: {printable(by_flag(str(error)))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("esd: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        _drop_output()
        if not isinstance(error, BrokenPipeError):  # there, the reader (head, say) has seen enough
            what = error.filename or "the output cannot be written"
            print(f"esd: {printable(str(what))}: {error.strerror or error}", file=sys.stderr)
        return FAILED


def _parsed(words: list[str]) -> argparse.Namespace:
    """ConfigError for a flag that the command lacks, with the nearest that it has."""
    arguments, unknown = _parser().parse_known_args(words)
    if unknown:
        command: argparse.ArgumentParser = arguments.parser
        flags = re.findall(r"--[a-z-]+", command.format_usage())
        nearest = get_close_matches(unknown[0], flags, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def _drop_output() -> None:
    """Sends what stdout did not take to nowhere; else the flush at exit fails once more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="esd",
        description="Erases concepts from diffusion models, given only their names.",
        epilog="`esd COMMAND --help` describes a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        inner = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        module.add_arguments(inner)
        inner.set_defaults(run=module.run, parser=inner)
    return parser
