"""Several GPUs and machines: which of the ranks this process is, and starting them.

torchrun, accelerate and srun tell a process its place by environment variables alone, and cuBLAS
reads one of its own. So this file has them, and no other does: it is of the command, and ComfyUI
never loads it.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ESDError, counted
from ..method.shares import ALONE, Alone

if TYPE_CHECKING:
    import torch

    from ..training.ranks import Place

_FAILED = 2
_FIRST_PORT, _PORTS = 20000, 20000


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--gpus",
        metavar="all|N",
        help="Run on so many GPUs of this machine, one process each, which torchrun starts; with "
        "--device cpu, as so many processes on the CPU. On several machines, start the command by "
        "torchrun, accelerate or srun, without this.",
    )


def number_of_gpus(arguments: Namespace) -> int:
    """What --gpus asks for, 0 without it; ConfigError when there are not so many."""
    word = arguments.gpus
    if word is None:
        return 0
    if word != "all" and not (word.isdecimal() and int(word)):
        raise ConfigError(f"--gpus takes all or a number from 1 on, not {word}")
    import torch

    if arguments.device == "cpu" and word != "all":
        return int(word)
    there = torch.cuda.device_count()
    if not there or (word != "all" and int(word) > there):
        raise ConfigError(f"--gpus {word}: torch sees {counted(there, 'GPU')} here; ask for fewer")
    return there if word == "all" else int(word)


def run(
    arguments: Namespace, command: Callable[[Namespace, Alone], int], shards_optimizer: bool = False
) -> int:
    """The exit code of a command: in this process alone, as the rank that it is, or as the ranks
    that --gpus asks for, which are started with the same words."""
    if place(os.environ):
        if arguments.gpus and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise ConfigError("--gpus starts processes by itself: leave it out under srun")
    elif (count := number_of_gpus(arguments)) > 1:
        from ..training.ranks import launch

        return launch(count, arguments.command_line)
    with ranks_of(arguments, shards_optimizer) as ranks:
        return command(arguments, ranks)


@contextmanager
def ranks_of(arguments: Namespace, shards_optimizer: bool = False) -> Iterator[Alone]:
    """This process as one of the run's; sets --device to its own.

    Of an error that ends several of them, one tells: the others leave by SystemExit.
    """
    here = place(os.environ)
    if not here:
        if shards_optimizer:
            raise ConfigError("--shard-optimizer is for several GPUs: add --gpus all")
        yield ALONE
        return
    from ..training.ranks import joined

    device = _device(arguments.device, here)
    arguments.device = str(device)
    with joined(here, device, shards_optimizer) as ranks:
        try:
            yield ranks
        except (ESDError, KeyboardInterrupt) as error:
            atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else _FAILED)
            if ranks.tells(error):
                raise
            raise SystemExit(_FAILED) from None


def allow_deterministic(asked: Mapping[str, Any]) -> None:
    """Where these settings ask for the same bits each time, tells cuBLAS before its first use."""
    if asked.get("training", {}).get("deterministic"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _leave(code: int) -> None:
    """Ends the process here: torch's own end would wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def place(variables: Mapping[str, str]) -> Place | None:
    """Which of several processes this is; None for a process alone."""
    if "RANK" in variables and "WORLD_SIZE" in variables:  # torchrun, accelerate
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        meeting = "env://"
    elif "SLURM_STEP_NUM_TASKS" in variables:  # srun, but not sbatch by itself
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")
        meeting = _of_slurm(variables)
    else:
        return None
    rank, count, local = (int(variables.get(name, "0")) for name in names[:3])
    neighbours = int(variables.get(names[3], "") or _tasks_here(variables))
    if count < 2:
        return None
    from ..training.ranks import Place

    return Place(rank, count, local, neighbours, meeting)


def _tasks_here(variables: Mapping[str, str]) -> int:
    """Of srun's "4(x2),3": tasks on each of two machines and on a third."""
    tasks = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return int(tasks[0]) if tasks else 1


def _of_slurm(variables: Mapping[str, str]) -> str:
    """The first machine of the step, "node[03-05,7]", and a port that its number decides."""
    hosts = variables.get("SLURM_STEP_NODELIST", "localhost")
    first = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", hosts)
    host = variables.get("MASTER_ADDR") or "".join(filter(None, first.groups() if first else ()))
    number = int(variables.get("SLURM_JOB_ID", "0")) + int(variables.get("SLURM_STEP_ID", "0"))
    port = variables.get("MASTER_PORT") or str(_FIRST_PORT + number % _PORTS)
    return f"tcp://{host}:{port}"


def _device(asked: str | None, here: Place) -> torch.device:
    """A rank's own; ConfigError where there are fewer GPUs than ranks."""
    import torch

    if asked == "cpu" or (asked is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if asked not in (None, "cuda"):
        raise ConfigError(f"--device {asked}: each of several processes takes a device of its own")
    there = torch.cuda.device_count()
    if there == 1 and here.meeting != "env://":  # srun can show each process its own GPU alone
        return torch.device("cuda", 0)
    if here.local >= there:
        raise ConfigError(f"{counted(there, 'GPU')} here for {here.neighbours} processes")
    return torch.device("cuda", here.local)
