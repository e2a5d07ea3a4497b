"""Transformers in a real ComfyUI, in miniature and pocket-dit: trained, saved, loaded by stock
nodes."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from families import FAMILIES
from graphs import AGAIN, Graph, files
from safetensors.torch import load_file

from esd_core.files.metadata import Key
from esd_core.files.native import read_erasure
from esd_core.models.architectures import ARCHITECTURES
from esd_core.models.embedded import POCKET_DIT

STEPS = 20
RATES = {"flux2": 1e-4, "z-image": 3e-4}
"""Where a first step at the rate of the others undoes more than it teaches."""
UNUSED = Counter({"qwen-image": 4})
"""Trained tensors that the network throws away: the last block's queries and output for text."""
OPTIONS = {"trajectory_guidance": 2.0, "precision": "fp32", "probe_every": STEPS}
BARE = {**OPTIONS, "contexts": "", "trajectory_steps": 2}
"""Where it does not matter what is learnt: most of a short run is what probes record."""


def model_of(graph, family, dtype="float32"):
    """MODEL of a miniature's file by UNETLoader, or pocket-dit, and a CLIP that fits."""
    if family == POCKET_DIT:
        return graph.pocket(POCKET_DIT)[:2]
    path = graph._server.base / "models" / "diffusion_models" / f"{family}-{dtype}.safetensors"
    if not path.is_file():
        writing = Graph(graph._server)
        writing.add("TestMiniature", family=family, dtype=dtype)
        run = writing.run()
        assert run.ending == "execution_success", run.error
    loader = graph.add("UNETLoader", unet_name=path.name, weight_dtype="default")
    _, clip, _ = graph.pocket()
    return [loader, 0], [graph.add("TestWideClip", clip=clip, family=family), 0]


def latents_of(graph, model, clip, prompt="a house in the style of Van Gogh"):
    """Saves what KSampler makes; the node that does."""
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    positive = graph.add("CLIPTextEncode", text=prompt, clip=clip)
    negative = graph.add("CLIPTextEncode", text="", clip=clip)
    sampled = graph.add(
        "KSampler",
        model=model,
        seed=1,
        steps=4,
        cfg=2.0,
        sampler_name="euler",
        scheduler="simple",
        positive=[positive, 0],
        negative=[negative, 0],
        latent_image=[latent, 0],
    )
    return graph.add("SaveLatent", samples=[sampled, 0], filename_prefix="test")


def drawn(server, run, node):
    """The latents that a node has saved."""
    (saved,) = run.output(node)["latents"]
    return load_file(server.base / saved["type"] / saved["subfolder"] / saved["filename"])[
        "latent_tensor"
    ]


def drawn_with_both(server, family, name):
    """Latents behind ComfyUI's loader of LoRA files, and behind ours."""
    loaders = {
        "LoraLoaderModelOnly": {"lora_name": name, "strength_model": 1.0},
        "ESDLoadErased": {"file": name, "strength": 1.0},
    }
    found = []
    for loader, given in loaders.items():
        graph = Graph(server)
        model, clip = model_of(graph, family)
        saved = latents_of(graph, [graph.add(loader, model=model, **given), 0], clip)
        found.append(drawn(server, succeed(graph), saved))
    return found


def succeed(graph):
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return run


@pytest.fixture(scope="module", params=(*FAMILIES, POCKET_DIT))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def trained(server, family):
    """A run, and latents before it, of what it gives, and of the MODEL after it."""
    graph = Graph(server)
    model, clip = model_of(graph, family)
    before = latents_of(graph, model, clip)
    first = succeed(graph)
    train = graph.train(
        model,
        clip,
        OPTIONS,
        steps=STEPS,
        learning_rate=RATES.get(family, 1e-3),
        width=128,
        height=128,
        filename_prefix=f"esd/{family}",
    )
    erased = latents_of(graph, [train, 0], clip)
    after = latents_of(graph, model, clip, "a house in the style of Van Gogh" + AGAIN)
    run = succeed(graph)
    return {
        "run": run,
        "node": train,
        "before": drawn(server, first, before),
        "erased": drawn(server, run, erased),
        "after": drawn(server, run, after),
    }


def erasure_of(server, family):
    return read_erasure(files(server, f"loras/esd/{family}_*")[0])


def test_it_learns(server, family, trained):
    metadata = erasure_of(server, family).metadata
    losses = json.loads(metadata[Key.LOSSES])
    assert len(losses) == STEPS and min(losses) > 0
    (share,) = json.loads(metadata[Key.PROBES])["share"].values()
    assert share < 0.9
    assert ARCHITECTURES[metadata[Key.ARCHITECTURE]].hosts


def test_what_is_trained_changes_and_the_model_that_came_in_does_not(trained):
    assert torch.equal(trained["before"], trained["after"])
    assert not torch.equal(trained["before"], trained["erased"])
    assert torch.isfinite(trained["erased"]).all()


def test_the_stock_loader_gives_what_our_own_gives(server, family, trained):
    name = f"esd/{family}_00001_.safetensors"
    stock, own = drawn_with_both(server, family, name)
    assert torch.equal(stock, own)
    assert torch.equal(own, trained["erased"])


def test_the_whole_model_goes_through_unetloader(server, family, trained):
    graph = Graph(server)
    model, clip = model_of(graph, family)
    name = f"esd/{family}_00001_.safetensors"
    loaded = graph.add("ESDLoadErased", model=model, file=name, strength=1.0)
    prefix = f"esd/whole-{family}"
    graph.add("ESDSaveErased", format="UNet", filename_prefix=prefix, model=[loaded, 0])
    succeed(graph)
    (file,) = files(server, f"diffusion_models/{prefix}*")
    graph = Graph(server)
    _, clip = model_of(graph, family)
    name = file.relative_to(server.base / "output" / "diffusion_models").as_posix()
    whole = graph.add("UNETLoader", unet_name=name, weight_dtype="default")
    saved = latents_of(graph, [whole, 0], clip)
    assert torch.equal(drawn(server, succeed(graph), saved), trained["erased"])


def test_its_lora_loads_by_both_loaders(server, family, trained):
    graph = Graph(server)
    model, clip = model_of(graph, family)
    erasure = f"esd/{family}_00001_.safetensors"
    loaded = graph.add("ESDLoadErased", model=model, file=erasure, strength=1.0)
    prefix = f"esd/lora-{family}"
    graph.add("ESDSaveErased", format="LoRA", filename_prefix=prefix, erasure=[loaded, 1], rank=8)
    succeed(graph)
    name = f"{prefix}_00001_.safetensors"
    stock, own = drawn_with_both(server, family, name)
    assert torch.equal(stock, own)
    assert not torch.equal(own, trained["before"])


def test_a_low_rank_student_learns_too(server, family):
    graph = Graph(server)
    model, clip = model_of(graph, family)
    prefix = f"esd/rank-{family}"
    graph.train(
        model, clip, {**BARE, "rank": 4}, learning_rate=1e-2, steps=2, filename_prefix=prefix
    )
    succeed(graph)
    erasure = read_erasure(files(server, f"loras/{prefix}*")[0])
    assert any(name.endswith(".lora_up.weight") for name in erasure.tensors)
    changes = erasure.change().values()
    assert sum(value.abs().max() > 0 for value in changes) >= len(changes) - UNUSED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_weights_train(server, family):
    """As UNETLoader casts them, beside a computation in 32 bits."""
    graph = Graph(server)
    model, clip = model_of(graph, family, "float8_e4m3fn")
    prefix = f"esd/fp8-{family}"
    graph.train(model, clip, {**BARE, "precision": "auto"}, steps=2, filename_prefix=prefix)
    succeed(graph)
    erasure = read_erasure(files(server, f"loras/{prefix}*")[0])
    tensors = erasure.tensors.values()
    assert sum(value.abs().max() > 0 for value in tensors) >= len(tensors) - UNUSED[family]


def test_a_cancelled_run_goes_on_to_the_same_bits(server, family):
    """Sampled anew, and in the midst of a round: those have two steps here. An adversary takes
    part, for which slopes go through the network to the text."""

    def trained(**listening):
        graph = Graph(server)
        model, clip = model_of(graph, family)
        given = {"steps": 5, "seed": 5, "method": "esd-all"}
        given["filename_prefix"] = f"esd/resumed-{family}"
        graph.train(model, clip, {**BARE, "robust": True}, **given)
        return graph.run(**listening)

    def cancel(text):
        if "step 1 of 5" in text:
            server.interrupt()

    assert trained().ending == "execution_success"
    (whole,) = files(server, f"loras/esd/resumed-{family}*")
    expected = whole.read_bytes()
    whole.unlink()
    assert trained(on_text=cancel).ending == "execution_interrupted"
    assert trained().ending == "execution_success"
    (again,) = files(server, f"loras/esd/resumed-{family}*")
    assert again.read_bytes() == expected
