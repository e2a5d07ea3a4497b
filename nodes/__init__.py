"""The nodes, one a file; host/ is the only code that touches ComfyUI's own modules."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .compare import ESDCompare
from .load_erased import ESDLoadErased
from .load_pocket import ESDLoadPocket
from .save_erased import ESDSaveErased
from .train import ESDTrain
from .train_options import ESDTrainOptions


class ESDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ESDTrain, ESDTrainOptions, ESDLoadErased, ESDSaveErased, ESDCompare, ESDLoadPocket]
