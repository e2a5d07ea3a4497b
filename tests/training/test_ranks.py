"""Several ranks against one: the same erasure, the same file, and what becomes of a lost one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
import torch

from esd_core.cli.launch import place
from esd_core.method.samples import Placed, Samples
from esd_core.method.shares import ALONE, Alone
from esd_core.training.plan import Planner

AUTO = {"contexts": ["auto"], "trajectory.count": 3, "training.batch_size": 3}
RUNS = {
    "plain": ({}, False, 2),
    "contexts, and a rank without a share": (AUTO, False, 4),
    "beside an adversary": ({**AUTO, "training.robust": True, "method": "selfattn"}, False, 2),
    "on policy, and sharded": ({"trajectory.source": "student", "training.steps": 4}, True, 2),
}


def norm(change):
    return float(sum(c.double().square().sum() for c in change.values())) ** 0.5


def difference(one, other):
    return norm({name: c.double() - other[name] for name, c in one.items()}) / norm(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    (alone,) = forks.run(1, tmp_path_factory.mktemp("whole") / "1", forks.train, {})
    return alone


@pytest.mark.parametrize("run", RUNS)
def test_ranks_make_the_erasure_that_one_makes(tmp_path, whole, run):
    overrides, shards, count = RUNS[run]
    (alone,) = forks.run(1, tmp_path / "1", forks.train, overrides) if overrides else (whole,)
    ranks = forks.run(count, tmp_path / "n", forks.train, overrides, shards_optimizer=shards)
    for rank in ranks:
        assert all(c.equal(ranks[0]["change"][name]) for name, c in rank["change"].items())
        assert rank["losses"] == ranks[0]["losses"] and rank["probes"] == ranks[0]["probes"]
        assert rank["evaluations"] == alone["evaluations"]
        assert rank["samples"]["condition"].equal(alone["samples"]["condition"])
        torch.testing.assert_close(rank["samples"]["x"], alone["samples"]["x"])
    assert difference(ranks[0]["change"], alone["change"]) < 1e-5
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert ranks[0]["probes"]["share"] == pytest.approx(alone["probes"]["share"], abs=1e-5)


def test_ranks_in_float32_differ_by_its_rounding(tmp_path):
    """In the gradients of one batch, and in what plain descent makes of five.

    No such bound can hold for Adam in float32: it divides by the root of the second moment, so that
    at the start an entry moves by the whole learning rate whichever sign its gradient has, and
    where that is next to nothing its sign is rounding. From gradients within 3e-7 come changes that
    differ by 2e-3 after five steps, and by 6e-2 where each rank samples its own share, whose
    batches differ by rounding too. In float64, above, nothing of it is left.
    """
    (alone,) = forks.run(1, tmp_path / "1", forks.in_float32)
    ranks = forks.run(2, tmp_path / "2", forks.in_float32)
    for which, bound in enumerate((1e-6, 1e-5)):
        for rank in ranks:
            assert difference(rank[which], alone[which]) < bound
            assert all(v.equal(ranks[0][which][name]) for name, v in rank[which].items())


@pytest.mark.parametrize(("first", "then", "shards"), [(2, 4, True), (2, 1, False)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, whole, first, then, shards):
    """The last rank is asked to stop: all do, and the first alone saves, once."""
    state, stops = tmp_path / "state.safetensors", (first - 1, 2)
    given = (forks.train, {}, state, False, stops)
    stopped = forks.run(first, tmp_path / "a", *given, shards_optimizer=shards)
    assert [rank["ending"] for rank in stopped] == [("stopped", 2)] * first
    assert [rank["saves"] for rank in stopped] == [[2], *[[]] * (first - 1)]
    given = (forks.train, {}, state, True)
    ranks = forks.run(then, tmp_path / "b", *given, shards_optimizer=shards and then > 1)
    assert all(rank["ending"] == ("done", 5) for rank in ranks)
    assert difference(ranks[0]["change"], whole["change"]) < 1e-5


# -- one that is lost, and Ctrl-C -------------------------------------------------------------


def command(*words):
    return [sys.executable, "-m", "esd_core", *words]


def erasing(out, *words):
    """A run that lasts as long as it is let."""
    small = ("--contexts", "a {} house", "--trajectory-steps", "2", "--count", "2")
    model = ("--model", "pocket", "--device", "cpu", "--concept", "Van Gogh", "--out", str(out))
    return ("erase", *model, *small, "--save-every", "3", *words)


class Running:
    """A command in the background, with what it says in a file."""

    def __init__(self, folder, words):
        self.log = folder / "log"
        world = {**os.environ, "PYTHONPATH": str(forks.TESTS.parent), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(*words), stdout=log, stderr=log, env=world, cwd=folder
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()  # which ends its ranks too
            self.process.wait()

    def wait_for(self, path):
        while not path.exists():
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)

    def rank(self, number):
        """The process of that rank."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                lines = (process / "environ").read_bytes().split(b"\0")
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"RANK=%d" % number in lines and int(parent) == self.process.pid:
                return int(process.name)
        raise AssertionError(self.said())

    def ends_within(self, seconds):
        return self.process.wait(seconds)

    def said(self):
        return [line for line in self.log.read_text().split("\n") if "esd: " in line]


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks there")


@needs_proc
@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(tmp_path):
    """Then Ctrl-C, in the terminal of the run that goes on, saves it once more."""
    out, state = tmp_path / "a.safetensors", tmp_path / "a.state.safetensors"
    words = erasing(out, "--steps", "9999", "--gpus", "2")
    with Running(tmp_path, words) as run:
        run.wait_for(state)
        os.kill(run.rank(1), signal.SIGKILL)
        assert run.ends_within(30) == 2
    (sentence,) = run.said()
    assert "another rank of this run has ended" in sentence and "--resume" in sentence
    before = state.stat().st_mtime_ns
    with Running(tmp_path, (*words, "--resume")) as run:
        while state.stat().st_mtime_ns == before:
            assert run.process.poll() is None, run.said()
            time.sleep(0.1)
        run.process.send_signal(signal.SIGINT)
        assert run.ends_within(60) == 130
    assert run.log.read_text().count("stopped; the state of step") == 1 and not run.said()
    assert not out.exists()


# -- shares, without processes ----------------------------------------------------------------


def test_shares_are_of_all_and_even():
    ranks = [Alone() for _ in range(3)]
    for number, rank in enumerate(ranks):
        rank.rank, rank.count = number, 3
    shares = [rank.share(range(10)) for rank in ranks]
    assert sorted(sum(map(list, shares), [])) == [*range(10)]
    assert max(map(len, shares)) == 4 == ranks[0].most(10) and ALONE.most(10) == 10


def test_the_plan_is_of_a_ranks_share(denoiser, settings):
    two = Alone()
    two.count = two.neighbours = 2
    two.shards_optimizer = True
    planners = (Planner(denoiser, settings(), ranks=ranks) for ranks in (ALONE, two))
    one, share = (planner.plan(settings()) for planner in planners)
    assert share.micro_batch == one.micro_batch / 2 == 2
    assert share.sampling_batch == one.sampling_batch / 2
    assert share.optimizer == one.optimizer / 2 and share.masters == one.masters
    assert share.activations < one.activations and share.needed < one.needed
    assert share.free < 0.6 * one.free


def test_samples_of_ranks_come_into_the_order_of_one():
    """Those that erase first, then by their places."""

    def placed(places, erasing):
        rows = torch.tensor(places, dtype=torch.float32)
        empty = torch.zeros(len(places), 1)
        samples = Samples(empty, rows, rows.long(), empty, rows, erasing)
        return Placed(torch.tensor(places), samples)

    both = Placed.in_order([placed([7, 2], 1), placed([0, 1], 2)])
    assert both.condition.tolist() == [0, 1, 7, 2] and both.erasing == 3


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu-[003-004,9]",
    "SLURM_JOB_ID": "61234",
    "SLURM_STEP_ID": "2",
}


def test_a_launcher_says_which_rank_this_is():
    assert place({}) is None and place({**TORCHRUN, "WORLD_SIZE": "1"}) is None
    by_sbatch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    assert place(by_sbatch) is None, "a batch script's own command is one process"
    found = [place(variables) for variables in (TORCHRUN, SRUN, {**SRUN, **TORCHRUN})]
    assert [(p.rank, p.count, p.local, p.neighbours) for p in found] == [(5, 8, 1, 4)] * 3
    assert [p.meeting for p in found] == ["env://", "tcp://gpu-003:21236", "env://"]


MEETING = """
from argparse import Namespace
from esd_core.cli.launch import ranks_of
with ranks_of(Namespace(device="cpu")) as ranks:
    print(ranks.gather((ranks.rank, ranks.count, ranks.neighbours)))
"""


def test_processes_that_srun_starts_meet():
    """By its variables alone, as two tasks on this machine get them."""
    here = {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    here |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    world = {**os.environ, "PYTHONPATH": str(forks.TESTS.parent), **SRUN, **here}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING],
            env={**world, "SLURM_PROCID": number, "SLURM_LOCALID": number},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    told = [task.communicate(timeout=100)[0] for task in tasks]
    assert told == ["[(0, 2, 2), (1, 2, 2)]\n"] * 2
