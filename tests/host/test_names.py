"""Canonical names are ComfyUI's: the same weights, in its networks and in diffusers'."""

import pytest
import torch
from comfy_server import in_host
from families import FAMILIES
from pipelines import flux_pipeline, sd3_pipeline
from safetensors.torch import load_file, save_file

from esd_core.files.apply import applied
from esd_core.files.base import Base
from esd_core.files.erasure import Erasure, key_of
from esd_core.files.export import export
from esd_core.files.formats import ERASURE, LORA, UNET
from esd_core.files.open import open_source
from esd_core.models.denoiser import Conditioning
from esd_core.models.loading import denoiser_of
from esd_core.training.selection import select

PIPELINES = {
    "sd3": sd3_pipeline,
    "sd3-plain": lambda: sd3_pipeline(dual_attention_layers=(), qk_norm=None),
}
if "flux" in FAMILIES:  # older hosts know it in full size alone
    PIPELINES["flux"] = flux_pipeline
    PIPELINES["schnell"] = lambda: flux_pipeline(guided=False)
CHANGES = (ERASURE, LORA)


def base_of(denoiser):
    config, weights = denoiser.config, denoiser.parameters()
    return Base(denoiser.architecture, config, weights, tables=denoiser.tables())


def changed(denoiser):
    """Everything that esd-all trains, by a change of rank 4."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name in select("esd-all", denoiser.parameters(), denoiser.architecture):
        shape = denoiser.parameters()[name].shape
        if len(shape) == 2:
            up, down = (torch.randn(edge, 4, generator=generator) for edge in shape)
            tensors[key_of(name)] = 0.1 * up @ down.T / shape[1] ** 0.5
    return Erasure(tensors, {})


def asked_of(denoiser):
    """Of the core's own arguments, by name: text is made up."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    config = denoiser.network.config
    found = {
        "x": drawn(2, *denoiser.latent_shape(128, 64)),
        "sigma": torch.tensor([0.25, 0.875]),
        "context": drawn(2, 9, config.joint_attention_dim),
        "pooled": drawn(2, config.pooled_projection_dim),
    }
    if config.get("guidance_embeds"):
        found["guidance"] = torch.tensor([1.0, 3.5])
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By name: a denoiser, what it is asked, the folder of its files, and ComfyUI's answers."""
    found = {}
    for name, make in PIPELINES.items():
        folder, denoiser = tmp_path_factory.mktemp(name), denoiser_of(make())
        base, asked, nothing = base_of(denoiser), asked_of(denoiser), Erasure({}, {})
        save_file(asked, folder / "request.safetensors")
        export(UNET, folder / "weights.safetensors", nothing, base, dtype=torch.float32)
        for form in CHANGES:
            path = folder / f"{form}.change"
            export(form, path, changed(denoiser), base, dtype=torch.float32, rank=4)
        found[name] = denoiser, asked, folder
    in_host("predicting.py", *(folder for _, _, folder in found.values()))
    return {n: (*v, load_file(v[-1] / "answer.safetensors")) for n, v in found.items()}


def predicted(denoiser, asked):
    given = {name: value for name, value in asked.items() if name not in ("x", "sigma")}
    with torch.no_grad():
        return denoiser.predict(asked["x"], asked["sigma"], Conditioning(**given))


def distances(got, expected):
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_host_has_the_same_parameters(pairs, name):
    denoiser, _, _, answers = pairs[name]
    prefix = "parameters."
    host = {n.removeprefix(prefix): t for n, t in answers.items() if n.startswith(prefix)}
    # The host calls FLUX's norms by either of two names, and trains neither.
    own = {_plain(n): tensor for n, tensor in denoiser.parameters().items()}
    assert {_plain(n) for n in host} == own.keys()
    assert all(torch.equal(tensor, own[_plain(n)]) for n, tensor in host.items())


def _plain(name):
    return name.removesuffix(".scale").removesuffix(".weight") if "_norm." in name else name


@pytest.mark.parametrize("name", PIPELINES)
def test_the_host_predicts_the_same(pairs, name):
    denoiser, asked, _, answers = pairs[name]
    assert max(distances(answers["plain"], predicted(denoiser, asked))) < 1e-5


@pytest.mark.parametrize("form", CHANGES)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_change_is_the_same_there_by_both_loaders(pairs, name, form):
    denoiser, asked, folder, answers = pairs[name]
    erasure = open_source(folder / f"{form}.change").erasure(base_of(denoiser))
    with applied(denoiser, [(erasure, 1.0)]):
        expected = predicted(denoiser, asked)
    assert min(distances(answers["plain"], expected)) > 0.01
    for loader in ("stock", "own"):
        assert max(distances(answers[f"{loader}.{form}"], expected)) < 1e-5, loader
