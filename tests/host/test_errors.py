"""What goes wrong is told in a sentence that names the input and the way out."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_server import Refused
from graphs import Graph, files, small_erasure
from safetensors.torch import load_file, save_file
from test_families import model_of

from esd_core.models.loading import load_denoiser


def refusal(graph):
    with pytest.raises(Refused) as caught:
        graph.run()
    return str(caught.value)


def failure(graph):
    run = graph.run()
    assert run.ending == "execution_error"
    (error,) = run.of("execution_error")
    assert error["exception_type"].startswith("esd.")  # the page puts it before the sentence
    return run.error


@pytest.mark.parametrize(
    ("concepts", "told"),
    [
        ("", "name at least one to erase"),
        ("hat <- cowboy -> man", "one arrow at most"),
        ("Van Gogh\nvan gogh", "given twice"),
    ],
)
def test_concepts_are_refused_before_anything_runs_at_their_input_alone(server, concepts, told):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, concepts=concepts)
    answer = refusal(graph)
    assert answer.count("\n") == 0
    assert "concepts - " in answer and told in answer


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"preserve": "Van Gogh"}, "preserve names"),
        ({"width": 100}, "width must be at least 64 and at most 4096, in multiples of 8"),
        ({"height": 0}, "height must be at least 64"),
        ({"filename_prefix": "../../secret"}, "without .."),
        ({"filename_prefix": "/etc/passwd"}, "is not valid: write NAME or FOLDER/NAME"),
        ({"filename_prefix": ""}, "is not valid: write NAME or FOLDER/NAME"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": "fast"}, 'learning_rate must be auto or a number, not "fast"'),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2.5}, "steps must be a whole number"),
    ],
)
def test_what_a_widget_holds_is_refused_before_a_model_is_loaded(server, inputs, told):
    graph = Graph(server)
    # Nobody could train on what this would load.
    model = graph.add("UNETLoader", unet_name=damaged_unet(server))
    _, clip, _ = graph.pocket()
    node = graph.train([model, 0], clip, {}, **inputs)
    run = graph.run()
    assert run.ending == "execution_error" and told in run.error
    assert "`" not in run.error and "training." not in run.error
    assert model not in run.executed()
    assert any(told in text for text in run.texts), "the node says it too"
    assert run.of("execution_error")[0]["node_id"] == node


def damaged_unet(server):
    path = server.base / "models" / "diffusion_models" / "damaged.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"nothing")
    return path.name


def test_an_unknown_method_is_refused(server):
    """By the host, or by the node where the host does not look into lists (0.3.64)."""
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, method="esd-y")
    try:
        told = failure(graph)
    except Refused as refused:
        told = str(refused)
    assert "esd-x" in told


def test_options_are_checked_with_the_rest(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {"batch_size": 1})
    assert "batch_size must be at least 2" in failure(graph)


def test_a_clip_of_another_family_is_refused(server):
    """Random CLIP-L of SD 1.x: as wide as real ones, and 123 million numbers of one byte."""
    graph = Graph(server)
    model, _, _ = graph.pocket()
    clip = graph.add("CLIPLoader", clip_name=write_clip_l(server), type="stable_diffusion")
    graph.train(model, [clip, 0], {})
    assert "connect the CLIP of the same checkpoint" in failure(graph)


def test_a_clip_without_the_second_text_of_hidream_is_refused(server):
    """As wide as T5 is there, as that of FLUX is."""
    graph = Graph(server)
    model, _ = model_of(graph, "hidream")
    _, clip = model_of(graph, "sd3")
    graph.train(model, clip, {})
    assert "the CLIP gives no text states of Llama, which the MODEL takes" in failure(graph)


def test_a_model_on_several_gpus_is_refused(server):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    split = graph.add("TestSplit", model=model)
    graph.train([split, 0], clip, {})
    assert "is split over several GPUs" in failure(graph)


def write_clip_l(server):
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        shapes = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072,
            num_hidden_layers=12, num_attention_heads=12)).state_dict()  # fmt: skip
    prefix = "" if next(iter(shapes)).startswith("text_model.") else "text_model."
    zeros = {f"{prefix}{n}": torch.zeros(t.shape, dtype=torch.float16) for n, t in shapes.items()}
    zeros = {name: tensor for name, tensor in zeros.items() if "position_ids" not in name}
    path = server.base / "models" / "text_encoders" / "clip_l.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(zeros, path)
    return path.name


def changed_file(server, name, change, **metadata):
    """That file with other tensors or metadata, under another name."""
    from esd_core.storage.reading import read_header

    source = small_erasure(server)
    tensors = change(load_file(source))
    path = server.base / "models" / "loras" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {**read_header(source).metadata, **metadata})
    return path.name


def loading(server, name):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    node = graph.add("ESDLoadErased", model=model, file=name)
    graph.picture([node, 0], clip, vae)
    return graph


def test_a_file_for_another_architecture_is_refused(server):
    name = changed_file(server, "sd1", dict, **{"esd.base_architecture": "sd1"})
    assert "was made for SD 1.x, and this model is SDXL" in failure(loading(server, name))


def test_a_file_for_another_size_is_refused(server):
    def wider(tensors):
        return {key: torch.cat([value, value]) for key, value in tensors.items()}

    name = changed_file(server, "wider", wider)
    assert "was made for another model" in failure(loading(server, name))


def test_a_file_with_no_place_in_the_model_is_refused(server):
    name = changed_file(
        server, "flux", lambda tensors: {"diffusion_model.double_blocks.0.x.diff": torch.ones(2)},
        **{"esd.format": "none of ours"},
    )  # fmt: skip
    assert "changes double_blocks.0.x.weight, which this model" in failure(loading(server, name))


def test_a_damaged_file_is_refused(server):
    path = server.base / "models" / "loras" / "cut.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(small_erasure(server).read_bytes()[:-100])
    told = failure(loading(server, path.name))
    assert "cut short" in told
    assert told.startswith("models/loras/cut.safetensors ") and str(server.base) not in told


@pytest.mark.parametrize("name", ["../../secret.safetensors", "nothing-there.safetensors"])
def test_a_file_outside_of_the_folders_is_refused(server, name):
    assert name in refusal(loading(server, name))


@pytest.mark.parametrize(
    ("form", "told"), [("erasure", "needs the input erasure"), ("UNet", "needs the input model")]
)
def test_saving_needs_what_the_format_is_made_of(server, form, told):
    graph = Graph(server)
    graph.add("ESDSaveErased", format=form, filename_prefix="esd/nothing")
    assert told in failure(graph)


def test_comparing_needs_a_prompt(server):
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    graph.add("ESDCompare", original=model, erased=model, clip=clip, vae=vae, prompts=" \n ")
    assert "write at least one prompt" in refusal(graph)


def test_an_official_file_is_read(server):
    """Absolute weights under diffusers' names, as the official code writes them."""
    from esd_core.files.apply import merged
    from esd_core.files.diffusers import write_official
    from esd_core.files.native import read_erasure

    pocket = load_denoiser("pocket", "fp32", "cpu")
    source = small_erasure(server)
    erasure = read_erasure(source)
    changed = merged(pocket, [(erasure, 1.0)])
    path = server.base / "models" / "loras" / "esd-official.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_official(path, pocket.network.config, changed)
    found = {}
    for name in (path.name, source.relative_to(server.base / "output" / "loras").as_posix()):
        graph = Graph(server)
        model, _, _ = graph.pocket()
        node = graph.add("ESDLoadErased", model=model, file=name)
        graph.add("ESDSaveErased", format="UNet", filename_prefix="o/u", model=[node, 0])
        run = graph.run()
        assert run.ending == "execution_success", json.dumps(run.of("execution_error"))[:2000]
        found[name] = load_file(files(server, "diffusion_models/o/*")[-1])
    one, two = found.values()
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
