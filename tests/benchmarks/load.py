"""ESDLoadErased and the stock LoRA loader on the same file, in a process of ComfyUI's.

The MODEL is an SDXL UNet of full size whose weights nobody has written, so that they take no
memory: a loader lays a file over them and computes nothing. The file is a random esd-x erasure.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import comfyui
from .figure import Figure, peak_bytes, seconds
from .worker import answer

PAIRS = 5


def run(pairs: int) -> list[Figure]:
    """Every load has a process of its own, and finds the file in the system's cache."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.safetensors"
        answer("load", "write", str(file))
        for _ in range(pairs):
            runs.append([answer("load", side, str(file)) for side in ("ours", "stock")])
    figures = []
    for index, (name, unit, bar) in enumerate((("load", "s", 1.1), ("load, memory", "MB", 1.0))):
        ours, other = ([pair[side][index] for pair in runs] for side in (0, 1))
        what = "ESDLoadErased of a full-size SDXL esd-x erasure against the stock LoRA loader"
        figures.append(Figure(name, what, unit, bar, ours, other))
    return figures


def write(path: Path) -> None:
    """Every trained tensor of esd-x changed by noise, in fp16: 1.1 GB."""
    import torch

    from esd_core.files.erasure import Erasure
    from esd_core.files.metadata import FORMAT
    from esd_core.files.native import write_erasure
    from esd_core.models.architectures import SDXL
    from esd_core.models.keys import diffusers_to_canonical
    from esd_core.training.selection import select

    from . import full_size

    with torch.device("meta"):
        unet = full_size.UNet2DConditionModel(**full_size.SDXL)
    shapes = {
        canonical: unet.get_parameter(name).shape
        for name, canonical in diffusers_to_canonical(unet.config).items()
    }
    suffixes = {"weight": "diff", "bias": "diff_b"}
    tensors = {}
    for name in select("esd-x", shapes, SDXL):
        path_of, _, leaf = name.rpartition(".")
        tensors[f"{path_of}.{suffixes[leaf]}"] = torch.randn(shapes[name], dtype=torch.float16)
    metadata = {"format": "pt", "esd.format": FORMAT, "esd.base_architecture": "sdxl"}
    write_erasure(path, Erasure(tensors, metadata))


# -- in ComfyUI's process ----------------------------------------------------------------------


def loaded(side: str, file: Path) -> tuple[float, float]:
    """Seconds from the node to weights that can be sampled with, and what they add to the peak
    in megabytes. The stock loader reads a file only when its change is added to the weights."""
    comfyui.enter()
    import comfy.model_management
    import folder_paths
    import torch

    folder_paths.add_model_folder_path("loras", str(file.parent), is_default=True)

    def load() -> None:
        comfy.model_management.load_models_gpu([node(model, file.name)], force_full_load=True)

    with torch.inference_mode():
        node, model = _loader(side), comfyui.unwritten_sdxl()
        _into_cache(file)
        before = peak_bytes()
        took = seconds(load)
    return took, (peak_bytes() - before) / 1e6


def _into_cache(file: Path) -> None:
    """Read in pieces: in one piece it would be the peak that both sides stay below."""
    with file.open("rb") as opened:
        while opened.read(1 << 20):
            pass


def _loader(side: str) -> Callable[[Any, str], Any]:
    if side == "stock":
        import nodes

        stock = nodes.LoraLoaderModelOnly()
        return lambda model, name: stock.load_lora_model_only(model, name, 1.0)[0]
    from esd_pack.nodes.load_erased import ESDLoadErased

    ours = ESDLoadErased.PREPARE_CLASS_CLONE(None)  # as the host does before it runs a node
    return lambda model, name: ours.execute(model, name, 1.0).result[0]


if __name__ == "__main__":
    what, path = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(write(path) if what == "write" else loaded(what, path)))
