"""Models that tests run on: pocket's architecture, untrained, and a toy worked out by hand."""

from contextlib import contextmanager, nullcontext
from copy import deepcopy

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from trainers import SMALL, Recorder

from esd_core.config.settings import ErasureConfig
from esd_core.models.architectures import SDXL
from esd_core.models.denoiser import Conditioning, Schedule
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.models.prediction import Epsilon
from esd_core.pocket.build.text import tokenizers
from esd_core.pocket.models import build_scheduler, build_text_towers, build_unet, build_vae


@pytest.fixture(scope="session")
def clip_tokenizers():
    return tokenizers()


@pytest.fixture(scope="session")
def pipeline(clip_tokenizers):
    """An untrained SDXL in miniature; shared, so nothing may change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = build_text_towers()
        made = StableDiffusionXLPipeline(
            vae=build_vae(),
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=clip_tokenizers[0],
            tokenizer_2=clip_tokenizers[1],
            unet=build_unet(),
            scheduler=build_scheduler(),
            add_watermarker=False,
        )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def denoiser(pipeline):
    """The shared model behind the protocol; nothing may change it."""
    return DiffusersDenoiser(pipeline)


@pytest.fixture
def make_denoiser(pipeline):
    """Copies of the shared model, in any dtype and with any scheduler settings."""

    def make(dtype=torch.float32, device="cpu", **scheduler):
        parts = dict(pipeline.components)
        for name, part in parts.items():
            if isinstance(part, torch.nn.Module):
                parts[name] = deepcopy(part).to(device, dtype)
        parts["scheduler"] = parts["scheduler"].from_config(parts["scheduler"].config, **scheduler)
        made = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        made.set_progress_bar_config(disable=True)
        return DiffusersDenoiser(made)

    return make


@pytest.fixture(scope="session")
def settings():
    """A small config, with settings laid over it: settings({"training.steps": 3})."""
    small = ErasureConfig.from_mapping(SMALL)
    return lambda overrides=None: small.override(overrides or {})


_NO_SIM = "no pretend accelerator"
"""simdev's own word for it, which is not imported where its tests are not run."""


def pytest_terminal_summary(terminalreporter):
    """Loudly: without the pretend accelerator no test has run code for a GPU."""
    skipped = [str(r.longrepr) for r in terminalreporter.stats.get("skipped", [])]
    missing = [reason for reason in skipped if _NO_SIM in reason]
    if missing:
        terminalreporter.section("The pretend accelerator was not built", sep="!", red=True)
        why = missing[0].rpartition(f"{_NO_SIM}: ")[2].rstrip("')")
        terminalreporter.write_line(f"{len(missing)} tests were SKIPPED: {why}.", red=True)


@pytest.fixture(scope="session")
def recorder():
    return Recorder


class Toy:
    """A denoiser that can be worked out by hand.

    eps-hat = shared * x + gain * vector(prompt), channel by channel; the empty prompt's vector is
    zero. `gain`, [4], is its one trained tensor and 1 in the teacher.
    """

    architecture = SDXL
    prediction = Epsilon()
    device = torch.device("cpu")
    compute_dtype = torch.float32

    def __init__(self, vectors, shared=0.25, sigmas=(4.0, 2.0, 1.0, 0.0), initial_scale=5.0):
        self.vectors = {"": (0, 0, 0, 0), **vectors}
        self.shared, self.sigmas, self.initial_scale = shared, sigmas, initial_scale
        self.gain = self.teacher = torch.nn.Parameter(torch.ones(4), requires_grad=False)
        self.rows = 0

    def encode(self, prompts, width, height):
        known = [self.vectors.get(p, (0.5, 0.5, 0.5, 0.5)) for p in prompts]
        return Conditioning(torch.tensor(known, dtype=torch.float32)[:, None])

    def predict(self, x, sigma, conditioning):
        assert len(x) == len(sigma) == len(conditioning)
        self.rows += len(x)
        return self.shared * x + (self.gain * conditioning.context[:, 0])[:, :, None, None]

    def parameters(self):
        return {"gain": self.teacher}

    @contextmanager
    def swapped(self, tensors):
        before, self.gain = self.gain, tensors.get("gain", self.gain)
        try:
            yield
        finally:
            self.gain = before

    def checkpointed(self, enabled):
        return nullcontext()

    def schedule(self, steps, width, height):
        return Schedule(torch.tensor(self.sigmas), self.initial_scale)

    def latent_shape(self, width, height):
        return 4, height // 8, width // 8


@pytest.fixture
def toy():
    return Toy
