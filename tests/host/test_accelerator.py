"""ESDTrain in a ComfyUI whose device is the pretend accelerator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import simdev
import torch
from comfy_server import find_comfyui, running
from graphs import Graph, files, pictures

from esd_core.files.native import read_erasure

NPU = Path(__file__).resolve().parents[1] / "sim" / "npu"


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    if simdev.missing():
        pytest.skip(f"{simdev.MISSING}: {simdev.missing()}")
    simdev.build()
    paths = {"PYTHONPATH": [NPU], "PATH": [Path(sys.executable).parent, os.environ["PATH"]]}
    world = {name: os.pathsep.join(map(str, parts)) for name, parts in paths.items()}
    base = tmp_path_factory.mktemp("device") / "base"
    with running(find_comfyui(), base, is_cpu=False, world=world) as started:
        yield started


@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "rank": 4}], ids=["fp32", "bf16"])
def test_it_trains_there_as_on_the_cpu(on_device, server, options):
    """Behind a picture, whose sampling has left the weights on the device.

    In bf16 Adam turns the last digits of gradients into another course: it is seen only that it
    trains.
    """
    (device,) = on_device.get("/system_stats")["devices"]
    assert device["type"] == "npu"
    prefix = f"esd/device-{len(options)}"
    results = []
    for one in (on_device, server):
        graph = Graph(one)
        model, clip, vae = graph.pocket()
        before = graph.picture(model, clip, vae)
        train = graph.train(model, clip, {**options, "preview_every": 2}, filename_prefix=prefix)
        after = graph.picture(model, clip, vae, prompt="a house in the style of Van Gogh ")
        erased = graph.picture([train, 0], clip, vae)
        run = graph.run()
        assert run.ending == "execution_success", run.error
        assert (pictures(one, run, before)[0] == pictures(one, run, after)[0]).all()
        assert (pictures(one, run, erased)[0] != pictures(one, run, before)[0]).any()
        (file,) = files(one, f"loras/{prefix}*")
        results.append(read_erasure(file))
    there, here = results
    assert there.tensors.keys() == here.tensors.keys()
    for name, tensor in here.tensors.items() if not options else ():
        change = torch.linalg.vector_norm(tensor)
        away = torch.linalg.vector_norm(there.tensors[name] - tensor)
        assert away <= 0.01 * change, name
