"""Which MODELs can be trained, what of them is, and what is said of the others."""

from __future__ import annotations

import pytest
import torch
from comfy_server import answer_in_host
from graphs import Graph
from safetensors.torch import save_file
from unets import CONFIGS, SD1_COUNTS, SDXL_COUNTS, shapes_of

from esd_core.config.presets import load_preset
from esd_core.config.settings import METHODS
from esd_core.models.architectures import ARCHITECTURES
from esd_core.models.keys import diffusers_to_canonical
from esd_core.models.loading import load_denoiser
from esd_core.training.selection import select

FULL_SIZE = ("sdxl", "sd1", "sd2", "refiner")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """What the nodes make of full-size UNets in ComfyUI's own modules."""
    asked = {name: shapes_of(CONFIGS[name]) for name in FULL_SIZE}
    return answer_in_host("trees.py", tmp_path_factory.mktemp("trees"), asked)


@pytest.mark.parametrize("name", [name for name in FULL_SIZE if name != "refiner"])
def test_a_full_size_unet_has_the_canonical_names(trees, name):
    tree = trees[name]
    assert tree["architecture"] == name
    assert set(tree["parameters"]) == set(diffusers_to_canonical(CONFIGS[name]).values())


@pytest.mark.parametrize(
    ("name", "method", "count", "millions"),
    [("sdxl", method, *counts) for method, counts in SDXL_COUNTS.items()]
    + [("sd1", method, *counts) for method, counts in SD1_COUNTS.items()],
)
def test_of_it_as_much_is_trained_as_by_the_official_code(trees, name, method, count, millions):
    tree = trees[name]
    selected = tree["selected"][method]
    assert len(selected) == count
    numbers = sum(tree["parameters"][key] for key in selected)
    assert numbers / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("name", ["sdxl", "sd1", "sd2"])
def test_both_backends_select_the_same(trees, name):
    names = diffusers_to_canonical(CONFIGS[name]).values()
    for method in METHODS:
        assert trees[name]["selected"][method] == list(select(method, names, ARCHITECTURES[name]))


@pytest.mark.parametrize("name", ["sdxl", "sd1", "sd2"])
@pytest.mark.parametrize("method", METHODS)
def test_auto_stands_for_the_preset_of_model_and_method(trees, name, method):
    auto = trees[name]["auto"][method]
    edge = {"sdxl": 1024, "sd1": 512, "sd2": 512}[name]
    assert (auto["width"], auto["height"]) == (edge, edge)
    preset = load_preset(ARCHITECTURES[name].preset_for(method))
    assert auto["training.learning_rate"] == preset["training"]["learning_rate"]
    assert auto["method"] == method


def test_auto_trains_all_but_cross_attention_more_gently_on_sdxl(trees):
    rates = {m: auto["training.learning_rate"] for m, auto in trees["sdxl"]["auto"].items()}
    assert rates["esd-u"] < rates["esd-x"]


def test_the_refiner_is_refused(trees):
    told = trees["refiner"]["refused"]
    assert "the MODEL is SDXLRefiner: connect SDXL, SD 2.x, SD 1.x" in told


@pytest.mark.parametrize(
    ("run", "millions", "each"),
    [
        ("sdxl esd-x", SDXL_COUNTS["esd-x"][1], 16),
        ("sdxl adafactor", SDXL_COUNTS["esd-x"][1], 8),
    ],
)
def test_the_memory_of_full_size_models_is_planned(trees, run, millions, each):
    """Master, gradient and optimizer state of each number: none of it on four gigabytes."""
    told = trees["memory"][run]
    # Adafactor keeps rows and columns beside.
    assert told["trained"] == pytest.approx(millions * 1e6 * each, rel=5e-3)
    assert not told["fits"]


def test_what_fits_the_memory_is_not_refused(trees):
    """0.3 GB."""
    assert trees["memory"]["sd1 esd-x-strict"]["fits"]


def test_memory_that_is_used_up_all_the_same_is_told(trees):
    told = trees["memory"]["used up"]
    assert told.startswith("out of memory (") and told.endswith("or a smaller size")


# -- small ones, in the server -----------------------------------------------------------------


def pocket_weights():
    parameters = load_denoiser("pocket", "fp32", "cpu").parameters()
    return {name: tensor.detach().clone() for name, tensor in parameters.items()}


def written(server, name, tensors, folder="diffusion_models"):
    """A file for a stock loader, UNETLoader for one; its name."""
    path = server.base / "models" / folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path.name


def refused(graph, model, clip):
    """The one sentence that training such a MODEL ends with."""
    graph.train(model, clip, {})
    run = graph.run()
    assert run.ending == "execution_error"
    assert "\n" not in run.error
    return run.error


def stock(graph, server, name, tensors):
    return [graph.add("UNETLoader", unet_name=written(server, name, tensors)), 0]


HUNYUAN_VIDEO = {
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": (128,),
    "txt_in.input_embedder.weight": (128, 64),
    "img_in.proj.weight": (128, 16, 1, 2, 2),
    "final_layer.linear.weight": (64, 128),
    "vector_in.in_layer.weight": (128, 768),
}
"""Enough of a Hunyuan Video for ComfyUI to know it, without any block."""


def test_another_transformer_is_refused_by_name(server):
    graph = Graph(server)
    _, clip, _ = graph.pocket()
    tensors = {n: torch.zeros(shape) for n, shape in HUNYUAN_VIDEO.items()}
    told = refused(graph, stock(graph, server, "hunyuan", tensors), clip)
    assert "the MODEL is HunyuanVideo: connect SDXL, SD 2.x, SD 1.x, Stable Diffusion 3" in told
    assert all(known.title in told for known in ARCHITECTURES.values() if known.layers)


def test_an_inpainting_unet_is_refused(server):
    weights = pocket_weights()
    first = weights["input_blocks.0.0.weight"]
    weights["input_blocks.0.0.weight"] = torch.cat([first, first, first[:, :1]], dim=1)
    graph = Graph(server)
    _, clip, _ = graph.pocket()
    told = refused(graph, stock(graph, server, "inpainting", weights), clip)
    assert "takes 5 channels beside those of its latents, as inpainting models do" in told


def test_a_flow_is_refused(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    flow = graph.add("ModelSamplingSD3", model=model)
    assert "the MODEL is sampled as a flow" in refused(graph, [flow, 0], clip)


def test_a_checkpoint_without_text_encoders_is_refused(server):
    weights = {f"model.diffusion_model.{n}": t for n, t in pocket_weights().items()}
    name = written(server, "unet-alone", weights, "checkpoints")
    graph = Graph(server)
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=name)
    told = refused(graph, [checkpoint, 0], [checkpoint, 1])
    assert "the input clip is empty" in told and "load them with CLIPLoader" in told


QUANTISED = "and such weights cannot train: load the model's fp16 or bf16 file"


def test_fp8_weights_with_scales_are_refused(server):
    """The form of ComfyUI's scaled fp8 files, of which newer versions make tensors of their own."""
    state = {}
    for name, tensor in pocket_weights().items():
        is_linear = tensor.ndim == 2 and name.endswith(".weight") and "transformer" in name
        if is_linear:
            scale = tensor.abs().max() / 448
            state[name] = (tensor / scale).to(torch.float8_e4m3fn)
            state[name.replace(".weight", ".scale_weight")] = scale
        else:
            state[name] = tensor
    state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    graph = Graph(server)
    _, clip, _ = graph.pocket()
    assert QUANTISED in refused(graph, stock(graph, server, "scaled-fp8", state), clip)


def test_weights_in_a_form_of_their_own_are_refused(server):
    """As loaders of GGUF files hold them."""
    graph = Graph(server)
    _, clip, _ = graph.pocket()
    model = graph.add("TestPackedLoader", name=written(server, "packed", pocket_weights()))
    assert QUANTISED in refused(graph, [model, 0], clip)
