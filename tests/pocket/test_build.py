"""The loop that pocket's stages train in."""

import numpy as np
import pytest
import torch
from torch import nn

from esd_core.pocket.build.loop import Course, Loop
from esd_core.pocket.build.text import disturbed

COURSE = Course(steps=300, learning_rate=1e-2, averaging=0.98)


class Cut(Exception):
    """A machine that goes down."""


def trained(path, cut_at=None):
    """A small network after all steps, with a loss that draws from both generators."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    # As a text tower's last norm, which its penultimate states do not depend on.
    module.register_parameter("unused", nn.Parameter(torch.ones(3)))
    steps = 0

    def loss_of(rng):
        nonlocal steps
        if steps == cut_at:
            raise Cut
        steps += 1
        inputs = torch.from_numpy(rng.normal(size=(16, 3))).float()
        return (
            (module(inputs + 0.1 * torch.randn_like(inputs)) - inputs.sum(1)[:, None])
            .square()
            .mean()
        )

    Loop(module, path, COURSE).run(loss_of)
    return module.state_dict(), steps


def test_a_loop_that_was_cut_ends_with_the_same_bits(tmp_path):
    """Cut after its first save, it goes on from there and not from the start."""
    whole, _ = trained(tmp_path / "whole.safetensors")
    with pytest.raises(Cut):
        trained(tmp_path / "cut.safetensors", cut_at=270)
    resumed, steps = trained(tmp_path / "cut.safetensors")
    assert steps == 50
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_loop_that_is_done_takes_no_step(tmp_path):
    first, _ = trained(tmp_path / "a.safetensors")
    again, steps = trained(tmp_path / "a.safetensors")
    assert steps == 0
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_the_learning_rate_rises_and_falls_once():
    rates = [COURSE.rate_at(step) for step in range(COURSE.steps)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(COURSE.learning_rate)
    assert 0 < rates[-1] < 0.01 * COURSE.learning_rate


def test_words_come_about_a_prompt_but_not_into_it():
    rng = np.random.default_rng(0)
    seen = {disturbed("a Van Gogh painting", ["x"], rng) for _ in range(300)}
    assert all(s.strip("x ") == "a Van Gogh painting" for s in seen)
    assert {"a Van Gogh painting", "x a Van Gogh painting", "a Van Gogh painting x"} <= seen
    assert max(s.split().count("x") for s in seen) == 3
    assert disturbed("", ["x"], rng) == ""
