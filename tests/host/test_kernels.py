"""The kernels that a MODEL is trained with: exact ones, with a gradient, and the same for both."""

from __future__ import annotations

import pytest
from comfy_server import answer_in_host


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return answer_in_host("eight_bits.py", tmp_path_factory.mktemp("kernels"), None)


def test_student_and_teacher_predict_the_same_before_training(told):
    assert told["moved"] == 0


def test_weights_in_eight_bits_are_multiplied_so_outside_alone(told):
    assert told["apart"] > 0.005, "the host has no kernels of its own here"
    assert told["restored"]


def test_the_host_is_told_and_fp16_sums_keep_their_digits(told):
    """ComfyUI 0.3.64 wants to be told nothing."""
    knows, loses_digits = told["outside"]
    assert loses_digits and told["after"] == told["outside"]
    assert told["inside"] == [None if knows is None else True, False]
