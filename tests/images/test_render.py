"""Rendering on the embedded model: what a picture depends on, and diffusers' own pipeline."""

from collections.abc import Sequence

import pytest
import torch

from esd_core.errors import ConfigError
from esd_core.images.render import picture_noise, render
from esd_core.models.denoiser import Conditioning
from esd_core.models.headless import Headless
from esd_core.models.loading import load_denoiser

PROMPTS = ["a house in the style of Van Gogh", "a boat", "a boat", "Mondrian style, a fish"]
SEEDS = [11, 12, 13, 14]
SETTINGS = {"steps": 3, "guidance": 3.0, "width": 128, "height": 128}


@pytest.fixture(scope="module")
def pocket() -> Headless:
    return load_denoiser("pocket", precision="fp32", device="cpu")


def test_pictures_are_what_diffusers_own_pipeline_makes(pocket: Headless) -> None:
    noise = picture_noise(SEEDS, pocket.latent_shape(128, 128))
    expected = pocket.pipeline(
        prompt=PROMPTS,
        negative_prompt=[""] * len(PROMPTS),
        latents=noise,
        num_inference_steps=3,
        guidance_scale=3.0,
        width=128,
        height=128,
        output_type="pt",
    ).images
    pictures = render(pocket, PROMPTS, SEEDS, **SETTINGS)
    assert pictures.shape == (4, 3, 128, 128) and pictures.dtype == torch.float32
    assert torch.allclose(pictures, expected.float(), atol=2e-3)


def test_a_picture_is_the_same_in_every_batch(pocket: Headless) -> None:
    together = render(pocket, PROMPTS, SEEDS, **SETTINGS)
    by_threes = render(pocket, PROMPTS, SEEDS, **SETTINGS, batch=3)
    alone = render(pocket, PROMPTS[2:3], SEEDS[2:3], **SETTINGS)
    assert torch.allclose(together, by_threes, atol=1e-3)
    assert torch.allclose(together[2:3], alone, atol=1e-3)


def test_the_noise_follows_from_the_seed_alone() -> None:
    together = picture_noise([5, 6, 5], (4, 16, 16))
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(picture_noise([6], (4, 16, 16))[0], together[1])
    assert abs(float(together.std()) - 1) < 0.05


def test_a_picture_depends_on_prompt_seed_and_negative(pocket: Headless) -> None:
    def first(prompt: str, seed: int, negative: str = "") -> torch.Tensor:
        return render(pocket, [prompt], [seed], **SETTINGS, negative=negative)

    plain = first("a boat", 1)
    assert torch.equal(plain, first("a boat", 1))
    assert not torch.equal(plain, first("a boat", 2))
    assert not torch.equal(plain, first("a fish", 1))
    assert not torch.equal(plain, first("a boat", 1, negative="a house"))
    assert float(plain.min()) >= 0 and float(plain.max()) <= 1


def test_a_repeated_prompt_is_encoded_once(
    pocket: Headless, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = pocket.encode

    def recording(prompts: Sequence[str], width: int, height: int) -> Conditioning:
        encoded.extend(prompts)
        return encode(prompts, width, height)

    monkeypatch.setattr(pocket, "encode", recording)
    render(pocket, PROMPTS * 2, SEEDS * 2, **{**SETTINGS, "steps": 1}, batch=2)
    assert sorted(encoded) == sorted({*PROMPTS, ""})


def test_progress_counts_pictures(pocket: Headless) -> None:
    seen: list[int] = []
    render(pocket, PROMPTS, SEEDS, **{**SETTINGS, "steps": 1}, batch=3, on_picture=seen.append)
    assert seen == [3, 1]


def test_a_size_may_be_other_than_square(pocket: Headless) -> None:
    wide = {"steps": 1, "guidance": 1.0, "width": 160, "height": 64}
    assert render(pocket, PROMPTS[:1], [1], **wide).shape == (1, 3, 64, 160)
    assert render(pocket, [], [], **wide).shape == (0, 3, 64, 160)


def test_what_cannot_be_rendered_is_refused(pocket: Headless) -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        render(pocket, ["a boat"], [1], steps=1, guidance=1.0, width=100, height=128)
    with pytest.raises(ValueError, match="2 prompts, but 1 seeds"):
        render(pocket, ["a", "b"], [1], **SETTINGS)
