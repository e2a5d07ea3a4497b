"""Canonical names are ComfyUI's: the same weights, in its networks and in diffusers'."""

import pytest
import torch
from comfy_server import in_host
from pipelines import flux_pipeline, sd3_pipeline
from safetensors import safe_open
from safetensors.torch import save_file

from esd_core.models.denoiser import Conditioning
from esd_core.models.loading import denoiser_of
from esd_core.models.transformer_keys import POS_EMBED

PIPELINES = {
    "sd3": sd3_pipeline,
    "sd3-plain": lambda: sd3_pipeline(dual_attention_layers=(), qk_norm=None),
    "flux": flux_pipeline,
    "schnell": lambda: flux_pipeline(guided=False),
}


@pytest.fixture(scope="module", params=PIPELINES)
def here(request):
    return denoiser_of(PIPELINES[request.param]())


@pytest.fixture(scope="module")
def asked(here):
    """Of the core's own arguments, by name: text is made up."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    config = here.network.config
    found = {
        "x": drawn(2, *here.latent_shape(128, 64)),
        "sigma": torch.tensor([0.25, 0.875]),
        "context": drawn(2, 9, config.joint_attention_dim),
        "pooled": drawn(2, config.pooled_projection_dim),
    }
    if config.get("guidance_embeds"):
        found["guidance"] = torch.tensor([1.0, 3.5])
    return found


@pytest.fixture(scope="module")
def there(here, asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    weights = {f"model.diffusion_model.{n}": t for n, t in here.parameters().items()}
    if hasattr(here.network.pos_embed, "pos_embed"):  # SD3's table of positions is no parameter
        weights[f"model.diffusion_model.{POS_EMBED}"] = here.network.pos_embed.pos_embed
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "weights.safetensors")
    request, answer = folder / "asked.safetensors", folder / "answer.safetensors"
    save_file(asked, request, {"path": str(folder / "weights.safetensors")})
    in_host("predicting.py", request, answer)
    with safe_open(answer, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata()


def test_the_host_has_the_same_parameters(here, there):
    tensors, metadata = there
    assert metadata["architecture"] == here.architecture.name
    prefix = "parameters."
    host = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    # The host calls FLUX's norms by either of two names, and trains neither.
    own = {_plain(name): tensor for name, tensor in here.parameters().items()}
    assert {_plain(name) for name in host} == own.keys()
    assert all(torch.equal(tensor, own[_plain(name)]) for name, tensor in host.items())


def _plain(name):
    return name.removesuffix(".scale").removesuffix(".weight") if "_norm." in name else name


def test_the_host_predicts_the_same(here, there, asked):
    given = {name: value for name, value in asked.items() if name not in ("x", "sigma")}
    with torch.no_grad():
        own = here.predict(asked["x"], asked["sigma"], Conditioning(**given))
    for got, expected in zip(there[0]["prediction"], own, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5
