"""The page itself, in a real browser: the chart grows, and "Stop and keep" leaves a file.

`npm install` in tests/page brings what drives the browser.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from comfy_server import NO_BROWSER
from graphs import Graph, drawn_with, files, pictures

from esd_core.files.native import read_erasure
from esd_core.storage.reading import read_header

PAGE = Path(__file__).resolve().parents[1] / "page"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
NODE = shutil.which("node") or ""
IS_THERE = bool(NODE and CHROMIUM and (PAGE / "node_modules" / "playwright-core").is_dir())

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not IS_THERE, reason=NO_BROWSER)]


def driven(server, script, renderer, folder):
    """What a script of tests/page has seen."""
    command = [NODE, PAGE / script, f"http://{server.address}", CHROMIUM, renderer, folder]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("renderer", ["classic", "nodes2"])
def test_a_run_is_watched_stopped_and_kept(server, tmp_path, renderer):
    seen = driven(server, "stop_and_keep.mjs", renderer, tmp_path)
    assert 1 < seen["few"] < seen["more"], "the chart grew"
    assert seen["inside"], seen["said"]
    assert seen["stays"], "the page's panel took the chart off the node"
    assert seen["tabs"] == {"other": False, "own": True}
    verdict, legend = seen["unmeasured"]
    assert not verdict and "Van Gogh" in legend and "%" not in legend
    assert not seen["errors"]
    (file,) = files(server, f"loras/page/{renderer}*")
    assert file.name in seen["said"] and "ended by hand" in seen["said"]
    erasure = read_erasure(file)
    assert erasure.concepts == ("Van Gogh",)
    metadata = read_header(file).metadata
    assert metadata["esd.ending"] == "by hand" and 1 < int(metadata["esd.steps"]) < 4000
    changed = drawn_with(
        server, "LoraLoaderModelOnly", lora_name=f"page/{file.name}", strength_model=1.0
    )[0]
    assert not np.array_equal(changed, drawn(server))


def drawn(server):
    """pocket's own picture."""
    graph = Graph(server)
    saved = graph.picture(*graph.pocket())
    return pictures(server, graph.run(), saved)[0]
