"""Gradients through transformers in ComfyUI's own classes, in float64, against the host's network
alone."""

from __future__ import annotations

import pytest
from comfy_server import answer_in_host
from families import FAMILIES


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return answer_in_host("gradients.py", tmp_path_factory.mktemp("gradients"), [*FAMILIES])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_network_alone(told, family):
    assert told[family]["plain"] < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_is_when_blocks_recompute_what_they_had(told, family):
    assert told[family]["checkpointed"] < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_that_gradient_is_the_slope_of_what_it_is_of(told, family):
    """By a difference of two values, each of which the host rounds to float32."""
    assert told[family]["differences"] < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_student_and_teacher_predict_the_same_before_training(told, family):
    assert told[family]["moved"] == 0
    assert told[family]["prediction"] < 1e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_that_trains_has_a_gradient(told, family):
    """But for what the last block of Qwen-Image makes of text, which the network throws away."""
    assert told[family]["trained"] > 10
    last = {name.startswith("transformer_blocks.1.") for name in told[family]["still"]}
    assert last <= ({True} if family == "qwen-image" else set())
