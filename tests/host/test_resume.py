"""Nothing is lost: states, finished runs and the history, in a real ComfyUI."""

from __future__ import annotations

import json
import re

import pytest
from graphs import Graph, files

from esd_core.files.metadata import Key
from esd_core.files.native import read_erasure
from esd_core.training.checkpoint import summary

STATES = "esd_training/*"


@pytest.fixture(autouse=True)
def clean(server):
    """No states of other tests."""
    for state in files(server, STATES):
        state.unlink()


def training(server, prefix, options=None, **inputs):
    """A training whose settings no other test has; without options as people first run it."""
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    given = {"seed": sum(prefix.encode()), "filename_prefix": prefix, **inputs}
    return graph, graph.train(model, clip, options or {}, **given)


def done(server, prefix, options=None, **inputs):
    """The run of it, and the node's report."""
    graph, node = training(server, prefix, options, **inputs)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return run, run.text(node)


def cancelled(server, prefix, after, options=None, **inputs):
    """The states there are when it has been cancelled soon after that step."""
    graph, _ = training(server, prefix, options, **inputs)
    run = graph.run(on_text=lambda t: t.startswith(f"step {after} of") and server.interrupt())
    assert run.ending == "execution_interrupted"
    return {state.path: state.step for state in map(summary, files(server, STATES))}


def first_step(run):
    """Of those that the node has shown."""
    return min(
        int(found[1]) for t in run.texts if (found := re.match(r"step (\d+) of \d+, loss", t))
    )


def erasure(server, prefix):
    return read_erasure(files(server, f"loras/{prefix}_*")[-1])


def test_a_run_after_a_cancel_goes_on_by_itself(server):
    ((state, step),) = cancelled(server, "esd/by-itself", 6, steps=40).items()
    assert state.name.startswith("Van_Gogh-")
    run, report = done(server, "esd/by-itself", steps=12)
    assert first_step(run) == step + 1
    assert f"went on from step {step} of a stopped run" in report
    assert not files(server, STATES), "it belongs to a finished file"


def test_a_state_is_never_replaced_by_a_shorter_one(server):
    longer = cancelled(server, "esd/longer", 9, steps=40)
    both = cancelled(server, "esd/longer", 3, {"resume": False}, steps=40)
    assert len(both) == 2 and longer.items() < both.items()
    run, report = done(server, "esd/longer", steps=12)
    assert first_step(run) == max(longer.values()) + 1
    assert "went on from" in report and not files(server, STATES)


def test_a_state_beyond_the_steps_that_are_asked_for_is_left_alone(server):
    ((state, step),) = cancelled(server, "esd/beyond", 8, steps=40).items()
    run, report = done(server, "esd/beyond", steps=5)
    assert first_step(run) == 1 and "5 steps, all steps done" in report
    assert f"started afresh beside the state of step {step}" in report and state.is_file()
    assert erasure(server, "esd/beyond").metadata[Key.STEPS] == "5"


def test_a_file_is_taken_only_for_the_steps_that_it_has(server):
    """As files of earlier versions claim, which went on from a state beyond their steps."""
    done(server, "esd/claims", steps=3)
    made = erasure(server, "esd/claims")
    from esd_core.files.native import write_erasure

    metadata = {**made.metadata, Key.STEPS: "12"}
    write_erasure(made.path, type(made)(made.tensors, metadata), force=True)
    run, report = done(server, "esd/claims", {"preview_every": 2}, steps=3)
    assert first_step(run) == 1 and "the same inputs" not in report


def test_a_deleted_file_is_made_again(server):
    graph, node = training(server, "esd/deleted")
    graph.run()
    (file,) = files(server, "loras/esd/deleted*")
    assert node not in graph.run().executed()
    file.unlink()
    run = graph.run()
    assert node in run.executed() and "the same inputs" not in run.text(node)
    assert files(server, "loras/esd/deleted*") == [file]
    assert node not in graph.run().executed(), "it is there again"


def test_another_name_is_a_copy_of_the_same_run(server):
    done(server, "esd/one-name")
    run, report = done(server, "esd/other/name", seed=sum(b"esd/one-name"))
    assert not any(text.startswith("step ") for text in run.texts)
    assert "made output/loras/esd/one-name_00001_.safetensors before" in report
    one, two = files(server, "loras/esd/one-name*") + files(server, "loras/esd/other/name*")
    assert one.read_bytes() == two.read_bytes()


def test_a_ruined_model_is_called_that(server):
    _, report = done(server, "esd/ruined", learning_rate=1.0)
    assert report.startswith("WARNING: the model is ruined") and "lower learning_rate" in report
    assert "WARNING" not in done(server, "esd/sound", learning_rate=1e-4)[1]


@pytest.mark.parametrize("doing", ["encoding prompt 2 of ", "planning memory: counting "])
def test_what_comes_before_the_first_step_is_told_and_can_be_cancelled(server, doing):
    graph, _ = training(server, "esd/planning")
    run = graph.run(on_text=lambda text: text.startswith(doing) and server.interrupt())
    assert run.ending == "execution_interrupted"
    assert not any("recording" in text for text in run.texts)
    assert not files(server, STATES)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_stock_graph_draws_short_runs(server, steps):
    graph, node = training(server, f"esd/short-{steps}", steps=steps)
    graph.add("LossGraphNode", loss=[node, 2])
    run = graph.run()
    assert run.ending == "execution_success", run.error


def test_every_run_leaves_a_line(server):
    log = server.base / "output" / "esd_history.jsonl"
    before = log.read_text().splitlines() if log.exists() else []
    cancelled(server, "esd/history-stopped", 3, steps=40)
    graph, node = training(server, "esd/history-done")
    shown = graph.add("PreviewAny", source=[node, 4])
    run = graph.run()
    lines = log.read_text().splitlines()[len(before) :]
    stopped, whole = map(json.loads, lines)
    assert stopped["ending"] == "stopped" and whole["ending"] == "done"
    assert whole["file"] == "output/loras/esd/history-done_00001_.safetensors"
    assert whole["concepts"] == ["Van Gogh"] and whole["left"]["Van Gogh"] < 1.01
    first, second, states = run.text(shown).splitlines()[:2] + run.text(shown).splitlines()[-1:]
    assert whole["file"] in first and stopped["file"] in second
    assert "Van Gogh (step" in states and " MB" in states
    text = json.dumps(dict(erasure(server, "esd/history-done").metadata))
    assert whole["time"] not in text, "files hold no times"
