"""The diffusers backend against diffusers' own pipelines and schedulers."""

import timeit
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from esd_core.errors import ConfigError, ESDError, FileError
from esd_core.method.sampling import sample
from esd_core.method.terms import Term
from esd_core.models.architectures import SD1, SD2, SDXL
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.models.embedded import POCKET
from esd_core.models.loading import (
    automatic_precision,
    denoiser_of,
    load_denoiser,
    quick_precision,
)
from esd_core.pocket.models import build_vae

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
PROMPTS = ["a house in the style of Van Gogh", "a red boat"]


def distance(got, expected):
    """Relative; float32 rounding through the network and a few steps stays below 1e-5."""
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def small_sd(clip_tokenizers):
    """Stable Diffusion 1.x and 2.x in miniature: one text tower, no pooled text."""

    def make(prediction_type="epsilon", context=32):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            text = CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    bos_token_id=49406,
                    eos_token_id=49407,
                    vocab_size=49408,
                )
            )
            unet = UNet2DConditionModel(
                sample_size=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                block_out_channels=(32, 64),
                layers_per_block=1,
                attention_head_dim=2,
                cross_attention_dim=context,
            )
            pipeline = StableDiffusionPipeline(
                vae=build_vae(),
                text_encoder=text,
                tokenizer=clip_tokenizers[0],
                unet=unet,
                scheduler=EulerDiscreteScheduler(
                    **STABLE_DIFFUSION, prediction_type=prediction_type
                ),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


# -- against the pipelines -------------------------------------------------------------------


def trace_of_pipeline(pipeline, noise, guidance, steps, width, height):
    trace = []

    def note(_pipeline, _step, _timestep, values):
        trace.append(values["latents"].clone())
        return values

    end = pipeline(
        prompt=PROMPTS,
        negative_prompt=["", ""],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.clone(),
        width=width,
        height=height,
        output_type="latent",
        callback_on_step_end=note,
    ).images
    assert torch.equal(end, trace[-1])
    return trace


def trace_of_core(denoiser, noise, guidance, steps, width, height):
    trace = []
    prompts = [denoiser.encode(p, width, height) for p in (PROMPTS, ["", ""])]
    schedule = denoiser.schedule(steps, width, height)
    end = sample(denoiser, noise, prompts, schedule, guidance, lambda x, s, p: trace.append(x))
    return [*trace[1:], end]


def assert_same_trace(denoiser, guidance=3.0, steps=5, width=64, height=128):
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn((2, *denoiser.latent_shape(width, height)), generator=generator)
    run = (noise, guidance, steps, width, height)
    theirs, ours = trace_of_pipeline(denoiser.pipeline, *run), trace_of_core(denoiser, *run)
    assert len(ours) == len(theirs) == steps
    for step, (got, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert distance(got, expected) < 1e-5, step


@pytest.mark.parametrize(
    ("prediction_type", "spacing"),
    [("epsilon", "leading"), ("epsilon", "linspace"), ("v_prediction", "trailing")],
)
def test_sdxl_trajectory_is_the_pipelines(make_denoiser, prediction_type, spacing):
    denoiser = make_denoiser(prediction_type=prediction_type, timestep_spacing=spacing)
    assert_same_trace(denoiser)


def test_zero_terminal_snr_is_followed(make_denoiser, monkeypatch):
    """Its first sigma, of abar = 2^-24, is 4096, and is labelled as the last timestep."""
    denoiser = make_denoiser(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    spy, schedule = spied(denoiser, monkeypatch), denoiser.schedule(5, 64, 64)
    assert schedule.sigmas[0].item() == pytest.approx((2**24 - 1) ** 0.5, rel=1e-6)
    denoiser.predict(torch.zeros(1, 4, 1, 1), schedule.sigmas[:1], one_prompt(denoiser, 1))
    assert spy.timestep.tolist() == [999.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sd_trajectory_is_the_pipelines(small_sd, prediction_type):
    assert_same_trace(DiffusersDenoiser(small_sd(prediction_type)))


def test_picture_is_the_pipelines(denoiser):
    """Decoded too; the pipeline rounds nothing when asked for tensors."""
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    theirs = denoiser.pipeline(
        prompt=PROMPTS,
        negative_prompt=["", ""],
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=noise.clone(),
        width=64,
        height=64,
        output_type="pt",
    ).images
    ours = denoiser.decode(trace_of_core(denoiser, noise, 3.0, 2, 64, 64)[-1])
    assert ours.shape == (2, 3, 64, 64)
    assert ours.min() >= 0 and ours.max() <= 1
    assert distance(ours, theirs) < 1e-5


# -- sigmas, timesteps, forms ----------------------------------------------------------------


class SpyUNet:
    """Notes what the network is given and returns a given tensor."""

    def __init__(self, answer=None):
        self.answer, self.sample, self.timestep, self.added = answer, None, None, None

    def __call__(self, sample, timestep, context, added_cond_kwargs, return_dict):
        self.sample, self.timestep, self.added = sample, timestep, added_cond_kwargs
        return (torch.zeros_like(sample) if self.answer is None else self.answer,)


def spied(denoiser, monkeypatch, answer=None):
    spy = SpyUNet(answer)
    monkeypatch.setattr(denoiser, "network", spy)
    return spy


def one_prompt(denoiser, rows):
    return denoiser.encode(["a house"], 64, 64).select([0] * rows)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_sigma_gets_its_own_timestep(make_denoiser, monkeypatch, spacing):
    denoiser = make_denoiser(timestep_spacing=spacing)
    spy = spied(denoiser, monkeypatch)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    train = np.sqrt(1 / np.cumprod(1 - betas) - 1)
    for steps in range(1, 51):
        scheduler = EulerDiscreteScheduler.from_config(denoiser.pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.double().numpy()
        sigmas = denoiser.schedule(steps, 64, 64).sigmas
        assert len(sigmas) == steps + 1 and sigmas[-1] == 0
        assert torch.equal(sigmas, scheduler.sigmas)
        x = torch.zeros(steps, 4, 1, 1)
        denoiser.predict(x, sigmas[:-1], one_prompt(denoiser, steps))
        got = spy.timestep.double().numpy()
        # Float32 rounds a sigma, and with it what can be recovered: by its own spacing over the
        # slope of sigma in t. Twice in the schedule, once on the way; and the timestep itself.
        slope = np.interp(expected, np.arange(999) + 0.5, np.diff(train))
        rounding = 4 * np.spacing(sigmas[:-1].numpy()) / slope
        assert (np.abs(got - expected) <= rounding + np.spacing(np.float32(expected))).all(), steps


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_sigmas_are_those_of_the_training_noise(small_sd, scheduler):
    """Whatever sampler a pipeline comes with: sigma squared is (1 - abar) / abar at t."""
    pipeline = small_sd()
    pipeline.scheduler = scheduler(**STABLE_DIFFUSION)
    schedule = DiffusersDenoiser(pipeline).schedule(10, 64, 64)
    timesteps = 100 * np.arange(10)[::-1] + 1
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[timesteps]
    expected = np.append(np.sqrt((1 - abar) / abar), 0)
    # the scheduler's float32 product of up to 1000 factors rounds as often
    np.testing.assert_allclose(schedule.sigmas.double().numpy(), expected, rtol=1000 * 2**-24)
    assert schedule.sigmas.dtype == torch.float32
    assert schedule.initial_scale == pytest.approx((expected[0] ** 2 + 1) ** 0.5, rel=1e-4)


def test_network_gets_scaled_latents_and_the_prompts_size(denoiser, monkeypatch):
    spy = spied(denoiser, monkeypatch)
    x = torch.ones(2, 4, 2, 2)
    both = denoiser.encode(["a house", "a boat"], 640, 320)
    denoiser.predict(x, torch.tensor([0.75, 2.4]), both)
    # sqrt(0.75^2 + 1) = 1.25 and sqrt(2.4^2 + 1) = 2.6
    torch.testing.assert_close(spy.sample[:, 0, 0, 0], torch.tensor([1 / 1.25, 1 / 2.6]))
    assert spy.added["time_ids"].tolist() == [[320, 640, 0, 0, 320, 640]] * 2
    assert torch.equal(spy.added["text_embeds"], both.pooled)


def test_v_prediction_by_hand(make_denoiser, monkeypatch):
    """At sigma 3/4 alpha is 4/5 and s is 3/5; x0 = 1 and eps = 2 give v = 4/5 * 2 - 3/5 * 1."""
    denoiser = make_denoiser(prediction_type="v_prediction")
    spied(denoiser, monkeypatch, answer=torch.full((1, 4, 2, 2), 1.0))
    x = torch.full((1, 4, 2, 2), 1 + 0.75 * 2)
    eps = denoiser.predict(x, torch.tensor([0.75]), one_prompt(denoiser, 1))
    torch.testing.assert_close(eps, torch.full_like(x, 2.0))


def test_target_of_a_v_model_is_the_target_of_its_v(make_denoiser, monkeypatch):
    """Computed from eps-hats and turned back to v, it is the formula applied to v itself."""
    denoiser = make_denoiser(prediction_type="v_prediction")
    generator = torch.Generator().manual_seed(4)
    x, *raw = torch.randn((4, 1, 4, 2, 2), generator=generator)
    sigma = torch.tensor([2.4])
    eps = []
    for answer in raw:
        spied(denoiser, monkeypatch, answer)
        eps.append(denoiser.predict(x, sigma, one_prompt(denoiser, 1)))
    term = Term("c", "a", "c", "", 1.5)
    target = term.target(dict(zip(("a", "c", ""), eps, strict=True)))
    v = (target - 2.4 * (x - 2.4 * target)) / 2.6
    expected = term.target(dict(zip(("a", "c", ""), raw, strict=True)))
    torch.testing.assert_close(v, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predicts_in_float32(make_denoiser, dtype):
    """And near the float32 prediction: within a few of its roundings through the layers."""
    exact, coarse = make_denoiser(), make_denoiser(dtype)
    assert coarse.compute_dtype == dtype
    x = 5 * torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    sigma = torch.tensor([5.0, 5.0])
    with torch.no_grad():
        got, expected = (model.predict(x, sigma, one_prompt(model, 2)) for model in (coarse, exact))
    assert got.dtype == torch.float32
    assert distance(got, expected) < 16 * torch.finfo(dtype).eps


# -- prompts ---------------------------------------------------------------------------------


def test_rows_of_prompts_are_those_of_each_alone(denoiser):
    together = denoiser.encode(["", *PROMPTS], 64, 64)
    assert len(together) == 3
    for i, prompt in enumerate(["", *PROMPTS]):
        alone = denoiser.encode([prompt], 64, 64)
        assert distance(together.context[i], alone.context[0]) < 1e-5
        assert distance(together.pooled[i], alone.pooled[0]) < 1e-5
    assert not together.context.requires_grad


def test_the_empty_prompt_is_encoded_and_not_zeroed(denoiser):
    assert denoiser.pipeline.config.force_zeros_for_empty_prompt
    empty = denoiser.encode([""], 64, 64)
    assert empty.context.abs().max() > 0 and empty.pooled.abs().max() > 0


# -- names, swaps, checkpoints ---------------------------------------------------------------

NAME = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"


def test_every_parameter_has_one_canonical_name(denoiser):
    named = denoiser.parameters()
    theirs = list(denoiser.pipeline.unet.parameters())
    assert {id(p) for p in named.values()} == {id(p) for p in theirs}
    assert len(named) == len(theirs)
    at = denoiser.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
    assert named[NAME] is at


def prediction(denoiser):
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        return denoiser.predict(x, torch.tensor([1.0]), one_prompt(denoiser, 1))


def test_swapped_in_tensors_compute_and_go(denoiser):
    before, teacher = prediction(denoiser), denoiser.parameters()[NAME]
    with denoiser.swapped({NAME: torch.zeros_like(teacher)}):
        inside = prediction(denoiser)
        with denoiser.swapped({NAME: teacher}):
            assert torch.equal(prediction(denoiser), before)
        assert torch.equal(prediction(denoiser), inside)
    assert not torch.equal(inside, before)
    assert torch.equal(prediction(denoiser), before)
    assert denoiser.parameters()[NAME] is teacher


def test_swapped_in_tensors_go_when_something_breaks(denoiser):
    teacher = denoiser.parameters()[NAME]
    with pytest.raises(KeyboardInterrupt), denoiser.swapped({NAME: torch.zeros_like(teacher)}):
        raise KeyboardInterrupt
    assert denoiser.parameters()[NAME] is teacher


def test_an_unknown_name_swaps_nothing(denoiser):
    teacher = denoiser.parameters()[NAME]
    unknown = {NAME: torch.zeros_like(teacher), "no.such.weight": torch.zeros(1)}
    with pytest.raises(KeyError), denoiser.swapped(unknown):
        pass
    assert denoiser.parameters()[NAME] is teacher


def test_parameters_are_the_teachers_inside_a_swap_too(denoiser):
    teacher = denoiser.parameters()[NAME]
    with denoiser.swapped({NAME: torch.zeros_like(teacher)}):
        assert denoiser.parameters()[NAME] is teacher


def test_what_a_host_put_in_meanwhile_stays(make_denoiser):
    denoiser = make_denoiser()
    attention = denoiser.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    theirs = torch.nn.Parameter(torch.ones_like(attention.to_v.weight), requires_grad=False)
    with denoiser.swapped({NAME: torch.zeros_like(theirs)}):
        attention.to_v.weight = theirs
    assert attention.to_v.weight is theirs


def test_gradients_flow_into_swapped_in_tensors_alone(make_denoiser):
    denoiser = make_denoiser()
    student = denoiser.parameters()[NAME].detach().clone().requires_grad_()
    with denoiser.swapped({NAME: student}):
        x = torch.ones(1, 4, 8, 8)
        out = denoiser.predict(x, torch.tensor([1.0]), one_prompt(denoiser, 1))
        out.square().mean().backward()
    assert student.grad.abs().max() > 0
    parts = [m for m in denoiser.pipeline.components.values() if isinstance(m, torch.nn.Module)]
    assert all(p.grad is None for part in parts for p in part.parameters())
    assert not any(p.requires_grad for p in denoiser.parameters().values())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_checkpointing_is_as_the_host_had_it_afterwards(make_denoiser, before, inside):
    denoiser = make_denoiser()
    unet = denoiser.pipeline.unet
    if before:
        unet.enable_gradient_checkpointing()
    with pytest.raises(RuntimeError), denoiser.checkpointed(inside):
        assert unet.is_gradient_checkpointing == inside
        raise RuntimeError
    assert unet.is_gradient_checkpointing == before


def gradients(denoiser, checkpointing):
    """Of every parameter, the network recomputing or not; and how often a block ran."""
    runs = []
    block = denoiser.pipeline.unet.mid_block.resnets[1]
    hook = block.register_forward_pre_hook(lambda *_: runs.append(1))
    student = {n: p.detach().clone().requires_grad_() for n, p in denoiser.parameters().items()}
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(7))
    with denoiser.checkpointed(checkpointing), denoiser.swapped(student):
        sigma = torch.tensor([0.5, 5.0])
        out = denoiser.predict(x, sigma, one_prompt(denoiser, 2))
        out.square().mean().backward()
    hook.remove()
    return {name: p.grad for name, p in student.items()}, len(runs)


def test_checkpointing_changes_no_gradient(make_denoiser):
    denoiser = make_denoiser()
    (plain, once), (recomputed, twice) = (gradients(denoiser, c) for c in (False, True))
    assert (once, twice) == (1, 2)
    for name, gradient in plain.items():
        error = (recomputed[name] - gradient).norm()
        assert error <= 1e-6 * gradient.norm(), name


# -- what is refused -------------------------------------------------------------------------


def test_sizes_that_latents_cannot_have(denoiser):
    assert denoiser.latent_shape(64, 128) == (4, 16, 8)
    with pytest.raises(ConfigError, match="multiples of 8.*60x64"):
        denoiser.latent_shape(60, 64)


def test_other_prediction_types_are_refused(pipeline):
    other = deepcopy(pipeline)
    other.scheduler = EulerDiscreteScheduler(prediction_type="sample")
    with pytest.raises(ESDError, match="sample"):
        DiffusersDenoiser(other)


def test_other_pipelines_are_refused(pipeline):
    other = DDPMPipeline(pipeline.unet, pipeline.scheduler)
    with pytest.raises(ESDError, match="DDPMPipeline.*FLUX.1"):
        denoiser_of(other)


def test_architecture_is_told_by_the_text_width(denoiser, small_sd):
    assert denoiser.architecture is SDXL
    assert DiffusersDenoiser(small_sd(context=768)).architecture is SD1
    assert DiffusersDenoiser(small_sd(context=1024)).architecture is SD2


# -- loading ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(path)
    return path


def test_a_folder_is_loaded_as_it_was_saved(denoiser, folder):
    loaded = load_denoiser(str(folder), "fp32", "cpu")
    assert isinstance(loaded.pipeline, StableDiffusionXLPipeline)
    for name, tensor in denoiser.parameters().items():
        assert torch.equal(loaded.parameters()[name], tensor), name
    assert distance(prediction(loaded), prediction(denoiser)) < 1e-5


def test_precision_is_what_was_asked_for(folder):
    loaded = load_denoiser(str(folder), "bf16", "cpu")
    assert loaded.compute_dtype == torch.bfloat16
    assert {p.dtype for p in loaded.parameters().values()} == {torch.bfloat16}
    assert automatic_precision(torch.device("cpu")) == torch.float32


def test_the_quick_precision_is_quick_on_this_cpu():
    """bf16 takes half of fp32's time on one CPU, and thirty times as long on another. By turns,
    since other processes come and go."""
    x = torch.randn(16, 4, 16, 16)

    def prediction(precision):
        pocket = load_denoiser(POCKET, precision, "cpu")
        asked = pocket.encode([""] * len(x), 128, 128)
        return partial(pocket.predict, x, torch.ones(len(x)), asked)

    quick = quick_precision("cpu")
    other = {"bf16": "fp32", "auto": "bf16"}[quick]
    ways = [prediction(quick), prediction(other)]
    with torch.no_grad():
        turns = [[timeit.timeit(way, number=1) for way in ways] for _ in range(10)]
    ours, theirs = map(min, zip(*turns, strict=True))
    assert ours < 1.5 * theirs


@pytest.mark.parametrize(("major", "expected"), [(7, torch.float16), (8, torch.bfloat16)])
def test_before_ampere_the_automatic_precision_is_fp16(monkeypatch, major, expected):
    """Also where another device of the machine, the current one, has bf16."""
    majors, chosen = {0: 15 - major, 1: major}, [0]

    @contextmanager
    def using(device):
        chosen[:] = [device.index]
        yield

    monkeypatch.setattr(torch.cuda, "device", using)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[0])
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=majors[index])
    )
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert automatic_precision(torch.device("cuda", 1)) == expected


@pytest.mark.parametrize("asked", [True, False])
def test_an_autoencoder_that_overflows_in_fp16_decodes_in_float32(make_denoiser, asked):
    """Where its config says so: SDXL's own does, and a repaired one does not."""
    denoiser = make_denoiser(torch.float16)
    vae, seen = denoiser.pipeline.vae, []
    vae.register_to_config(force_upcast=asked)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    pictures = denoiser.decode(torch.ones(1, 4, 8, 8))
    assert pictures.isfinite().all()
    assert seen == [torch.float32 if asked else torch.float16]
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize(
    ("name", "match"),
    [("empty", "model_index.json"), ("weights.ckpt", "not a .safetensors file"), ("cut", "cut")],
)
def test_what_is_no_model_is_refused_by_name(tmp_path, folder, name, match):
    path = tmp_path / name
    if name == "weights.ckpt":
        path.write_bytes(b"PK\x03\x04")
    else:
        path.mkdir()
    if name == "cut":
        (path / "model_index.json").write_text((folder / "model_index.json").read_text()[:50])
    with pytest.raises(FileError, match=match):
        load_denoiser(str(path), "fp32", "cpu")
