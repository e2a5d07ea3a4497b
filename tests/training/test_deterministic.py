"""The same bits each time, where a device does not give them by itself."""

import os

import pytest
import torch
from trainers import planned, trainer_of

from esd_core.cli.main import main
from esd_core.errors import ESDError
from esd_core.method.probes import Probes
from esd_core.models.diffusers_backend import DiffusersDenoiser

SHORT = {"training.steps": 2}


def modes():
    """What torch is told: for all kernels, whether only to warn, and for cuDNN."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture(params=["torch's own", "a host that asks for warnings"])
def before(request):
    warns = request.param != "torch's own"
    torch.use_deterministic_algorithms(warns, warn_only=warns)
    torch.backends.cudnn.benchmark = warns
    yield modes()
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


class Watching(DiffusersDenoiser):
    """Notes the modes in which it predicts; may add, as some kernels on CUDA, in no fixed order."""

    adds = False

    def predict(self, x, sigma, conditioning):
        self.seen.add(modes())
        if self.adds:  # of which torch knows it, on a CPU too
            torch.ones(1).put_(torch.tensor([0]), torch.ones(1))
        return super().predict(x, sigma, conditioning)


@pytest.fixture
def watching(pipeline):
    denoiser = Watching(pipeline)
    denoiser.seen = set()
    return denoiser


@pytest.mark.parametrize("asked", [True, False])
def test_all_that_a_run_predicts_is_so_and_nothing_after_it(
    watching, settings, recorder, before, asked
):
    host = recorder()
    config = settings({**SHORT, "training.deterministic": asked})
    plan = planned(watching, config)
    watching.seen.clear()
    trainer_of(watching, config, plan=plan).run(host, host)
    assert watching.seen == {(True, False, True, False) if asked else before}
    assert modes() == before


@pytest.mark.parametrize("is_there_in", ["probes", "training"])
def test_a_kernel_that_torch_has_no_such_form_of_is_told(
    watching, settings, recorder, before, monkeypatch, is_there_in
):
    config, host = settings({**SHORT, "training.deterministic": True}), recorder()
    if is_there_in == "training":
        monkeypatch.setattr(Probes, "_record", lambda *_: None)
        monkeypatch.setattr(Probes, "_telling", lambda *_: {})
    watching.adds = True
    with pytest.raises(ESDError, match=r"put_ does not have .* switch `training.determ.*` off$"):
        trainer_of(watching, config).run(host, host)
    assert modes() == before


def test_the_command_tells_cublas_in_time(monkeypatch, capsys):
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, "")  # so that it is taken back
    monkeypatch.delenv(name)
    words = ["plan", "--model", "pocket", "--device", "cpu", "--concept", "Van Gogh"]
    assert main(words) == 0 and name not in os.environ
    assert main([*words, "--deterministic"]) == 0
    assert os.environ[name] == ":4096:8"
