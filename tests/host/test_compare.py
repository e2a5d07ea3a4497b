"""ESDCompare in a real ComfyUI."""

from __future__ import annotations

import json

import numpy as np
import pytest
from graphs import PROMPT, Graph, pictures

SAMPLING = {
    "negative": "",
    "seed": 1,
    "steps": 6,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "width": 128,
    "height": 128,
}


@pytest.fixture(scope="module")
def compared(server):
    """Two prompts, pocket against itself with some LoRA of ours, and KSampler's pictures."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    train = graph.train(model, clip, {}, filename_prefix="esd/compared")
    node = graph.add(
        "ESDCompare",
        original=model,
        erased=[train, 0],
        clip=clip,
        vae=vae,
        prompts=f"{PROMPT}\n\n a fish, and words enough that they have to be wrapped to fit \n",
        **SAMPLING,
    )
    nodes = {"compare": node, "report": graph.add("PreviewAny", source=[node, 3])}
    for index, name in ((1, "originals"), (2, "erased")):
        nodes[name] = graph.add("SaveImage", images=[node, index], filename_prefix="test")
    nodes["stock original"] = graph.picture(model, clip, vae)
    nodes["stock erased"] = graph.picture([train, 0], clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return run, nodes


@pytest.mark.parametrize("side", ["original", "erased"])
def test_its_pictures_are_those_of_ksampler(server, compared, side):
    run, nodes = compared
    own = pictures(server, run, nodes["originals" if side == "original" else "erased"])
    stock = pictures(server, run, nodes[f"stock {side}"])
    assert len(own) == 2
    assert np.array_equal(own[0], stock[0])


def test_its_grid_holds_the_pictures(server, compared):
    run, nodes = compared
    (grid,) = pictures(server, run, nodes["compare"])
    for name in ("originals", "erased"):
        for picture in pictures(server, run, nodes[name]):
            assert holds(grid, picture)


def holds(grid, picture):
    """Whether the picture stands somewhere in the grid. The grid rounds to bytes, the server cuts
    off: they may be one apart."""
    edge = picture.shape[0]
    signed = picture.astype(int)
    corner = np.abs(grid[: 1 - edge, : 1 - edge] - signed[0, 0]) <= 1
    return any(
        np.abs(grid[top : top + edge, left : left + edge] - signed).max() <= 1
        for top, left in zip(*np.nonzero(corner.all(-1)), strict=True)
    )


def test_it_gives_the_slider_both_sides(server, compared):
    """As web/compare.js reads them; pictures of temp/ are those of the outputs."""
    run, nodes = compared
    for key, name in (("a_images", "originals"), ("b_images", "erased")):
        shown = pictures(server, run, nodes["compare"], key)
        assert np.array_equal(shown, pictures(server, run, nodes[name]))


def test_it_reports_every_prompt_and_the_mean(server, compared):
    run, nodes = compared
    lines = run.text(nodes["report"]).splitlines()
    assert "seed 1" in lines[0]
    assert lines[1].endswith(PROMPT) and "a fish" in lines[2] and lines[3].endswith("mean of all")
    first = [float(v) for v in lines[1].split()[1:4:2]]
    originals, erased = (pictures(server, run, nodes[n])[0] for n in ("originals", "erased"))
    difference = (originals.astype(float) - erased) / 255
    # The pictures were rounded to bytes after they were measured.
    assert first[0] == pytest.approx(np.sqrt((difference**2).mean()), abs=2e-3)


def test_a_model_equals_itself(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    node = graph.add(
        "ESDCompare", original=model, erased=model, clip=clip, vae=vae, prompts="a car", **SAMPLING
    )
    report = graph.add("PreviewAny", source=[node, 3])
    run = graph.run()
    assert run.ending == "execution_success", run.error
    assert "rmse 0.000  ssim 1.000  a car" in run.text(report)


def test_its_cfg_is_the_models_own_unless_it_is_given(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    models = {"original": model, "erased": model, "clip": clip, "vae": vae}
    saved = []
    for cfg in ("auto", " Auto ", "3"):
        node = graph.add("ESDCompare", **models, prompts="a car", **{**SAMPLING, "cfg": cfg})
        saved.append(graph.add("SaveImage", images=[node, 1], filename_prefix="test"))
    run = graph.run()
    assert run.ending == "execution_success", run.error
    first, *others = (pictures(server, run, node)[0] for node in saved)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("cfg", ["seven", "-1", "nan"])
def test_a_cfg_that_is_no_number_is_told(server, cfg):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    models = {"original": model, "erased": model, "clip": clip, "vae": vae}
    graph.add("ESDCompare", **models, prompts="a car", **{**SAMPLING, "cfg": cfg})
    assert graph.run().error.startswith("cfg must be auto or a number")


def test_a_clip_vision_adds_how_alike_the_pictures_are(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    strong = {"method": "esd-all", "learning_rate": 3e-2}
    train = graph.train(model, clip, {}, filename_prefix="esd/vision", **strong)
    vision = [graph.add("TestClipVision"), 0]
    models = {"original": model, "erased": [train, 0], "clip": clip, "vae": vae}
    prompts = f"{PROMPT}\na fish"
    node = graph.add("ESDCompare", **models, prompts=prompts, clip_vision=vision, **SAMPLING)
    report = graph.add("PreviewAny", source=[node, 3])
    cosines = graph.add("TestCosines", vision=vision, one=[node, 1], two=[node, 2])
    expected = graph.add("PreviewAny", source=[cosines, 0])
    run = graph.run()
    assert run.ending == "execution_success", run.error
    rows = [line.split() for line in run.text(report).splitlines()[1:]]
    told = [float(row[row.index("cosine") + 1]) for row in rows]
    first, second = json.loads(run.text(expected))
    assert max(first, second) < 0.998
    assert told == pytest.approx([first, second, (first + second) / 2], abs=6e-4)
