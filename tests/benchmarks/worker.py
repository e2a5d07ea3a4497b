"""A part of a benchmark in a process of its own, whose peak of memory is its own too.

python -m benchmarks.MODULE WORD...    prints JSON, which `answer` returns
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def answer(module: str, *words: str) -> Any:
    """What `python -m benchmarks.MODULE WORD...` prints last; it ends this run when it fails."""
    # Memory goes back to the system at once, so that a peak is what is held, not what was.
    variables = {**world(), "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def world() -> dict[str, str]:
    """Environment variables of a process that finds the benchmarks and the code."""
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
