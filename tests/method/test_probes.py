"""Probes against their formulas, on a model whose predictions are known in closed form."""

import pytest
import torch
from trainers import bank_of, probes_of

from esd_core.method.probes import CONTROL_PROMPTS, TRAJECTORIES, Probes
from esd_core.method.terms import Term
from esd_core.training.student import FullStudent

# The concept is the second channel of "cowboy hat"; "cowboy" has the first one.
VECTORS = {"hat": (0, 2, 0, 0), "cowboy": (3, 2, 0, 0), "sky": (0, 0, 0, 1)}


def measured(probes, *gain):
    return probes.measure({"gain": torch.tensor(gain, dtype=torch.float32)})


@pytest.fixture
def model(toy):
    return toy(VECTORS)


@pytest.mark.parametrize(
    ("gain", "share", "distance"),
    [
        (1.0, 1.0, 1.0),  # untrained
        (0.0, 0.0, 0.0),  # the empty prompt's prediction
        (0.5, 0.5, 0.5),
        (-1.0, 0.0, 1.0),  # the target of eta = 1, on the other side: none is left
        (-2.0, 0.0, 2.0),
    ],
)
def test_share_and_distance_of_a_concept(model, settings, gain, share, distance):
    """eps(hat) - eps(empty) is gain times the teacher's, at every step, and so are the pictures."""
    report = measured(probes_of(model, settings({"concepts": ["hat"]})), 1, gain, 1, 1)
    assert report.share["hat"] == pytest.approx(share, abs=1e-5)
    assert report.distance["hat"] == pytest.approx(distance, abs=1e-5)


def test_what_is_at_right_angles_is_no_share_but_a_distance(model, settings):
    """Fourth channel aside: the prompt's vector is (3, 2), d is (3, 2); the student gives (3, 0).

    share = <(3, 0), (3, 2)> / <(3, 2), (3, 2)> = 9 / 13, distance = 3 / sqrt(13).
    """
    report = measured(probes_of(model, settings({"concepts": ["cowboy"]})), 1, 0, 1, 1)
    assert report.share["cowboy"] == pytest.approx(9 / 13, rel=1e-5)
    assert report.distance["cowboy"] == pytest.approx(3 / 13**0.5, rel=1e-5)


def test_what_goes_beyond_in_one_picture_does_not_make_good_what_another_shows(toy, settings):
    """The student has unlearnt the hat, and more, where a picture's last channel is bright."""

    class Moody(toy):
        def predict(self, x, sigma, conditioning):
            bright.append((x[:, 3].mean((1, 2)) > 0).tolist())
            plain = super().predict(x, sigma, conditioning)
            with self.swapped({"gain": self.teacher}):
                untrained = super().predict(x, sigma, conditioning)
            is_bright = torch.tensor(bright[-1])[:, None, None, None]
            return torch.where(is_bright, plain, untrained)

    bright = []
    report = measured(probes_of(Moody(VECTORS), settings({"concepts": ["hat"]})), 1, -2, 1, 1)
    dark = bright[0][:TRAJECTORIES].count(False)
    assert 0 < dark < TRAJECTORIES
    assert report.share["hat"] == pytest.approx((dark / TRAJECTORIES) ** 0.5, abs=1e-5)


@pytest.mark.parametrize(("gain", "share"), [(1.0, 1.0), (0.0, 0.0), (0.25, 0.25), (-0.5, 0.0)])
def test_share_of_what_is_erased_from_a_wider_prompt(model, settings, gain, share):
    """The cowboy's own channel stays: without the hat's, (0, 2), that is all there is."""
    line = "hat <- cowboy"
    report = measured(probes_of(model, settings({"concepts": [line]})), 1, gain, 1, 1)
    assert report.share == {line: pytest.approx(share, abs=1e-5)}
    assert report.distance[line] == pytest.approx(abs(gain), abs=1e-5)


def test_share_where_the_wider_prompt_has_nothing_of_the_concept(model, settings):
    """d = (0, 2) of the hat, and the sky has none of it: nothing is taken away, all is left."""
    line = "hat <- sky"
    report = measured(probes_of(model, settings({"concepts": [line]})), 1, 0, 1, 1)
    assert report.share[line] == pytest.approx(1.0, abs=1e-5)


def test_of_several_prompts_the_worst_is_told(toy, settings):
    """The student has unlearnt the first channel: the hat's is left, in whatever holds it."""
    model = toy({**VECTORS, "a cowboy": (2, 0, 0, 0), "": (0, 0, 0, 0)})
    asked = [Term(p, "", p) for p in ("a cowboy", "cowboy", "hat")]
    probes = Probes(model, {"cowboy": asked}, settings({"concepts": ["cowboy"]}))
    report = measured(probes, 0, 1, 1, 1)
    assert report.share["cowboy"] == pytest.approx(1.0, abs=1e-5)
    assert report.prompt == {"cowboy": "hat"}
    report = measured(probes, 0, 0.5, 1, 1)
    assert report.share["cowboy"] == pytest.approx(0.5, abs=1e-5)


def test_a_context_is_compared_with_the_same_without_the_concept(model, settings):
    """A hat on a cowboy, d = (0, 2): the cowboy does not count, and stays."""
    term = Term("cowboy", "sky", "cowboy", "sky", 1.0)
    probes = Probes(model, {"hat": [term]}, settings({"concepts": ["hat"]}))
    # student (3, 1, 0, 0), teacher (3, 2, 0, 0), the sky (0, 0, 0, 1): d = (3, 2, 0, -1)
    report = measured(probes, 1, 0.5, 1, 1)
    assert report.share["hat"] == pytest.approx(1 - 2 / 14, abs=1e-5)
    assert report.distance["hat"] == pytest.approx((11 / 14) ** 0.5, rel=1e-5)


def test_a_context_in_which_the_concept_says_nothing_does_not_count(model, settings):
    asked = [Term("hat", "", "hat"), Term("sky", "sky", "sky", "sky")]
    probes = Probes(model, {"hat": asked}, settings({"concepts": ["hat"]}))
    report = measured(probes, 1, 0, 1, 1)
    assert report.prompt == {"hat": "hat"} and abs(report.share["hat"]) < 1e-5


def test_drift_by_hand(toy, settings):
    """Without the common part eps(sky) is its vector: the drift is the change of its channel."""
    model = toy(VECTORS, shared=0.0)
    probes = probes_of(
        model, settings({"concepts": ["hat"], "preserve": ["sky"], "preserve_empty": False})
    )
    report = measured(probes, 0, 0, 0, 0.7)
    assert report.drift["sky"] == pytest.approx(0.3, rel=1e-5)
    # every unrelated prompt is (1, 1, 1, 1) / 2 to the toy, of which 0, 0, 0 and 0.7 are left
    for prompt in CONTROL_PROMPTS:
        assert report.drift[prompt] == pytest.approx(((3 + 0.09) / 4) ** 0.5, rel=1e-5)


def test_the_empty_prompt_drifts_only_when_it_moves(model, settings):
    report = measured(probes_of(model, settings({"concepts": ["hat"]})), 0, 0, 0, 0)
    assert report.drift[""] == 0.0
    assert all(report.drift[prompt] > 0 for prompt in CONTROL_PROMPTS)


def test_all_of_it_is_reported(model, settings):
    lines = ["hat -> sky", "cowboy"]
    probes = probes_of(model, settings({"concepts": lines, "preserve": ["sky"]}))
    report = measured(probes, 1, 1, 1, 1).as_dict()
    assert set(report) == {"share", "prompt", "distance", "reach", "drift"}
    assert all(set(report[what]) == set(lines) for what in ("share", "distance", "reach"))
    assert report["prompt"] == {"hat -> sky": "hat", "cowboy": "cowboy"}
    assert set(report["drift"]) == {"", "sky", *CONTROL_PROMPTS}


def test_an_untrained_student_of_a_real_network(denoiser, settings):
    config = settings()
    probes = probes_of(denoiser, config)
    names = [name for name in denoiser.parameters() if ".attn2." in name]
    student = FullStudent(denoiser.parameters(), names, torch.float32)
    report = probes.measure(student.tensors())
    assert report.share["Van Gogh"] == pytest.approx(1.0, abs=1e-4)
    assert report.distance["Van Gogh"] == pytest.approx(1.0, abs=1e-4)
    assert max(report.drift.values()) < 1e-5


def test_the_noise_is_held_out_and_always_the_same(toy, settings):
    """Runs of other seeds are measured alike, at states that none of them is trained on."""
    reports, trained = [], []
    for seed in (0, 1):
        config = settings({"concepts": ["hat"], "seed": seed})
        bank = bank_of(toy(VECTORS), config)
        probes = probes_of(bank.denoiser, config)
        reports.append(measured(probes, 1, 0.3, 1, 1))
        trained += rows_of(bank.sample_round(0, torch.Generator().manual_seed(seed)).x)
    assert reports[0] == reports[1]
    looked_at = []
    predict = bank.denoiser.predict
    bank.denoiser.predict = lambda x, *rest: looked_at.extend(rows_of(x)) or predict(x, *rest)
    measured(probes, 1, 1, 1, 1)
    assert looked_at and not set(looked_at) & set(trained)


def rows_of(x):
    return [tuple(row.flatten().tolist()) for row in x]


@pytest.mark.parametrize(("steps", "expected"), [(3, 3), (1, 1), (20, 5)])
def test_they_follow_no_longer_trajectories_than_the_training(model, settings, steps, expected):
    """Up to five steps, as the model is asked for a schedule of."""
    config = settings({"concepts": ["hat"], "trajectory.steps": steps})
    asked, schedule = set(), model.schedule
    model.schedule = lambda steps, *size: asked.add(steps) or schedule(steps, *size)
    probes_of(model, config)
    assert asked == {expected}
