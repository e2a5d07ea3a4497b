"""A UNet of hundreds of megabytes is converted in the memory of a few of its tensors."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
import torch
from esd_core.files.erasure import Erasure
from esd_core.files.export import export
from esd_core.files.formats import DIFFUSERS, UNET
from esd_core.files.base import Base, open_base
from esd_core.storage.lazy import Spec
from esd_core.models.architectures import SD1
from esd_core.models.keys import diffusers_to_canonical
from esd_core.storage.lazy import LazyTensors
from diffusers import UNet2DConditionModel

def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

folder = Path(sys.argv[1])
config = {"cross_attention_dim": 768, "block_out_channels": [128, 256, 384, 384]}
names = diffusers_to_canonical(config)
with torch.device("meta"):
    shapes = UNet2DConditionModel.from_config(config).state_dict()
specs = {names[n]: Spec(torch.float16, tuple(t.shape)) for n, t in shapes.items()}
weights = LazyTensors(specs, lambda n: torch.full(specs[n].shape, 0.5, dtype=torch.float16))
key = "middle_block.1.transformer_blocks.0.attn2.to_k"
erasure = Erasure({f"{key}.diff": torch.ones(specs[f"{key}.weight"].shape)}, {})
export(UNET, folder / "unet", Erasure({}, {}), Base(SD1, config, weights))
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = held("VmRSS")
export(DIFFUSERS, folder / "diffusers", erasure, open_base(folder / "unet"))
print((folder / "unet").stat().st_size, held("VmHWM") - before)
(folder / "unet").unlink()
moved = {n for n, t in open_base(folder / "diffusers").weights.items() if float(t.max()) != 0.5}
assert moved == {f"{key}.weight"}, moved
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_conversion_holds_a_few_tensors(tmp_path):
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for file in (tmp_path / "diffusers").glob("*.safetensors"):
        file.unlink()  # pytest keeps folders
    assert done.returncode == 0, done.stderr
    size, grown = map(int, done.stdout.split())
    assert size > 150e6 and 0 < grown < 0.2 * size
