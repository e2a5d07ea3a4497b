"""What the method costs beside other ways to the same end: `make bench NAME=step`.

And in tables, which take longer: what it erases, what rivals do, and what attacks get back.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import (
    attack,
    batching,
    concepts,
    efficacy,
    erase,
    load,
    memory,
    probes,
    ranks,
    rivals,
    samples,
    step,
)
from .figure import Figure, table

BENCHMARKS = {
    "samples": (samples, "evaluations that a training sample costs"),
    "erase": (erase, "a whole erasure on pocket"),
    "memory": (memory, "the peak of a training step of SDXL (18 GB, an hour)"),
    "step": (step, "a training step, on pocket and SDXL (17 GB)"),
    "concepts": (concepts, "ten concepts in one run"),
    "batching": (batching, "sampling as batches"),
    "ranks": (ranks, "a run by two processes"),
    "load": (load, "ESDLoadErased in ComfyUI (6 GB)"),
}

TABLES = {
    "efficacy": (efficacy, "what the default erases, and what it leaves alone (hours)"),
    "probes": (probes, "whether probes tell what pictures show (20 minutes)"),
    "rivals": (rivals, "other ways to erase, and ours (hours; minutes with --only, --per-pair)"),
    "attack": (attack, "what a determined person gets back (an hour)"),
}
"""Of shares of pictures; each takes options of its own, and is not among all."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints {"name", "ours", "other", "pairs", "ratio", "versions", "threads", ...}, and of all
    benchmarks a table.

    ratio is the median of pairs, which are ours / other. Further figures of the same benchmark
    stand below "also", in the same form. A name of TABLES prints its own.
    """
    listed = "; ".join(f"{n}: {text}" for n, (_, text) in {**BENCHMARKS, **TABLES}.items())
    parser = ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, *TABLES, "all"], help=listed)
    parser.add_argument("--pairs", type=int, help="pairs of runs; by default 3 or 5")
    parser.add_argument("--json", type=Path, help="where to write what is printed as JSON")
    asked, own = parser.parse_known_args(argv)
    if asked.name in TABLES:
        tabulate(asked.name, asked.json, asked.pairs, own)
        return
    if own:
        parser.error(f"unrecognized arguments: {' '.join(own)}")
    names = [*BENCHMARKS] if asked.name == "all" else [asked.name]
    measured = [run(name, asked.pairs) for name in names]
    results = [as_json(figures) for figures in measured]
    text = json.dumps(results if asked.name == "all" else results[0], indent=2)
    print(table(sum(measured, [])) if asked.name == "all" else text)
    if asked.json:
        asked.json.write_text(text + "\n", encoding="utf-8")


def tabulate(name: str, kept: Path | None, seeds: int | None, own: Sequence[str]) -> None:
    """A table, whose runs are kept in a file; `seeds` is how often each of them is made."""
    given = [str(kept)] if kept else []
    TABLES[name][0].main([*given, *(["--seeds", str(seeds)] if seeds else []), *own])


def run(name: str, pairs: int | None) -> list[Figure]:
    module, text = BENCHMARKS[name]
    print(f"{name}: {text}", file=sys.stderr)
    return module.run(pairs or module.PAIRS)


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    first, *further = (figure.as_dict() for figure in figures)
    return {**first, "also": further} if further else first


if __name__ == "__main__":
    main()
