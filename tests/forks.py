"""Ranks for tests: processes that speak through gloo, forked off a server that has pocket.

They cannot be forks of the test's own process, whose autograd has threads of its own.
"""

import multiprocessing
import os
from functools import cache
from pathlib import Path

import torch
import torch.multiprocessing
from conftest import SMALL, Recorder

from esd_core.config.settings import ErasureConfig
from esd_core.method.shares import ALONE
from esd_core.models.diffusers_backend import DiffusersDenoiser, load_denoiser
from esd_core.training.plan import check
from esd_core.training.ranks import Place, joined
from esd_core.training.run import finish, prepare
from esd_core.training.update import Update

CPU = torch.device("cpu")
TESTS = Path(__file__).parent


@cache
def pocket():
    """In float64, in which another order of a sum is below what decides anything."""
    pipeline = load_denoiser("pocket", "fp32", "cpu").pipeline
    return DiffusersDenoiser(pipeline.to(torch.float64))


def run(count, folder, work, *arguments, shards_optimizer=False):
    """What `work(ranks, *arguments)` returns, or raises, on each of so many ranks."""
    folder.mkdir(parents=True)
    multiprocessing.set_forkserver_preload(["preload_pocket"])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    given = (count, folder, work, arguments, shards_optimizer)
    torch.multiprocessing.start_processes(_as_rank, given, count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _as_rank(rank, count, folder, work, arguments, shards_optimizer):
    torch.set_num_threads(1)
    try:
        if count == 1:
            answer = work(ALONE, *arguments)
        else:
            place = Place(rank, count, rank, count, f"file://{folder}/store")
            with joined(place, CPU, shards_optimizer) as ranks:
                answer = work(ranks, *arguments)
    except Exception as error:
        answer = error
    torch.save(answer, folder / f"{rank}.pt")


def train(ranks, overrides, state=None, resume=False, stop_at=None, fails=None):
    """A run of SMALL on pocket: its result, its samples and its optimizer's state."""
    config = ErasureConfig.from_mapping(SMALL).override(overrides)
    host = Recorder(stop_at=stop_at, at={})
    plan = check(pocket(), config, ranks)
    trainer = prepare(pocket(), config, plan, state, resume, ranks)
    for master in trainer.student.masters.values():
        master.data = master.data.double()
    trainer.update = Update([*trainer.student.masters.values()], config.training, torch.float64, False, ranks)
    result = finish(trainer, trainer.run(host, host))
    return {
        "change": trainer.student.change(),
        "outcome": result.outcome,
        "samples": trainer.rounds.samples.tensors(),
        "state": trainer.state_dict(),
        "saves": [step for step, _ in host.saves],
        "evaluations": result.report["teacher_evaluations"],
    }
