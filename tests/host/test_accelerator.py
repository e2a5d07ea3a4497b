"""ESDTrain in a ComfyUI whose device is the pretend accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest
import simdev
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


RUNS = {"fp32": {}, "bf16": {"precision": "bf16", "rank": 4}}


@pytest.mark.parametrize("run", RUNS)
def test_it_trains_there_as_on_the_cpu(on_device, server, run):
    """Behind a picture, whose sampling has left the weights on the device.

    Adam moves a weight whose gradient is all rounding as far as any other: between two devices the
    change differed by 1 % on one processor and by 4 % on another. So what it does is held to the
    CPU's: pictures of the two erasures differ by a twentieth, at most, of what an erasure changes,
    where untouched ones differ by a sixtieth. In bf16, where most last digits differ, it is seen
    only that it trains.
    """
    (device,) = on_device.get("/system_stats")["devices"]
    assert device["type"] == "npu"
    results, drawn = [], []
    for one in (on_device, server):
        graph = Graph(one)
        model, clip, vae = graph.pocket()
        before = graph.picture(model, clip, vae)
        prefix = f"esd/device {run}"
        train = graph.train(model, clip, {**RUNS[run], "preview_every": 2}, filename_prefix=prefix)
        after = graph.picture(model, clip, vae, prompt="a house in the style of Van Gogh ")
        erased = graph.picture([train, 0], clip, vae)
        done = graph.run()
        assert done.ending == "execution_success", done.error
        assert (pictures(one, done, before)[0] == pictures(one, done, after)[0]).all()
        assert (pictures(one, done, erased)[0] != pictures(one, done, before)[0]).any()
        (file,) = files(one, f"loras/{prefix}*")
        results.append(read_erasure(file).tensors)
        drawn.append([pictures(one, done, node)[0].astype(float) for node in (before, erased)])
    there, here = results
    assert there.keys() == here.keys()
    if run == "fp32":
        (_, by_device), (untouched, by_cpu) = drawn
        away, change = abs(by_device - by_cpu).mean(), abs(by_cpu - untouched).mean()
        assert away <= 0.05 * change


def test_it_trains_a_model_that_was_partly_offloaded_to_the_same_bits(on_device):
    found = []
    for is_offloaded in (False, True):
        graph = Graph(on_device)
        model, clip, vae = graph.pocket()
        if is_offloaded:
            model = [graph.add("TestOffloaded", model=model), 0]
        graph.train(model, clip, {}, filename_prefix="esd/offloaded")
        done = graph.run()
        assert done.ending == "execution_success", done.error
        (file,) = files(on_device, "loras/esd/offloaded*.safetensors")
        found.append(file.read_bytes())
        file.unlink()  # or it would be found to have been made before
    whole, offloaded = found
    assert whole == offloaded


def test_text_and_weights_that_find_no_memory_are_told_of(on_device):
    """And train once they do."""

    def done(free, is_text_there):
        graph = Graph(on_device)
        model, clip, _ = graph.pocket()
        little = graph.add("TestLittleMemory", model=model, clip=clip, free=free)
        text = clip if is_text_there else [little, 1]
        graph.train([little, 0], text, {}, filename_prefix="esd/little")
        return graph.run()

    for is_text_there, what in (
        (True, "free more of the device for the text encoders"),
        (False, "training needs all of the MODEL's weights on the device"),
    ):
        told = done(10**7, is_text_there).error
        assert told.startswith("out of memory (") and what in told
    assert done(0, True).ending == "execution_success"


def test_the_same_bits_each_time_are_asked_for_in_time(on_device):
    graph = Graph(on_device)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {"deterministic": True}, filename_prefix="esd/too-late")
    assert "start ComfyUI with --deterministic, or switch it off" in graph.run().error
