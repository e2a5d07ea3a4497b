"""What a page that draws runs is told, and what it may ask."""

from __future__ import annotations

import copy
import urllib.error
import uuid

import pytest
from graphs import Graph, files

from esd_core.files.native import read_erasure
from esd_core.storage.reading import read_header


@pytest.fixture
def page(server):
    """Another client of the same server, which has said that it draws runs itself."""
    other = copy.copy(server)
    other.client, other.draws = uuid.uuid4().hex, True
    return other


def test_a_page_that_draws_is_told_everything_and_gets_no_text(page):
    graph = Graph(page)
    model, clip, vae = graph.pocket()
    options = {"preview_every": 2, "probe_every": 2}
    train = graph.train(model, clip, options, vae=vae, steps=5, filename_prefix="esd/drawn")
    run = graph.run()
    assert run.ending == "execution_success", run.error
    told = run.of("esd.run")
    assert not run.texts and not run.previews
    assert {(one["node"], one["prompt"]) for one in told} == {(train, run.history["prompt"][1])}
    assert [one["step"] for one in told if "loss" in one] == [1, 2, 3, 4, 5]
    probes = [one["probe"] for one in told if "probe" in one]
    assert [probe["step"] for probe in probes] == [2, 4, 5]
    assert set(probes[0]["share"]) == {"Van Gogh"} and "" in probes[0]["drift"]
    drawn = [one["picture"] for one in told if "picture" in one]
    assert [picture["step"] for picture in drawn] == [0, 2, 4, 5]
    assert len({picture["image"] for picture in drawn}) == 4
    assert told[-1]["running"] is False and "esd/drawn_00001_.safetensors" in run.text(train)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({"steps": 0}, "steps must be at least 1"), ({"method": "selfattn"}, "selfattn")],
    ids=["before a model is loaded", "of the model"],
)
def test_a_page_that_draws_is_told_what_is_wrong_in_the_place_of_a_report(page, inputs, said):
    """The host's text would stay on the node, below the reports of all later runs."""
    graph = Graph(page)
    model, clip, _ = graph.pocket("pocket-dit")
    train = graph.train(model, clip, {}, **inputs)
    run = graph.run()
    assert run.ending == "execution_error" and said in run.error and not run.texts
    told = run.of("esd.run")
    assert {one["node"] for one in told} == {train}
    assert [one["text"] for one in told if "text" in one][-1] == run.error
    assert told[-1]["running"] is False


def test_words_of_a_run_reach_the_client_that_queued_it_alone(server, page):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, seed=31, filename_prefix="esd/mine")
    run = graph.run()
    assert any("step 4 of 4" in text for text in run.texts) and not run.of("esd.run")


def test_a_page_loaded_anew_without_scripts_gets_text_again(page):
    def run(seed):
        graph = Graph(page)
        model, clip, _ = graph.pocket()
        graph.train(model, clip, {}, steps=1, seed=seed, filename_prefix="esd/anew")
        return graph.run()

    assert not run(34).texts
    page.draws = False
    again = run(35)
    assert any("step 1 of 1" in text for text in again.texts) and not again.of("esd.run")


def test_stop_and_keep_leaves_a_finished_file(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    train = graph.train(model, clip, {}, steps=500, seed=32, filename_prefix="esd/stopped")

    def stop(text: str) -> None:
        if text.startswith("step 3 of"):
            (running,) = server.get("/queue")["queue_running"]
            server.post("/esd/stop", {"prompt": running[1], "node": train})

    run = graph.run(on_text=stop)
    assert run.ending == "execution_success", run.error
    (file,) = files(server, "loras/esd/stopped*")
    metadata = read_header(file).metadata
    steps = int(metadata["esd.steps"])
    assert 3 <= steps < 500 and metadata["esd.ending"] == "by hand"
    assert f"{steps} steps, ended by hand" in run.text(train)
    assert any(tensor.any() for tensor in read_erasure(file).tensors.values())
    # The inputs ask for 500: they are not answered with that file later on.
    assert "esd.run" not in metadata


def test_there_is_nothing_to_stop_where_nothing_runs(server):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.post("/esd/stop", {"prompt": "none", "node": "1"})


def test_time_left_is_told_before_the_first_step(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, steps=6, seed=33, filename_prefix="esd/timed")
    run = graph.run()
    first = next(i for i, text in enumerate(run.texts) if text.startswith("step 1 of"))
    assert any(text.startswith("sampling") and "left" in text for text in run.texts[:first])
    bar = [p["value"] / p["max"] for p in run.of("progress")]
    assert bar == sorted(bar) and bar[0] < 0.1 and bar[-1] > 0.9
