"""ESDSaveErased in a real ComfyUI: what it writes gives the same pictures, in both hosts."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import answer_in_host
from diffusers import UNet2DConditionModel
from graphs import Graph, drawn_with, files, pictures
from safetensors.torch import load_file
from unets import CONFIGS, shapes_of

from esd_core.cli.main import main
from esd_core.files.apply import merged
from esd_core.files.native import read_erasure, write_erasure
from esd_core.models.keys import diffusers_to_canonical
from esd_core.models.loading import load_denoiser


@pytest.fixture(scope="module")
def saved(server):
    """An erased pocket in all formats; the run and its nodes."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    train = graph.train(model, clip, {}, filename_prefix="esd/saved")
    nodes = {
        name: graph.add("ESDSaveErased", format=name, **{"filename_prefix": "out/pocket", **given})
        for name, given in {
            "erasure": {"erasure": [train, 1]},
            "LoRA": {"erasure": [train, 1], "rank": 4096, "filename_prefix": "out/lora"},
            "UNet": {"model": [train, 0], "erasure": [train, 1]},
            "diffusers": {"model": [train, 0]},
            "official": {
                "erasure": [train, 1],
                "model": model,
                "filename_prefix": "out/official",
            },
        }.items()
    }
    graph.add("ESDSaveErased", format="UNet", filename_prefix="base/pocket", model=model)
    nodes["picture"] = graph.picture([train, 0], clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return run, nodes


def erased_weights(server):
    """What pocket's weights are with the erasure on them, by the headless backend."""
    pocket = load_denoiser("pocket", "fp32", "cpu")
    erasure = read_erasure(files(server, "loras/esd/saved*")[0])
    return pocket, {**pocket.parameters(), **merged(pocket, [(erasure, 1.0)])}


def test_the_erasure_is_the_one_that_was_trained(server, saved):
    assert "output/loras/out/pocket_00001_.safetensors" in saved[0].text(saved[1]["erasure"])
    one, two = (load_file(files(server, f"loras/{n}*")[0]) for n in ("esd/saved", "out/pocket"))
    assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)


WRITTEN = {
    "erasure": "loras/out/pocket",
    "lora": "loras/out/lora",
    "unet": "diffusion_models/out/pocket",
    "diffusers": "diffusers/out/pocket",
    "official": "loras/out/official",
}


@pytest.mark.parametrize("form", WRITTEN)
def test_the_command_writes_the_same_bytes(server, saved, tmp_path, form):
    """From the trained erasure, and the MODEL that it was trained on as the node writes it."""
    (erasure,), (base,) = (files(server, n) for n in ("loras/esd/saved*", "*/base/pocket*"))
    out, rank = tmp_path / form, ["--rank", "4096", "--dtype", "fp16"]
    words = rank if form == "lora" else ["--dtype", "fp32"]
    words = ["export", str(erasure), "--model", str(base), "--to", form, "--out", str(out), *words]
    assert main(words) == 0
    (theirs,) = files(server, f"{WRITTEN[form]}_00001*")
    if form != "diffusers":
        assert out.read_bytes() == theirs.read_bytes()
        return
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in theirs.iterdir()
    }


def test_a_lora_of_full_rank_is_the_erasure_but_for_biases(server, saved):
    run, nodes = saved
    assert "keeps" in run.text(nodes["LoRA"]) and run.text(nodes["LoRA"]) in run.texts
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    (name,) = [path.name for path in files(server, "loras/out/lora*")]
    lora = graph.add(
        "LoraLoaderModelOnly", model=model, lora_name=f"out/{name}", strength_model=1.0
    )
    loaded, plain = graph.picture([lora, 0], clip, vae), graph.picture(model, clip, vae)
    again = graph.run()
    assert again.ending == "execution_success", again.error
    erased, with_lora, before = (
        pictures(server, of, node)[0].astype(float)
        for of, node in ((run, nodes["picture"]), (again, loaded), (again, plain))
    )
    assert np.abs(with_lora - erased).mean() < 0.2 * np.abs(before - erased).mean()


def test_the_unet_loads_with_the_stock_loader_and_draws_the_same(server, saved):
    run, nodes = saved
    graph = Graph(server)
    _, clip, vae = graph.pocket()
    unet = graph.add(
        "UNETLoader", unet_name="out/pocket_00001_.safetensors", weight_dtype="default"
    )
    picture = graph.picture([unet, 0], clip, vae)
    again = graph.run()
    assert again.ending == "execution_success", again.error
    one, two = pictures(server, run, nodes["picture"])[0], pictures(server, again, picture)[0]
    assert np.array_equal(one, two)


def test_the_diffusers_folder_loads_and_predicts_the_same(server, saved):
    (folder,) = files(server, "diffusers/out/pocket*")
    unet = UNet2DConditionModel.from_pretrained(folder)
    pocket, weights = erased_weights(server)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = pocket.encode(["a house in the style of Van Gogh", ""], 128, 128)
    sigma = torch.tensor([10.0, 1.0])
    with torch.no_grad():
        with pocket.swapped(weights):
            expected = pocket.predict(x, sigma, rows)
        pocket.network = unet
        came = pocket.predict(x, sigma, rows)
    assert torch.allclose(came, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, -0.4])
@pytest.mark.parametrize("name", ["pocket", "lora"])
def test_the_stock_loader_draws_the_same_as_ours(server, saved, name, strength):
    file = f"out/{name}_00001_.safetensors"
    stock, _, _ = drawn_with(server, "LoraLoaderModelOnly", lora_name=file, strength_model=strength)
    ours, _, _ = drawn_with(server, "ESDLoadErased", file=file, strength=strength)
    assert np.array_equal(stock, ours)


@pytest.mark.parametrize("name", ["official_00001_", "unet"])
def test_absolute_weights_load_as_the_erasure_they_hold(server, saved, name):
    """The official code's file, and a whole UNet in a folder for LoRAs, give the same picture."""
    if name == "unet":
        target = server.base / "output" / "loras" / "out" / "unet.safetensors"
        shutil.copyfile(files(server, "diffusion_models/out/pocket_00001*")[0], target)
    run, nodes = saved
    expected = pictures(server, run, nodes["picture"])[0].astype(int)
    picture, _, _ = drawn_with(
        server, "ESDLoadErased", file=f"out/{name}.safetensors", strength=1.0
    )
    assert abs(picture.astype(int) - expected).max() <= 1


def test_stacked_erasures_are_told_of(server, saved):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    (path,) = files(server, "loras/out/pocket_00001_*")
    other = path.with_name("other.safetensors")  # for another concept, and for some layers alone
    erasure = read_erasure(path)
    few = dict([*erasure.tensors.items()][:5])
    metadata = {**erasure.metadata, "esd.concepts": '["Hokusai"]'}
    write_erasure(other, replace(erasure, tensors=few, metadata=metadata))
    chain = []
    for name, strength in ((path.name, 0.5), (other.name, 1.0), (path.name, 0.25)):
        model = [graph.add("ESDLoadErased", model=model, file=f"out/{name}", strength=strength), 0]
        chain.append(model[0])
    graph.picture(model, clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    first, second, third = (run.text(node) for node in chain)
    count, below = len(erasure.change()), f"{path.name} at 0.5"
    assert first == f"applied {below}"
    assert second.startswith(f"applied {other.name} at 1, on top of {below};")
    assert "5 of its 5 tensors" in second and "already" not in second
    assert third.startswith(f"applied {path.name} at 0.25, on top of {below}, {other.name} at 1;")
    assert f"{count} of its {count} tensors" in third
    assert f"Van Gogh is erased by {below} already: choose strengths" in third
    assert third in run.texts  # what the page shows


def test_the_list_tells_files_of_the_official_format_apart(server, saved):
    spec = server.get("/object_info/ESDLoadErased")["ESDLoadErased"]["input"]["required"]["file"]
    listed = spec[1]["options"] if spec[0] == "COMBO" else spec[0]
    assert "out/official_00001_.safetensors (official format)" in listed
    assert {"out/pocket_00001_.safetensors", "out/lora_00001_.safetensors"} <= set(listed)


def test_a_loaded_file_is_converted_in_the_graph(server, saved):
    """The official code's, of weights that have patches worked into them by then."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    file = "out/official_00001_.safetensors (official format)"
    loaded = graph.add("ESDLoadErased", model=model, file=file, strength=0.5)
    drawn = graph.picture([loaded, 0], clip, vae)
    prefix = "out/from-official"
    node = graph.add("ESDSaveErased", format="erasure", filename_prefix=prefix, erasure=[loaded, 1])
    run = graph.run()
    assert run.ending == "execution_success", run.error
    assert drawn in run.executed() and "output/loras/out/from-official" in run.text(node)
    (path,) = files(server, f"loras/{prefix}_*")
    found, expected = (read_erasure(p).change() for p in (path, *files(server, "loras/esd/saved*")))
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        torch.testing.assert_close(found[name].float(), change.float(), rtol=2e-2, atol=2e-5)


def test_the_loss_on_eight_bit_weights_is_measured_and_told(server, saved):
    graph = Graph(server)
    _, clip, vae = graph.pocket()
    unet = graph.add(
        "UNETLoader", unet_name="out/pocket_00001_.safetensors", weight_dtype="fp8_e4m3fn"
    )
    node = graph.add(
        "ESDLoadErased", model=[unet, 0], file="out/pocket_00001_.safetensors", strength=1.0
    )
    graph.picture([node, 0], clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    part = re.search(r"moves them by (\d+)% of the change", run.text(node))
    assert part and int(part[1]) > 10


FULL_SIZE = ("sd1", "sd2", "sdxl", "ssd-1b", "vega", "refiner")


@pytest.fixture(scope="module")
def host_names(tmp_path_factory):
    """ComfyUI's own map, by model."""
    asked = {name: shapes_of(CONFIGS[name]) for name in FULL_SIZE}
    return answer_in_host("names.py", tmp_path_factory.mktemp("names"), asked)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_name_is_what_comfyui_translates_it_to(host_names, name):
    ours, theirs = diffusers_to_canonical(CONFIGS[name]), host_names[name]
    assert ours == {key: theirs.get(key) for key in ours}


def test_numbers_go_up_and_nothing_is_overwritten(server, saved):
    graph = Graph(server)
    model, _, _ = graph.pocket()
    graph.add("ESDSaveErased", format="UNet", filename_prefix="out/pocket", model=model)
    before = Path(files(server, "diffusion_models/out/*")[0]).stat().st_mtime_ns
    run = graph.run()
    assert run.ending == "execution_success", run.error
    first, second = files(server, "diffusion_models/out/*")
    assert second.name == "pocket_00002_.safetensors"
    assert first.stat().st_mtime_ns == before


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8_e4m3fn"])
def test_weights_of_every_width_can_be_trained(server, saved, dtype):
    """pocket's UNet in other number formats, as UNETLoader holds them."""
    graph = Graph(server)
    _, clip, vae = graph.pocket()
    if dtype.startswith("fp8"):
        name, held = "out/pocket_00001_.safetensors", dtype
    else:
        name, held = cast(server, dtype), "default"
    unet = graph.add("UNETLoader", unet_name=name, weight_dtype=held)
    before = graph.picture([unet, 0], clip, vae)
    train = graph.train([unet, 0], clip, {}, steps=8, filename_prefix=f"esd/{dtype}")
    erased = graph.picture([train, 0], clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    one, two = (pictures(server, run, node)[0] for node in (before, erased))
    assert not np.array_equal(one, two)
    change = read_erasure(files(server, f"loras/esd/{dtype}_*")[0]).change()
    assert all(tensor.abs().max() > 0 for tensor in change.values())


def cast(server, dtype):
    """Writes pocket's UNet in that format, by the headless export; its name for UNETLoader."""
    from esd_core.files.apply import summed
    from esd_core.files.unet import write_unet
    from esd_core.storage.dtypes import PRECISIONS

    pocket = load_denoiser("pocket", "fp32", "cpu")
    path = server.base / "models" / "diffusion_models" / f"pocket-{dtype}.safetensors"
    write_unet(path, summed(pocket.parameters(), {}, PRECISIONS[dtype]))
    return path.name
