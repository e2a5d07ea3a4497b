"""Parts of `gpu`, each in a process of its own: python -m benchmarks.gpu_part WHAT DEVICE WORD...

facts    card, driver and versions, as Markdown
esd      a command on that device
plan     what a run is planned to need beside its weights, and what it takes
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

from esd_core.cli.main import main
from esd_core.errors import ESDError

from . import full_size, pocket
from .figure import seconds

STEPS = 4


def facts(device: str) -> None:
    memory: Any = torch.get_device_module(device)
    properties = memory.get_device_properties(0)
    total = memory.mem_get_info()[1]
    kind = f"{properties.major}.{properties.minor}"
    print(f"- card: {properties.name}, {total / 1e9:.1f} GB, compute capability {kind}")
    print(f"- driver: {_told('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')}")
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    print(f"- torch {torch.__version__}, {cuda}, diffusers {diffusers.__version__}")
    print(f"- Python {platform.python_version()}, {platform.platform()}")
    print(f"- this pack at {_told('git', 'log', '-1', '--format=%h of %cs')}")
    comfyui = Path(os.environ.get("COMFYUI_PATH", ".")) / "pyproject.toml"
    if comfyui.is_file():
        print(f"- ComfyUI {re.findall('version = .(.*).', comfyui.read_text())[0]}")


def _told(*command: str) -> str:
    if not shutil.which(command[0]):
        return f"unknown, without {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def plan(device: str, words: list[str]) -> None:
    """A row of the table: planned, peak, their ratio, and seconds of a step."""
    settings = dict(word.split("=") for word in words)
    asked = {n: int(value) if value.isdecimal() else value for n, value in settings.items()}
    is_real = device == "cuda"
    sizes, edge = (full_size.SDXL, 1024) if is_real else (full_size.SMALL, 128)
    denoiser = full_size.denoiser(
        torch.bfloat16 if is_real else torch.float32, sizes, device if is_real else "sim"
    )
    size = {"width": edge, "height": edge, "training.steps": STEPS, "trajectory.steps": 4}
    config = full_size.config(**size, **asked)
    memory, host = torch.get_device_module(device), pocket.Silent()
    try:
        made = pocket.check(denoiser, config)
    except ESDError as error:
        print(f"{error} | | | ")
        return
    gc.collect()
    before = memory.memory_allocated()
    memory.reset_peak_memory_stats()
    trainer = pocket.prepare(denoiser, config, made)
    took = seconds(lambda: trainer.run(host, host)) / STEPS
    peak = memory.max_memory_allocated() - before
    unit = 1e9 if is_real else 1e6
    name = "GB" if is_real else "MB"
    told = (f"{made.needed / unit:.2f} {name}", f"{peak / unit:.2f} {name}")
    print(" | ".join([*told, f"{made.needed / peak:.3f}", f"{took:.2f}"]))


if __name__ == "__main__":
    what, device, *words = sys.argv[1:]
    if device == "sim":
        import simdev

        simdev.load()
    if what == "facts":
        facts(device)
    elif what == "plan":
        plan(device, words)
    else:
        sys.exit(main([*words, "--device", device]))
