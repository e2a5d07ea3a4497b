"""Transformers of diffusers behind the protocol, against diffusers' own pipelines."""

import pytest
import torch
from pipelines import copied, flux_pipeline, sd3_pipeline

from esd_core.errors import ConfigError
from esd_core.method.sampling import sample
from esd_core.models.architectures import FLUX, SD3
from esd_core.models.loading import denoiser_of
from esd_core.training.selection import select
from esd_core.training.student import FullStudent

PROMPTS = ["a house in the style of Van Gogh", "a red boat"]
WIDTH, HEIGHT, STEPS = 128, 64, 4
MAKERS = {
    "sd3": sd3_pipeline,
    "sd3-t5": lambda: sd3_pipeline(with_t5=True),
    "flux": flux_pipeline,
    "schnell": lambda: flux_pipeline(guided=False),
}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request):
    """A pipeline as it was, and a denoiser of another one with the same weights."""
    made = MAKERS[request.param]()
    return made, denoiser_of(copied(made))


def distance(got, expected):
    return float((got - expected).norm() / expected.norm())


def noise_of(denoiser):
    shape = denoiser.latent_shape(WIDTH, HEIGHT)
    return torch.randn((2, *shape), generator=torch.Generator().manual_seed(2))


def ran(pipeline, noise, guidance):
    """What the pipeline makes, latents [B, C, h, w] and pictures."""
    given = {"num_inference_steps": STEPS, "width": WIDTH, "height": HEIGHT}
    empty = ["", ""]
    if not hasattr(pipeline, "_pack_latents"):
        given |= {"negative_prompt": empty, "guidance_scale": guidance, "latents": noise}
        if pipeline.text_encoder_3 is None:  # without the zeros that the pipeline has for T5
            for name, prompts in (("", PROMPTS), ("negative_", empty)):
                context, _, pooled, _ = pipeline.encode_prompt(
                    prompts, None, None, do_classifier_free_guidance=False
                )
                given |= {f"{name}prompt_embeds": context[:, :77]}
                given |= {f"{name}pooled_prompt_embeds": pooled}
            del given["negative_prompt"]
        else:
            given["prompt"] = PROMPTS
    else:
        packed = pipeline._pack_latents(noise, *noise.shape)
        given |= {"prompt": PROMPTS, "latents": packed}
        if pipeline.transformer.config.guidance_embeds:
            given["guidance_scale"] = guidance
        else:
            given |= {"negative_prompt": empty, "true_cfg_scale": guidance}
            given["max_sequence_length"] = 256
    found = [pipeline(**given, output_type=kind).images for kind in ("latent", "pt")]
    if hasattr(pipeline, "_unpack_latents"):
        found[0] = pipeline._unpack_latents(found[0], HEIGHT, WIDTH, pipeline.vae_scale_factor)
    return found


def test_the_trajectory_and_its_pictures_are_the_pipelines(pair):
    pipeline, denoiser = pair
    noise = noise_of(denoiser)
    latents, pictures = ran(pipeline, noise, 3.0)
    rows = [denoiser.encode(prompts, WIDTH, HEIGHT) for prompts in (PROMPTS, ["", ""])]
    got = sample(denoiser, noise, rows, denoiser.schedule(STEPS, WIDTH, HEIGHT), 3.0)
    assert distance(got, latents) < 1e-5
    assert distance(denoiser.decode(got), pictures) < 1e-5


def test_architecture_and_guidance(pair):
    pipeline, denoiser = pair
    is_flux = hasattr(pipeline, "_pack_latents")
    assert denoiser.architecture is (FLUX if is_flux else SD3)
    guidance = denoiser.encode([""], WIDTH, HEIGHT).guidance
    if is_flux and pipeline.transformer.config.guidance_embeds:
        assert guidance.tolist() == [1.0]
    else:
        assert guidance is None


def test_dynamic_shifting_goes_by_the_size():
    denoiser = denoiser_of(flux_pipeline())
    small, large = (denoiser.schedule(STEPS, edge, edge).sigmas for edge in (512, 1024))
    # Of 1024 tokens: 0.5 + 0.65 * 768 / 3840 = 0.63; sigma = e^mu / (e^mu + 1/t - 1) at t = 3/4.
    mu = torch.tensor(0.63, dtype=torch.float64)
    assert float(small[1]) == pytest.approx(float(mu.exp() / (mu.exp() + 1 / 3)), rel=1e-6)
    assert (large[1:-1] > small[1:-1]).all()


def test_without_t5_there_are_clips_tokens_alone():
    assert denoiser_of(sd3_pipeline()).encode([""], WIDTH, HEIGHT).context.shape[1] == 77


def test_sizes_that_the_network_cannot_have():
    denoiser = denoiser_of(sd3_pipeline())
    with pytest.raises(ConfigError, match="multiples of 16.*72x64"):
        denoiser.latent_shape(72, 64)
    with pytest.raises(ConfigError, match="at most 512.*528x64"):
        denoiser.latent_shape(528, 64)


# -- names and swaps -------------------------------------------------------------------------


def predicted(denoiser):
    rows = denoiser.encode(PROMPTS, WIDTH, HEIGHT)
    return denoiser.predict(noise_of(denoiser), torch.tensor([0.3, 0.8]), rows)


def test_canonical_tensors_are_all_parameters_and_take_no_room(pair):
    """But for the halves that lie the other way round."""
    pipeline, denoiser = pair
    count = sum(tensor.numel() for tensor in pipeline.transformer.parameters())
    assert sum(tensor.numel() for tensor in denoiser.parameters().values()) == count
    own = {p.untyped_storage().data_ptr() for p in denoiser.network.parameters()}
    apart = {
        name
        for name, tensor in denoiser.parameters().items()
        if tensor.untyped_storage().data_ptr() not in own
    }
    assert all("adaLN_modulation" in name for name in apart) and len(apart) <= 4


def test_the_network_predicts_as_before_and_a_students_tensors_are_its_weights(pair):
    pipeline, denoiser = pair
    fresh = denoiser_of(copied(pipeline))
    with torch.no_grad():
        before = predicted(denoiser)
        with denoiser.swapped({n: t.clone() for n, t in denoiser.parameters().items()}):
            assert torch.equal(predicted(denoiser), before)
        with denoiser.swapped({n: t * 1.5 for n, t in denoiser.parameters().items()}):
            changed = predicted(denoiser)
        assert torch.equal(predicted(denoiser), before)
        for tensor in fresh.network.parameters():
            tensor.mul_(1.5)
        assert torch.equal(predicted(fresh), changed)


def test_gradients_of_fused_tensors_are_those_of_their_parts(pair):
    pipeline, denoiser = pair
    names = select("esd-all", denoiser.parameters(), denoiser.architecture)
    student = FullStudent(denoiser.parameters(), names, torch.float32)
    with denoiser.swapped(student.tensors()):
        predicted(denoiser).square().mean().backward()
    other = denoiser_of(copied(pipeline))
    other.network.requires_grad_(True)
    predicted(other).square().mean().backward()
    gradients = {name: p.grad for name, p in other.network.named_parameters()}
    for name in names:
        expected = other._parts[name].joined(gradients)
        assert expected.abs().max() > 0
        assert torch.equal(student.masters[name].grad, expected), name
    assert all(p.grad is None for p in denoiser.network.parameters())
