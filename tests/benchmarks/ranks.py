"""A run by two processes against the same run by one, with one thread each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext

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


def run(pairs: int) -> list[Figure]:
    """Seconds of a whole run of pocket's preset, from the prompts' encoding to the last probe."""
    ours, other = [], []
    for seed in range(pairs):
        ours.append(_answer(2, seed))
        other.append(_answer(1, seed))
    return [Figure("ranks", "a run on pocket, two ranks against one", "s", 1 / 1.8, ours, other)]


def _answer(count: int, seed: int) -> float:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *torchrun, "-m", "benchmarks.ranks", str(seed)]
    threads = {**world(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=threads, stdout=subprocess.PIPE, check=True, text=True)
    answer: float = json.loads(done.stdout.splitlines()[-1])
    return answer


def measured(ranks: Alone, seed: int) -> float:
    denoiser, host = pocket.load(), pocket.Silent()
    config = pocket.config(seed=seed)
    plan = check(denoiser, config, ranks=ranks)

    def work() -> None:
        trainer = prepare(denoiser, config, plan, ranks=ranks)
        finish(trainer, trainer.run(host, host))

    ranks.any(False)  # all are there
    return seconds(work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = place(os.environ)
    with joined(here, torch.device("cpu")) if here else nullcontext(ALONE) as ranks:
        took = measured(ranks, int(sys.argv[1]))
        if ranks.is_first:
            print(json.dumps(took))
