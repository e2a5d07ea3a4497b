"""The command `esd`.

What goes wrong for a reason of the person's or the machine's is one sentence on stderr and exit
code 2; an interruption is 130. A command's module is only imported when it is asked for, and torch
only when it is needed: help comes at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from ..errors import ConfigError, ESDError

Run = Callable[[argparse.Namespace], int]
"""Does what a command line says; returns the exit code."""

FAILED, INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are sentences like all others, without the whole usage before them."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` lists what there is)")


def _erase(parser: argparse.ArgumentParser) -> Run:
    from . import erase

    erase.add_arguments(parser)
    return erase.run


def _plan(parser: argparse.ArgumentParser) -> Run:
    from . import plan

    plan.add_arguments(parser)
    return plan.run


def _compare(parser: argparse.ArgumentParser) -> Run:
    from . import compare

    compare.add_arguments(parser)
    return compare.run


def _evaluate(parser: argparse.ArgumentParser) -> Run:
    from . import evaluate

    evaluate.add_arguments(parser)
    return evaluate.run


def _inspect(parser: argparse.ArgumentParser) -> Run:
    from . import inspect

    inspect.add_arguments(parser)
    return inspect.run


def _export(parser: argparse.ArgumentParser) -> Run:
    from . import export

    export.add_arguments(parser)
    return export.run


def _demo(parser: argparse.ArgumentParser) -> Run:
    from . import demo

    demo.add_arguments(parser)
    return demo.run


def _bench(parser: argparse.ArgumentParser) -> Run:
    from . import bench

    bench.add_arguments(parser)
    return bench.run


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], Run], str]] = {
    "erase": (_erase, "Erase concepts from a model, into a small file."),
    "plan": (_plan, "Say what an erasure would need of memory, and whether it is there."),
    "compare": (_compare, "Draw pictures with and without erasures, side by side."),
    "evaluate": (_evaluate, "Measure on the embedded model what was erased and what survived."),
    "inspect": (_inspect, "Say what an erasure file holds."),
    "export": (_export, "Merge an erasure into a model, for other programs."),
    "demo": (_demo, "Erase Van Gogh from the embedded model, with pictures and measures."),
    "bench": (_bench, "Time the method against the official schedule."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 2 (one sentence on stderr) or 130."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a concept may be in any script
    try:
        arguments = _parser(words[0] if words else "").parse_args(words)
        arguments.command_line = words
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except ESDError as error:
        print(f"esd: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("esd: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        _drop_output()
        if not isinstance(error, BrokenPipeError):  # there, the reader (head, say) has seen enough
            what = error.filename or "the output cannot be written"
            print(f"esd: {what}: {error.strerror or error}", file=sys.stderr)
        return FAILED


def _drop_output() -> None:
    """Lets what stdout did not take go nowhere; else the flush at exit fails once more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command line that starts with `command`; the others are only listed."""
    parser = _Parser(
        prog="esd",
        description="Erases concepts from diffusion models, given only their names.",
        epilog="`esd COMMAND --help` describes a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (fill, text) in COMMANDS.items():
        inner = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == command:
            inner.set_defaults(run=fill(inner))
    return parser


if __name__ == "__main__":
    sys.exit(main())
