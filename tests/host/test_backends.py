"""The two backends are one: the embedded models in ComfyUI and in diffusers, held to the same
numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from comfy_server import in_host
from graphs import SMALL_OPTIONS, SMALL_TRAINING, Graph, files
from safetensors import safe_open
from safetensors.torch import save_file

from esd_core.config.mappings import override
from esd_core.config.presets import load_preset
from esd_core.config.settings import ErasureConfig
from esd_core.files.apply import applied
from esd_core.files.native import read_erasure
from esd_core.method.sampling import sample
from esd_core.models.embedded import EMBEDDED, POCKET, POCKET_DIT
from esd_core.models.loading import load_denoiser
from esd_core.training.run import erase

PROMPTS = ["a house in the style of Van Gogh", "", "a fish", "Van Gogh"]
TRAINED = {
    POCKET: "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight",
    POCKET_DIT: "joint_blocks.1.context_block.attn.qkv.weight",
}
TOLERANCE = 1e-4
"""Relative, in fp32."""

only_pocket = pytest.mark.parametrize("name", [POCKET], scope="module")
"""diffusers' flows have steps of their own, the last of which ComfyUI leaves out."""


@pytest.fixture(scope="module", params=EMBEDDED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pocket(name):
    return load_denoiser(name, "fp32", "cpu")


@pytest.fixture(scope="module")
def request_of(pocket):
    generator = torch.Generator().manual_seed(0)
    sigma = pocket.schedule(20, 64, 64).sigmas[[0, 6, 12, 18]]
    noise = torch.randn(4, 4, 16, 16, generator=generator)
    return {
        "x": noise * (sigma**2 + 1).sqrt().view(-1, 1, 1, 1),
        "sigma": sigma,
        "noise": torch.randn(1, 4, 16, 16, generator=generator),
    }


@pytest.fixture(scope="module")
def host(name, request_of, tmp_path_factory):
    """What ComfyUI's backend says to the same request: tensors by name, and metadata."""
    folder = tmp_path_factory.mktemp("inside")
    asked, answer = folder / "asked.safetensors", folder / "answer.safetensors"
    given = {"model": name, "prompts": json.dumps(PROMPTS), "gradient_of": TRAINED[name]}
    save_file(request_of, asked, given)
    in_host("inside.py", asked, answer)
    with safe_open(answer, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def relative(one, two):
    return float((one - two).norm() / two.norm())


def test_the_parameters_are_the_same_bits_under_the_same_names(host, pocket):
    prefix = "parameters."
    there = {n.removeprefix(prefix): t for n, t in host[0].items() if n.startswith(prefix)}
    assert there.keys() == pocket.parameters().keys()
    assert all(value.equal(pocket.parameters()[name]) for name, value in there.items())


def test_text_is_the_same(host, pocket):
    rows = pocket.encode(PROMPTS, 128, 128)
    assert relative(host[0]["context"], rows.context) < TOLERANCE
    pooled = host[0]["pooled"][:, : rows.pooled.shape[1]]  # which SDXL's sizes follow
    assert relative(pooled, rows.pooled) < TOLERANCE


@only_pocket
def test_noise_levels_are_the_same(host, pocket):
    assert relative(host[0]["sigmas"], pocket.schedule(20, 64, 64).sigmas) < TOLERANCE


def test_the_prediction_is_the_same(host, pocket, request_of):
    rows = pocket.encode(PROMPTS, 128, 128)
    with torch.no_grad():
        own = pocket.predict(request_of["x"], request_of["sigma"], rows)
    for there, here in zip(host[0]["prediction"], own, strict=True):
        assert relative(there, here) < TOLERANCE


def test_the_guided_trajectory_is_the_same(host, pocket, request_of):
    rows = pocket.encode(PROMPTS, 128, 128)
    pair = [rows.select([0]), rows.select([1])]
    schedule = replace(pocket.schedule(20, 64, 64), sigmas=host[0]["sigmas"])
    own = sample(pocket, request_of["noise"], pair, schedule, 3.0)
    assert relative(host[0]["trajectory"], own) < TOLERANCE


@pytest.mark.parametrize("found", ["gradient", "gradient_checkpointed"])
def test_the_gradient_is_the_same(host, pocket, name, request_of, found):
    trained = TRAINED[name]
    master = pocket.parameters()[trained].detach().clone().requires_grad_()
    rows = pocket.encode(PROMPTS, 128, 128)
    with pocket.swapped({trained: master}):
        pocket.predict(request_of["x"], request_of["sigma"], rows).sum().backward()
    assert relative(host[0][found], master.grad) < TOLERANCE


def test_the_hosts_weights_are_its_own_again(host):
    assert host[1]["untouched"] == "True"


class Quiet:
    """Events and commands of a run that nobody watches."""

    def on_step(self, progress):
        pass

    def on_preview(self, step, student):
        pass

    def on_save(self, step, path):
        pass

    def on_probe(self, step, report):
        pass

    def should_stop(self):
        return False

    def should_finish(self):
        return False


CALM = {"learning_rate": 1e-4, "width": 128, "height": 128}
"""At larger steps Adam turns the last bits of a small gradient into another course: one backend
then differs from itself by as much when it runs on another number of threads."""


@only_pocket
def test_the_same_training_gives_the_same_erasure(server, pocket, request_of):
    graph = Graph(server)
    model, clip, _ = graph.pocket()
    graph.train(model, clip, {}, **CALM, filename_prefix="esd/backends")
    run = graph.run()
    assert run.ending == "execution_success", run.error
    there = read_erasure(files(server, "loras/esd/backends*")[0])
    given = settings({**SMALL_TRAINING, **CALM}, SMALL_OPTIONS)
    config = ErasureConfig.from_mapping(override(load_preset("pocket"), given))
    here = erase(pocket, config, Quiet(), Quiet()).erasure
    assert there.metadata["esd.config_digest"] == here.metadata["esd.config_digest"]
    assert there.metadata["esd.base_fingerprint"] == here.metadata["esd.base_fingerprint"]
    assert there.tensors.keys() == here.tensors.keys()
    one, two = (torch.cat([e.tensors[n].flatten() for n in here.tensors]) for e in (there, here))
    assert relative(one, two) < 1e-2
    moved = [predicted(pocket, request_of, erasure) for erasure in (there, here)]
    assert relative(*moved) < TOLERANCE


def predicted(pocket, request_of, erasure):
    rows = pocket.encode(PROMPTS, 128, 128)
    with torch.no_grad(), applied(pocket, [(erasure, 1.0)]):
        return pocket.predict(request_of["x"], request_of["sigma"], rows)


def settings(training, options):
    """What the nodes were given, as the core has it."""
    of_training = {"steps", "learning_rate"}
    names = {name: f"training.{name}" if name in of_training else name for name in training}
    mapping = {names[name]: value for name, value in training.items()}
    mapping["concepts"] = [mapping["concepts"]]
    for name, value in options.items():
        is_trajectory = name.startswith("trajectory_")
        key = name.replace("trajectory_", "trajectory.") if is_trajectory else f"training.{name}"
        mapping[key] = value
    return mapping
