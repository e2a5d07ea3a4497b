"""Ranks for tests: processes that speak through gloo, forked off a server that has pocket.

They cannot be forks of the test's own process, whose autograd has threads of its own.
"""

import multiprocessing
import os
import traceback
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.multiprocessing
from trainers import PLAN, SMALL, Recorder

from esd_core.config.settings import ErasureConfig
from esd_core.method.shares import ALONE
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.models.loading import load_denoiser
from esd_core.training.ranks import Place, joined
from esd_core.training.run import finish, prepare
from esd_core.training.update import Update

TESTS = Path(__file__).parent


@cache
def pocket():
    """In float64, in which the order of a sum decides nothing."""
    return DiffusersDenoiser(load_denoiser("pocket", "fp32", "cpu").pipeline.to(torch.float64))


def run(count, folder, work, *arguments, shards_optimizer=False):
    """What `work(ranks, *arguments)` returns on each of so many ranks."""
    folder.mkdir(parents=True)
    multiprocessing.set_forkserver_preload(["preload_pocket"])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    given = (count, folder, work, arguments, shards_optimizer)
    torch.multiprocessing.start_processes(_as_rank, given, count, start_method="forkserver")
    failed = [file.read_text() for file in sorted(folder.glob("*.txt"))]
    assert not failed, "\n".join(failed)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _as_rank(rank, count, folder, work, arguments, shards_optimizer):
    torch.set_num_threads(1)
    place = Place(rank, count, rank, count, f"file://{folder}/store")
    try:
        if count == 1:
            answer = work(ALONE, *arguments)
        else:
            with joined(place, torch.device("cpu"), shards_optimizer) as ranks:
                answer = work(ranks, *arguments)
        torch.save(answer, folder / f"{rank}.pt")
    except Exception:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(0)  # leaves the others as a rank that fails does


@cache
def single():
    """In float32, as models are trained."""
    return load_denoiser("pocket", "fp32", "cpu")


def in_float32(ranks):
    """Of batches that are the same to the last bit: the first one's gradients, and the change
    after steps of plain descent."""
    config, found = ErasureConfig.from_mapping(SMALL), []
    for steps in (0, config.training.steps):
        plan = replace(PLAN, micro_batch=2)
        trainer = prepare(single(), config, plan)  # each samples all of a round by itself
        trainer.ranks = trainer.update._ranks = ranks
        masters = trainer.student.masters
        trainer.update.optimizer = torch.optim.SGD(masters.values(), 1.0)
        trainer.update._training = config.training.model_copy(update={"learning_rate": 1.0})
        for _ in range(steps):
            trainer.take_step()
        if not steps:
            trainer._backward(trainer.rounds.next_batch(trainer.student.tensors))
            found.append({name: master.grad for name, master in masters.items()})
    return *found, trainer.student.change()


def train(ranks, overrides, state=None, resume=False, stops=None):
    """A run of SMALL on pocket, on masters of float64.

    stops: (rank, step) at which that rank alone is asked to stop.
    """
    config = ErasureConfig.from_mapping(SMALL).override(overrides)
    stop_at = stops[1] if stops and ranks.rank == stops[0] else None
    host = Recorder(stop_at=stop_at)
    plan = replace(PLAN, micro_batch=2)
    trainer = prepare(pocket(), config, plan, state, False, ranks)
    masters = [*trainer.student.masters.values()]
    for master in masters:
        master.data = master.data.double()
    trainer.update = Update(masters, config.training, torch.float64, False, ranks)
    if resume:
        trainer.load_state_dict(trainer.state_file.read())
    result = finish(trainer, trainer.run(host, host))
    return {
        "change": trainer.student.change(),
        "samples": trainer.rounds.samples.tensors(),
        "losses": result.outcome.losses,
        "probes": result.outcome.probes.as_dict(),
        "ending": (result.outcome.ending, result.outcome.step),
        "saves": [step for step, _ in host.saves],
        "evaluations": result.report["teacher_evaluations"],
    }
