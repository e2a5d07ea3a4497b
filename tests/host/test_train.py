"""ESDTrain in a real ComfyUI, on pocket."""

from __future__ import annotations

import io
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from graphs import AGAIN, PROMPT, Graph, drawn_with, files, pictures
from PIL import Image

from esd_core.files.native import read_erasure


@pytest.fixture(scope="module")
def trained(server):
    """One training, with pictures around it: the run, and its nodes by what they are."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    train = graph.train(
        model, clip, {"preview_every": 2}, steps=20, filename_prefix="esd/end-to-end"
    )
    nodes = {
        "train": train,
        "before": graph.picture(model, clip, vae),
        "erased": graph.picture([train, 0], clip, vae),
        "graph": graph.add("LossGraphNode", loss=[train, 2]),
    }
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return run, nodes


@pytest.fixture(scope="module")
def erased_picture(server, trained):
    run, nodes = trained
    return pictures(server, run, nodes["erased"])[0]


def test_it_tells_where_the_file_is_and_what_is_left(server, trained):
    run, nodes = trained
    report = run.text(nodes["train"])
    assert "output/loras/esd/end-to-end_00001_.safetensors" in report
    assert "Van Gogh" in report and "20 steps" in report
    (file,) = files(server, "loras/esd/end-to-end*")
    erasure = read_erasure(file)
    assert erasure.concepts == ("Van Gogh",)
    assert all(value.abs().max() > 0 for value in erasure.tensors.values())


def test_it_shows_every_step_and_draws_previews(trained):
    run, _ = trained
    for step in (1, 20):
        assert any(f"step {step} of 20, loss" in text and "left" in text for text in run.texts)
    drawn = [Image.open(io.BytesIO(data)) for data in run.previews if data[:2] == b"\xff\xd8"]
    assert len(drawn) >= 10
    assert all(np.asarray(picture).std() > 1 for picture in drawn)


def preview(server, name):
    """What the server shows for a file in the folders for LoRAs."""
    listed = server.get("/experiment/models/loras")
    (index,) = [entry["pathIndex"] for entry in listed if entry["name"] == name]
    path = f"/experiment/models/preview/loras/{index}/{name}"
    return Image.open(io.BytesIO(server.bytes(path)))


def test_the_server_shows_the_last_preview_for_the_file(server):
    """Large enough to see, though the pictures are small; both have been compressed since."""
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(
        model, clip, {"preview_every": 2}, learning_rate=5e-3, filename_prefix="esd/covered"
    )
    run = graph.run()
    assert run.ending == "execution_success", run.error
    drawn = [Image.open(io.BytesIO(data)) for data in run.previews if data[:2] == b"\xff\xd8"]
    shown = preview(server, "esd/covered_00001_.safetensors")
    # The one before alone, then it and the newest side by side.
    assert [p.size for p in drawn] == [(64, 64), (128, 64), (128, 64)]
    assert shown.size == (256, 256)
    newest = [p.crop((p.width - 64, 0, p.width, 64)) for p in drawn]
    pixels = [np.asarray(p.convert("RGB").resize((16, 16)), float) for p in (*newest, shown)]
    distances = [float(np.abs(pixels[-1] - other).mean()) for other in pixels[:-1]]
    assert distances[2] < min(distances[:2]), "it is the last one"


def test_a_preview_that_fails_costs_no_run(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    broken = [graph.add("TestBrokenVae", vae=vae), 0]
    name, own_run = "esd/no-preview", 77  # a seed that no other test has: no file is found
    graph.train(model, clip, {"preview_every": 2}, vae=broken, seed=own_run, filename_prefix=name)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    assert any("no preview of step 2: out of memory" in text for text in run.texts)
    assert len(files(server, "loras/esd/no-preview*")) == 1


def test_one_step_can_be_plotted_and_is_called_one(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    train = graph.train(model, clip, {}, steps=1, filename_prefix="esd/one-step")
    plot = graph.add("LossGraphNode", loss=[train, 2])
    run = graph.run()
    assert run.ending == "execution_success", run.error
    assert pictures(server, run, plot)[0].std() > 1
    assert "\n1 step, all steps done" in run.text(train)


def test_without_previews_there_is_nothing_to_show(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, filename_prefix="esd/unseen")
    assert graph.run().ending == "execution_success"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        preview(server, "esd/unseen_00001_.safetensors")


def test_the_picture_changes(server, trained, erased_picture):
    run, nodes = trained
    before = pictures(server, run, nodes["before"])[0]
    assert np.abs(before.astype(int) - erased_picture).mean() > 1


def test_the_file_gives_the_same_picture_by_stock_and_own_loader(server, trained, erased_picture):
    name = "esd/end-to-end_00001_.safetensors"
    stock = drawn_with(server, "LoraLoaderModelOnly", lora_name=name, strength_model=1.0)[0]
    own = drawn_with(server, "ESDLoadErased", file=name, strength=1.0)[0]
    assert np.array_equal(stock, own)
    assert np.array_equal(stock, erased_picture)


def test_strengths_of_the_stock_and_the_own_loader_are_the_same(server, trained, erased_picture):
    name = "esd/end-to-end_00001_.safetensors"
    stock = drawn_with(server, "LoraLoaderModelOnly", lora_name=name, strength_model=0.5)[0]
    own = drawn_with(server, "ESDLoadErased", file=name, strength=0.5)[0]
    assert np.array_equal(stock, own)
    assert not np.array_equal(stock, erased_picture)


def test_the_model_that_came_in_is_the_same_after(server, trained):
    """KSampler before any training, and on the same MODEL object after one, by its cache."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    before = graph.picture(model, clip, vae, prompt="a boat", seed=5)
    first = graph.run()
    graph.train(model, clip, {}, seed=3, filename_prefix="esd/between")
    assert graph.run().ending == "execution_success"
    after = graph.picture(model, clip, vae, prompt="a boat" + AGAIN, seed=5)
    last = graph.run()
    assert model[0] not in last.executed(), "the MODEL must be the one that was trained on"
    assert graph.samplers[after] in last.executed()
    one, two = pictures(server, first, before)[0], pictures(server, last, after)[0]
    assert np.array_equal(one, two)


def test_the_same_inputs_are_not_trained_again(server, trained):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    # A preview makes no other result: the cache does not know that, the file does.
    train = graph.train(
        model, clip, {"preview_every": 3}, steps=20, filename_prefix="esd/end-to-end"
    )
    run = graph.run()
    assert "the same inputs made this before" in run.text(train)
    assert not any("step 1 of" in text for text in run.texts)
    assert len(files(server, "loras/esd/end-to-end*")) == 1


def test_other_inputs_make_a_file_of_their_own(server, trained):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, seed=9, filename_prefix="esd/end-to-end")
    assert graph.run().ending == "execution_success"
    assert len(files(server, "loras/esd/end-to-end*")) == 2


def test_two_trainings_can_follow_each_other(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    first = graph.train(model, clip, {}, filename_prefix="esd/first")
    second = graph.train([first, 0], clip, {}, concepts="Mondrian", filename_prefix="esd/second")
    saved = graph.picture([second, 0], clip, vae)
    both = graph.run()
    assert both.ending == "execution_success", both.error
    stacked = Graph(server)
    model, clip, vae = stacked.pocket()
    for name in ("first", "second"):
        node = stacked.add(
            "LoraLoaderModelOnly",
            model=model,
            lora_name=f"esd/{name}_00001_.safetensors",
            strength_model=1.0,
        )
        model = [node, 0]
    again = stacked.picture(model, clip, vae)
    run = stacked.run()
    one, two = pictures(server, both, saved)[0], pictures(server, run, again)[0]
    assert np.array_equal(one, two)


def test_an_upstream_lora_is_trained_as_it_stands(server, trained):
    """The base that is trained on is the patched one, and the MODEL comes out of it unharmed."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    lora = graph.add(
        "LoraLoaderModelOnly",
        model=model,
        lora_name="esd/end-to-end_00001_.safetensors",
        strength_model=1.0,
    )
    before = graph.picture([lora, 0], clip, vae)
    train = graph.train([lora, 0], clip, {}, concepts="Mondrian", filename_prefix="esd/over-lora")
    after = graph.picture([lora, 0], clip, vae, PROMPT + AGAIN)
    plain = graph.picture(model, clip, vae, PROMPT + AGAIN)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    assert {graph.samplers[after], graph.samplers[plain]} <= run.executed()
    assert np.array_equal(*(pictures(server, run, node)[0] for node in (before, after)))
    original = pictures(server, trained[0], trained[1]["before"])[0]
    assert np.array_equal(pictures(server, run, plain)[0], original)
    over = read_erasure(files(server, "loras/esd/over-lora*")[0])
    base = read_erasure(files(server, "loras/esd/end-to-end_00001*")[0])
    assert over.fingerprint != base.fingerprint
    assert "to_k" in " ".join(over.tensors) and run.text(train)


def test_cancel_keeps_the_state_and_resume_ends_with_the_same_bits(server):
    run = cancelled(server, "esd/cancelled", steps=12)
    assert run.ending == "execution_interrupted"
    assert any("the state of step" in text and "queue the same" in text for text in run.texts)
    # Asked to after the third step: the word may come when the next one is all but done.
    assert not any(text.startswith("step 6 of") for text in run.texts)
    assert not files(server, "loras/esd/cancelled*")
    (state,) = files(server, "esd_training/*")
    resumed = train_once(server, "esd/cancelled", steps=12)
    assert not state.exists()
    whole = train_once(server, "esd/whole", steps=12)
    assert resumed.keys() == whole.keys()
    assert all(resumed[key].equal(whole[key]) for key in whole)


def test_pictures_are_the_same_after_a_cancel(server, trained):
    run = cancelled(server, "esd/cancelled-again", steps=500)
    assert run.ending == "execution_interrupted"
    assert_as_before(server, trained, 2)


def assert_as_before(server, trained, again):
    """pocket, sampled anew, draws what it drew before any training; states are cleared away."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    saved = graph.picture(model, clip, vae, PROMPT + again * AGAIN)
    after = graph.run()
    assert graph.samplers[saved] in after.executed()
    original = pictures(server, trained[0], trained[1]["before"])[0]
    assert np.array_equal(pictures(server, after, saved)[0], original)
    for state in files(server, "esd_training/*"):
        state.unlink()


def train_once(server, prefix, steps):
    """The tensors of it; the file is removed, so that the same run is not found again."""
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    options = {"gradient_checkpointing": "on"}
    graph.train(model, clip, options, steps=steps, seed=21, filename_prefix=prefix)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    (file,) = files(server, f"loras/{prefix}_*")
    tensors = dict(read_erasure(file).tensors)
    file.unlink()
    return tensors


def cancelled(server, prefix, steps, when="step 3 of"):
    """A run that is cancelled after its third step, or when a text begins like that."""
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(
        model, clip, {"gradient_checkpointing": True}, steps=steps, seed=21, filename_prefix=prefix
    )

    def cancel(text: str) -> None:
        if text.startswith(when):
            server.interrupt()

    return graph.run(on_text=cancel)


def test_a_cancel_before_the_first_step_leaves_nothing(server):
    run = cancelled(server, "esd/early", steps=500, when="sampling trajectories")
    assert run.ending == "execution_interrupted"
    assert not any("step 2 of" in text for text in run.texts)
    assert not files(server, "loras/esd/early*")
    for state in files(server, "esd_training/*"):
        state.unlink()


def test_a_run_that_fails_leaves_the_model_as_it_was(server, trained):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    options = {"max_drift": 1e-4, "probe_every": 1}
    graph.train(model, clip, options, learning_rate=1e-2, filename_prefix="esd/failing")
    run = graph.run()
    assert "the first probe already lies beyond max_drift" in run.error
    assert_as_before(server, trained, 3)


def test_two_trainings_can_wait_for_each_other_in_the_queue(server):
    prompts = []
    for name, every in (("one", 2), ("two", 4)):
        graph = Graph(server)
        model, clip, _ = graph.pocket()
        # Runs of one course, probed now and then: what is left of one would show in the other.
        graph.train(
            model, clip, {"probe_every": every}, seed=5, filename_prefix=f"esd/queued-{name}"
        )
        prompts.append(graph.prompt)
    assert {run.ending for run in server.run_all(prompts)} == {"execution_success"}
    one, two = (read_erasure(files(server, f"loras/esd/queued-{n}*")[0]) for n in ("one", "two"))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(one.tensors[key].equal(two.tensors[key]) for key in one.tensors)


def test_stock_nodes_take_the_erased_model(server, trained):
    """LoraLoader and ModelMerge on it, and ModelSave with UNETLoader after it."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    train = graph.train(model, clip, {}, filename_prefix="esd/stock")
    lora = {"lora_name": "esd/end-to-end_00001_.safetensors", "strength_model": 1.0}
    over = graph.add("LoraLoaderModelOnly", model=[train, 0], **lora)
    under = graph.add("LoraLoaderModelOnly", model=model, **lora)
    merged = graph.add("ModelMergeSimple", model1=[train, 0], model2=[under, 0], ratio=1.0)
    graph.add("ModelSave", model=[over, 0], filename_prefix="diffusion_models/stock")
    drawn = {name: graph.picture([node, 0], clip, vae) for name, node in
             {"erased": train, "over": over, "merged": merged}.items()}  # fmt: skip
    run = graph.run()
    assert run.ending == "execution_success", run.error
    again = Graph(server)
    _, clip, vae = again.pocket()
    unet = again.add("UNETLoader", unet_name="stock_00001_.safetensors")
    drawn["saved"] = again.picture([unet, 0], clip, vae)
    last = again.run()
    assert last.ending == "execution_success", last.error
    show = {n: pictures(server, last if n == "saved" else run, i)[0] for n, i in drawn.items()}
    assert np.array_equal(show["merged"], show["erased"])
    assert np.array_equal(show["saved"], show["over"])
    assert not np.array_equal(show["over"], show["erased"])


def test_patched_model_sampling_is_trained_as_it_stands(server):
    """The same weights, taken for a v-model: another course, on the same base."""
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    patched = graph.add("ModelSamplingDiscrete", model=model, sampling="v_prediction")
    graph.train([patched, 0], clip, {}, seed=6, filename_prefix="esd/as-v")
    graph.train(model, clip, {}, seed=6, filename_prefix="esd/as-eps")
    run = graph.run()
    assert run.ending == "execution_success", run.error
    one, two = (read_erasure(files(server, f"loras/esd/as-{n}_*")[0]) for n in ("v", "eps"))
    assert one.fingerprint == two.fingerprint
    assert not any(one.tensors[key].equal(two.tensors[key]) for key in one.tensors)


@pytest.mark.parametrize("method", ["esd-x-strict", "esd-u", "selfattn"])
def test_other_methods_train_their_own_tensors(server, method):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, steps=1, method=method, filename_prefix=f"esd/{method}")
    run = graph.run()
    assert run.ending == "execution_success", run.error
    names = read_erasure(files(server, f"loras/esd/{method}_*")[0]).tensors
    has = {
        part: any(part in name for name in names) for part in (".attn1.", ".attn2.", "in_layers")
    }
    assert has == {
        ".attn1.": method in ("esd-u", "selfattn"),
        ".attn2.": method == "esd-x-strict",
        "in_layers": method == "esd-u",
    }


def test_an_adversary_takes_part_where_it_is_asked_for(server):
    """From the second step on, in which the concept is looked for."""
    found = []
    for robust in (False, True):
        graph = Graph(server)
        model, clip, _ = graph.pocket()
        prefix = f"esd/robust-{robust}"
        given = {"steps": 2, "method": "esd-all", "filename_prefix": prefix}
        graph.train(model, clip, {"robust": robust}, **given)
        run = graph.run()
        assert run.ending == "execution_success", run.error
        (file,) = files(server, f"loras/{prefix}*")
        found.append(read_erasure(file).tensors)
    assert any(not tensor.equal(found[1][name]) for name, tensor in found[0].items())


def test_a_low_rank_training_loads_with_the_stock_loader(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    train = graph.train(model, clip, {"rank": 4}, filename_prefix="esd/rank")
    saved = graph.picture([train, 0], clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    name = "esd/rank_00001_.safetensors"
    stock = drawn_with(server, "LoraLoaderModelOnly", lora_name=name, strength_model=1.0)[0]
    assert np.array_equal(stock, pictures(server, run, saved)[0])


def test_no_half_written_file_is_left(server):
    assert not [p for p in Path(server.base).rglob("*.partial")]
