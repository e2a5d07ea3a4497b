"""What a run is said to cost, against the rows that go through the network."""

from dataclasses import replace

import pytest
import torch

from esd_core.training.plan import check
from esd_core.training.run import prepare
from esd_core.training.work import Work, expected, recording_rows, remaining

LINES = {"concepts": ["Van Gogh", "house -> a tree", "a red boat <- boat"]}


class Counted:
    """A denoiser that counts its rows."""

    def __init__(self, denoiser, monkeypatch):
        self.evaluated = self.trained = 0
        predict = denoiser.predict

        def counting(x, *rest):
            if torch.is_grad_enabled():
                self.trained += len(x)
            else:
                self.evaluated += len(x)
            return predict(x, *rest)

        monkeypatch.setattr(denoiser, "predict", counting)


def take_guidance(denoiser, monkeypatch):
    """As if it were an input of the network, which does not listen."""
    encode = denoiser.encode

    def guided(prompts, *size):
        return replace(encode(prompts, *size), guidance=torch.ones(len(prompts)))

    monkeypatch.setattr(denoiser, "encode", guided)
    monkeypatch.setattr(type(denoiser), "is_guided", True)


@pytest.mark.parametrize("takes_guidance", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"contexts": ["auto"], "preserve": ["a car"]},
        {"contexts": ["auto"], "trajectory.source": "student"},
        {"trajectory.source": "student", "trajectory.reuse": 2, "preserve": ["a car", "a fish"]},
        {"training.probe_every": 4, "preserve_weight": 0.0},
    ],
)
def test_a_run_takes_as_many_rows_as_it_is_said_to(
    denoiser, settings, recorder, monkeypatch, given, takes_guidance
):
    if takes_guidance:
        take_guidance(denoiser, monkeypatch)
    config = settings({**LINES, "training.steps": 8, **given})
    plan = check(denoiser, config)
    counted = Counted(denoiser, monkeypatch)
    with torch.no_grad():
        trainer = prepare(denoiser, config, plan)
    assert counted.evaluated == recording_rows(config, denoiser)
    counted.evaluated, whole = 0, remaining(trainer)
    assert expected(config, denoiser, trainer.probe_interval) == whole
    for _ in range(3):
        trainer.take_step()
    done = Work(whole.evaluated - counted.evaluated, whole.trained - counted.trained)
    assert remaining(trainer) == done
    host = recorder()
    trainer.run(host, host)
    assert Work(counted.evaluated, counted.trained) == whole
