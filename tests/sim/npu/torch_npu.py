"""Passes the pretend accelerator off as an Ascend NPU, which ComfyUI takes for its device.

For a ComfyUI process with this folder on its path.
"""

import sys
from pathlib import Path

import torch

torch.version.cuda = None  # as on a machine whose torch was made for an NPU
sys.path.append(str(Path(__file__).resolve().parents[2]))
import simdev  # noqa: E402

simdev.load("npu")
