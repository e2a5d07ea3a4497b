"""A ruined model is told from an erased one, with what was measured on pocket."""

import pytest

from esd_core.training.collapse import collapse

SOUND = {"": 0.019, "a photo of a dog": 0.018, "a portrait of a woman": 0.028, "a city": 0.020}
"""Of a run of the preset, after which all other names are drawn as before."""


def test_a_sound_run_is_not_warned_of():
    assert collapse({"drift": SOUND, "reach": {"Van Gogh": 0.052}}, 1.0) == ""


def test_a_ruined_model_is_named_with_the_way_out():
    told = collapse({"drift": dict.fromkeys(SOUND, 1.03), "reach": {"Van Gogh": 0.052}}, 1.0)
    assert "the model is ruined" in told and "103%" in told and "10%" in told
    assert "`training.learning_rate`" in told and "`training.max_drift`" in told


@pytest.mark.parametrize(("eta", "is_ruined"), [(0.0, True), (3.0, False)])
def test_the_bar_is_how_far_the_concept_itself_is_to_move(eta, is_ruined):
    probes = {"drift": {"": 0.2, "a photo of a dog": 0.3}, "reach": {"Van Gogh": 0.1}}
    assert bool(collapse(probes, eta)) is is_ruined


def test_one_prompt_near_the_concept_may_move():
    drift = {**SOUND, "a portrait of a woman": 0.9}
    assert collapse({"drift": drift, "reach": {"woman": 0.1}}, 1.0) == ""


@pytest.mark.parametrize("probes", [{}, {"drift": SOUND}])
def test_files_of_earlier_versions_tell_nothing(probes):
    assert collapse(probes, 1.0) == ""
