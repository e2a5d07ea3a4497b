"""ESDTrain in a ComfyUI whose device is the pretend accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest
import simdev
import torch
from comfy_server import find_comfyui, running
from graphs import Graph, files, pictures

from esd_core.files.native import read_erasure


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    if simdev.missing():
        pytest.skip(f"{simdev.MISSING}: {simdev.missing()}")
    base = tmp_path_factory.mktemp("device") / "base"
    extra = Path(__file__).with_name("extra_nodes.py")
    with running(find_comfyui(), base, extra, is_cpu=False, world=simdev.as_npu()) as started:
        yield started


RUNS = {
    "fp32": ({}, False),
    "bf16": ({"precision": "bf16", "rank": 4}, False),
    "partly offloaded before": ({"warmup": 1}, True),  # or it is found to have been made before
}


@pytest.mark.parametrize("run", RUNS)
def test_it_trains_there_as_on_the_cpu(on_device, server, run):
    """Behind a picture, whose sampling has left the weights on the device.

    In bf16 Adam turns the last digits of gradients into another course: it is seen only that it
    trains.
    """
    options, is_offloaded = RUNS[run]
    (device,) = on_device.get("/system_stats")["devices"]
    assert device["type"] == "npu"
    prefix = f"esd/device {run}"
    results = []
    for one in (on_device, server):
        graph = Graph(one)
        model, clip, vae = graph.pocket()
        before = graph.picture(model, clip, vae)
        if is_offloaded and one is on_device:
            model = [graph.add("TestOffloaded", model=model), 0]
        train = graph.train(model, clip, {**options, "preview_every": 2}, filename_prefix=prefix)
        after = graph.picture(model, clip, vae, prompt="a house in the style of Van Gogh ")
        erased = graph.picture([train, 0], clip, vae)
        done = graph.run()
        assert done.ending == "execution_success", done.error
        assert (pictures(one, done, before)[0] == pictures(one, done, after)[0]).all()
        assert (pictures(one, done, erased)[0] != pictures(one, done, before)[0]).any()
        (file,) = files(one, f"loras/{prefix}*")
        results.append(read_erasure(file))
    there, here = results
    assert there.tensors.keys() == here.tensors.keys()
    for name, tensor in here.tensors.items() if run != "bf16" else ():
        change = torch.linalg.vector_norm(tensor)
        away = torch.linalg.vector_norm(there.tensors[name] - tensor)
        assert away <= 0.01 * change, name


def test_the_same_bits_each_time_are_asked_for_in_time(on_device):
    graph = Graph(on_device)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {"deterministic": True}, filename_prefix="esd/too-late")
    assert "start ComfyUI with --deterministic, or switch it off" in graph.run().error
