"""Every form of line erases, by every preset that ships."""

import pytest
from trainers import probes_of

from esd_core.config.mappings import override
from esd_core.config.presets import load_preset, preset_names
from esd_core.config.settings import ErasureConfig
from esd_core.models.loading import load_denoiser
from esd_core.training.run import erase

LINES = ("Van Gogh", "Van Gogh -> Mondrian", "Van Gogh <- a house in the style of Van Gogh")
SHORT = {
    "width": 64,
    "height": 64,
    "trajectory": {"steps": 4, "count": 2, "reuse": 2},
    "training": {"steps": 12, "precision": "fp32", "warmup": 0, "probe_every": 0},
}


@pytest.fixture(scope="module")
def pocket():
    return load_denoiser("pocket", "fp32", "cpu")


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("preset", preset_names())
def test_a_short_run_has_something_to_learn_and_learns_it(pocket, recorder, preset, line):
    """The first loss is that of the samples that erase: the student is the teacher yet."""
    settings = override(load_preset(preset), {**SHORT, "concepts": [line]})
    config = ErasureConfig.from_mapping(settings)
    outcome = erase(pocket, config, recorder(), recorder()).outcome
    assert outcome.losses[0] > 1e-6
    # published rates move pocket little in eight steps: a hundred times more than rounding does
    untrained = probes_of(pocket, config).measure({}).share[line]
    assert untrained == pytest.approx(1.0, abs=1e-5)
    assert outcome.probes.share[line] < 1 - 1e-3
