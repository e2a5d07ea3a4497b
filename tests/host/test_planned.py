"""The memory of transformers in ComfyUI's own classes: what is planned, and what a step takes."""

from __future__ import annotations

import sys

import pytest
from comfy_server import answer_in_host
from families import FAMILIES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as world:
        world.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        return answer_in_host("planned.py", folder, [*FAMILIES])


@pytest.mark.parametrize("switch", ["off", "on"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_a_step_takes(told, family, switch):
    """Within 15 %."""
    found = told[family][switch]
    assert found["taken"] == pytest.approx(found["planned"], rel=0.15)
