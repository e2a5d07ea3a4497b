"""The memory of transformers in ComfyUI's own classes: what is planned, and what a step takes."""

from __future__ import annotations

import sys

import pytest
from comfy_server import answer_in_host
from families import FAMILIES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("switch", ["off", "on"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_a_step_takes(family, switch, tmp_path, monkeypatch):
    """Within 15 %."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    told = answer_in_host("planned.py", tmp_path, [family, switch])
    assert told["taken"] == pytest.approx(told["planned"], rel=0.15)
