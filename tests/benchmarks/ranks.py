"""A run by two processes against the same run by one, with one thread each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch

from esd_core.cli.launch import place
from esd_core.method.shares import ALONE, Alone
from esd_core.training.plan import check
from esd_core.training.ranks import joined
from esd_core.training.run import finish, prepare

from . import pocket
from .figure import Figure, seconds
from .worker import world

PAIRS = 3
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "ranks": ("a run on pocket, two ranks against one", {}),
    "ranks, large pictures": (
        "the same at 256x256, where a pass costs its rows and not the calls of its layers",
        {"width": 256, "height": 256, "training__steps": 40},
    ),
}


def run(pairs: int) -> list[Figure]:
    """Seconds of a whole run of pocket's preset, from the prompts' encoding to the last probe.

    Those of the processor alone, in the first rank, tell what is work and what is waiting.
    """
    figures = []
    for name, (what, _) in RUNS.items():
        ours, other = [], []
        for seed in range(pairs):
            ours.append(_answer(2, name, seed))
            other.append(_answer(1, name, seed))
        (ours_took, ours_worked), (took, worked) = zip(*ours, strict=True), zip(*other, strict=True)
        cpu = {"processor": {"ours": ours_worked, "other": worked}}
        figures.append(Figure(name, what, "s", 1 / 1.8, ours_took, took, cpu))
    return figures


def _answer(count: int, name: str, seed: int) -> tuple[float, float]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *torchrun, "-m", "benchmarks.ranks", name, str(seed)]
    threads = {**world(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=threads, stdout=subprocess.PIPE, check=True, text=True)
    took, worked = json.loads(done.stdout.splitlines()[-1])
    return took, worked


def measured(ranks: Alone, name: str, seed: int) -> tuple[float, float]:
    denoiser, host = pocket.load(), pocket.Silent()
    config = pocket.config(seed=seed, **RUNS[name][1])
    plan = check(denoiser, config, ranks=ranks)

    def work() -> None:
        trainer = prepare(denoiser, config, plan, ranks=ranks)
        finish(trainer, trainer.run(host, host))

    ranks.any(False)  # all are there
    worked = time.process_time()
    return seconds(work), time.process_time() - worked


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = place(os.environ)
    with joined(here, torch.device("cpu")) if here else nullcontext(ALONE) as ranks:
        took = measured(ranks, sys.argv[1], int(sys.argv[2]))
        if ranks.is_first:
            print(json.dumps(took))
