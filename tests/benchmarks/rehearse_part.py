"""Parts of the rehearsal that have a process of their own; see `rehearse`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from . import full_size, pocket


def headless(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Trains, writes the erasure and every export, reads the erasure and predicts with it."""
    from esd_core.files.apply import applied
    from esd_core.files.base import Base
    from esd_core.files.export import export
    from esd_core.files.formats import DIFFUSERS, ERASURE, LORA, OFFICIAL, UNET
    from esd_core.files.native import read_erasure, write_erasure
    from esd_core.training.run import erase

    dtype, short = torch.bfloat16, {"trajectory.steps": 2, "trajectory.count": 2}
    switch = {"training.steps": 3, "training.gradient_checkpointing": "on"}
    denoiser, host = full_size.denoiser(dtype, sizes), pocket.Silent()
    result = erase(denoiser, full_size.config(**short, **switch), host, host)
    file = folder / "erasure.safetensors"
    write_erasure(file, result.erasure, force=True)
    erasure = read_erasure(file)
    base = Base(denoiser.architecture, denoiser.network.config, denoiser.parameters())
    for form in (ERASURE, LORA, UNET, DIFFUSERS, OFFICIAL):
        path = folder / (form if form == DIFFUSERS else f"as-{form}.safetensors")
        export(form, path, erasure, base, rank=16, force=True)
    rows = denoiser.encode(["Van Gogh"], 256, 256)
    x, sigma = torch.ones(1, 4, 32, 32), torch.ones(1)
    with torch.no_grad():
        before = denoiser.predict(x, sigma, rows)
        with applied(denoiser, [(erasure, 1.0)]):
            moved = float((denoiser.predict(x, sigma, rows) - before).norm() / before.norm())
    return {**result.report, "moved": moved}


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "write":
        from . import checkpoint, comfyui

        comfyui.enter()
        if not Path(words[0]).exists():
            checkpoint.write(Path(words[0]))
        print(json.dumps(True))
    else:
        chosen = {"sdxl": full_size.SDXL, "pocket": full_size.SMALL}[words[1]]
        print(json.dumps(headless(Path(words[0]), chosen)))
