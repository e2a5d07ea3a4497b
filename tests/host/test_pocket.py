"""pocket beside the models that ComfyUI knows: in a server of its own, which has not met it yet."""

from __future__ import annotations

import time

import numpy as np
import pytest
from comfy_server import find_comfyui, running
from graphs import Graph, pictures

from esd_core.files.unet import write_unet
from esd_core.models.loading import load_denoiser

FILE = "pocket.safetensors"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    base = tmp_path_factory.mktemp("fresh") / "base"
    path = base / "models" / "diffusion_models" / FILE
    path.parent.mkdir(parents=True)
    write_unet(path, load_denoiser("pocket", "fp32", "cpu").parameters())
    with running(find_comfyui(), base) as server:
        yield server


def drawn(server, *, from_file, seed=1):
    """A picture of pocket's, by its node alone or with the UNet that UNETLoader finds; all nodes
    that had a turn, by kind."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    if from_file:
        model = [graph.add("UNETLoader", unet_name=FILE, weight_dtype="default"), 0]
    saved = graph.picture(model, clip, vae, seed=seed)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    kinds = {graph.prompt[node]["class_type"] for node in run.executed()}
    return pictures(server, run, saved)[0], kinds


def test_the_host_does_not_know_pocket_before_its_node_is_used(fresh):
    """The tests of this file stand in the order of a person's day."""
    graph = Graph(fresh)
    unet = graph.add("UNETLoader", unet_name=FILE, weight_dtype="default")
    graph.add("ModelSave", model=[unet, 0], filename_prefix="unknown")
    assert "Could not detect model type" in graph.run().error


def test_a_file_of_pocket_loads_even_before_the_node_has_had_its_turn(fresh):
    from_file, _ = drawn(fresh, from_file=True)
    own, _ = drawn(fresh, from_file=False)
    assert np.array_equal(from_file, own)


def test_it_loads_anew_and_draws_the_same_when_all_was_freed(fresh):
    before, _ = drawn(fresh, from_file=True)
    fresh.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)  # the server takes it up between prompts, in its own time
    again, ran = drawn(fresh, from_file=True)
    assert {"ESDLoadPocket", "UNETLoader"} <= ran
    assert np.array_equal(before, again)
