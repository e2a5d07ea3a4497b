"""Pictures of transformers in miniature, by ESDCompare and as previews, against stock nodes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from families import with_vaes
from graphs import PROMPT, Graph, pictures
from PIL import Image
from test_families import model_of, succeed

EDGE, STEPS = 128, 2
CFG = {"sd3": 4.0, "flux": 1.0, "flux2": 1.0, "wan": 5.0, "wan22": 5.0}
"""What auto stands for: of models that take guidance as an input, that there is none beside it."""
SAMPLING = {"seed": 1, "steps": STEPS, "sampler_name": "euler", "scheduler": "simple"}


def parts(graph, family, other=None):
    """MODEL, CLIP and VAE, that of another family if it is the same."""
    path = graph._server.base / "models" / "vae" / f"{other or family}.safetensors"
    if not path.is_file():
        writing = Graph(graph._server)
        writing.add("TestMiniatureVAE", family=other or family)
        succeed(writing)
    model, clip = model_of(graph, family)
    return model, clip, [graph.add("VAELoader", vae_name=path.name), 0]


@pytest.mark.parametrize("family", with_vaes())
def test_a_comparison_shows_what_stock_nodes_draw(server, family):
    graph = Graph(server)
    model, clip, vae = parts(graph, family)
    own = graph.add(
        "ESDCompare",
        **{"original": model, "erased": model, "clip": clip, "vae": vae, "prompts": PROMPT},
        **{"width": EDGE, "height": EDGE, **SAMPLING},
    )
    saved = graph.add("SaveImage", images=[own, 1], filename_prefix="test")
    texts = [[graph.add("CLIPTextEncode", text=t, clip=clip), 0] for t in (PROMPT, "")]
    sampled = graph.add(
        "KSampler",
        **{"model": model, "cfg": CFG[family], "positive": texts[0], "negative": texts[1]},
        latent_image=[graph.add("EmptyLatentImage", width=EDGE, height=EDGE), 0],
        **SAMPLING,
    )
    decoded = graph.add("VAEDecode", samples=[sampled, 0], vae=vae)
    stock = graph.add("SaveImage", images=[decoded, 0], filename_prefix="test")
    run = succeed(graph)
    (drawn,), (expected,) = (pictures(server, run, node) for node in (saved, stock))
    assert drawn.shape == (EDGE, EDGE, 3) and drawn.std() > 1
    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("family", with_vaes())
def test_previews_are_decoded_or_guessed(server, family):
    """With the VAE in full; without, in what the host knows colours of: latents, or their quarters
    as FLUX.2 has them."""
    sizes = {}
    options = {"preview_every": 1, "trajectory_steps": 2, "batch_size": 2, "contexts": ""}
    for name, seed in (("decoded", 1), ("guessed", 2)):
        graph = Graph(server)
        model, clip, vae = parts(graph, family)
        given = {"steps": 1, "seed": seed, "width": EDGE, "height": EDGE}
        given |= {"vae": vae} if name == "decoded" else {}
        graph.train(model, clip, options, filename_prefix=f"esd/{name}-{family}", **given)
        run = succeed(graph)
        drawn = [Image.open(io.BytesIO(data)) for data in run.previews if data[:2] == b"\xff\xd8"]
        assert drawn, run.texts
        sizes[name] = drawn[0].size
    assert sizes["decoded"] == (EDGE, EDGE)
    assert sizes["guessed"] == (EDGE // (16 if family == "wan22" else 8),) * 2


def test_the_vae_of_another_model_is_refused_by_both(server):
    graph = Graph(server)
    model, clip, _ = parts(graph, "sd3")
    _, _, other = graph.pocket()
    models = {"original": model, "erased": model, "clip": clip, "vae": other}
    graph.add("ESDCompare", **models, prompts=PROMPT, width=EDGE, height=EDGE, **SAMPLING)
    told = graph.run().error
    assert "decodes latents of 4 channels, and the MODEL has 16" in told
    graph = Graph(server)
    model, clip, _ = parts(graph, "sd3")
    _, _, other = graph.pocket()
    graph.train(model, clip, {}, vae=other, filename_prefix="esd/other-vae")
    assert graph.run().error == told


@pytest.mark.skipif("flux2" not in with_vaes(), reason="this ComfyUI does not know FLUX.2")
def test_a_size_that_does_not_fit_its_latents_is_refused(server):
    graph = Graph(server)
    model, clip, vae = parts(graph, "flux2")
    models = {"original": model, "erased": model, "clip": clip, "vae": vae}
    graph.add("ESDCompare", **models, prompts=PROMPT, width=EDGE + 8, height=EDGE, **SAMPLING)
    assert "width and height must be multiples of 16, not 136x128" in graph.run().error
