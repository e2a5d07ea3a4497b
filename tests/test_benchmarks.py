"""The benchmarks themselves: what they count and compute, and how they are run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import simdev
import torch
from torch import nn

TESTS = Path(__file__).parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from benchmarks import batching, efficacy, full_size, gpu, probes, samples  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.figure import Figure, table  # noqa: E402
from benchmarks.official import official  # noqa: E402
from trainers import trainer_of  # noqa: E402

from esd_core.config.settings import ErasureConfig  # noqa: E402
from esd_core.method import templates  # noqa: E402
from esd_core.method.contexts import Draw  # noqa: E402
from esd_core.pocket.world import LOOKS, OBJECTS  # noqa: E402


def test_what_is_measured_on_a_gpu_is_tried_on_one_that_pretends(tmp_path, capsys):
    """A plan is no less than what is taken, and a part that fails is named."""
    if simdev.missing():
        pytest.skip(f"{simdev.MISSING}: {simdev.missing()}")
    report = gpu.Report(tmp_path)
    row = gpu._row(report, "esd-x, rank 16", "sim")
    name, planned, peak, ratio, seconds = row.strip("| ").split(" | ")
    assert planned.endswith(" MB") and peak.endswith(" MB") and float(seconds) > 0
    assert 1 <= float(ratio) < 1.2 and not report.failed
    report.run("nothing", ["-m", gpu.PART, "esd", "sim", "plan"])
    assert report.failed == ["nothing"]
    told = (tmp_path / "report.md").read_text()
    assert "**nothing FAILED** (exit code 2)" in told and "required: --model" in told


def test_a_figure_is_the_median_of_its_pairs():
    figure = Figure("step", "a against b", "s", 1.05, [1.0, 9.0, 6.0], [2.0, 3.0, 3.0])
    assert figure.pairs == [0.5, 3.0, 2.0] and figure.ratio == 2.0
    told = figure.as_dict()
    assert {"name", "ours", "other", "pairs", "ratio", "versions", "threads"} <= set(told)
    row = table([figure]).splitlines()[-1]
    assert row == "| `step`: a against b | 6 s | 3 s | 2.000 | 1.05 | 3 |"


@pytest.fixture
def counter(pipeline):
    return samples.Counter(pipeline)


@pytest.mark.parametrize("reuse", [1, 3])
def test_a_sample_costs_two_evaluations_and_the_students_own(counter, settings, reuse):
    """Two rounds of 6 samples in batches of 2, each used `reuse` times."""
    overrides = {
        "preserve_empty": False,
        "trajectory.reuse": reuse,
        "training.steps": 6 * reuse,
        "training.batch_size": 2,
    }
    cost = samples.per_sample(trainer_of(counter, settings(overrides)), counter)
    assert cost == pytest.approx(2 / reuse + 1)


def test_the_official_schedule_costs_a_trajectory_a_sample(counter, settings):
    """k + 1 evaluations of a pair, k uniform below 50: 51 on average, and the student's one."""
    overrides = {
        "preserve_empty": False,
        "trajectory.count": 50,
        "training.steps": 50,
        "training.batch_size": 3,
    }
    cost = samples.per_sample(official(counter, settings(overrides)), counter)
    deviation = 2 * (50**2 / 12) ** 0.5 / 150**0.5  # of the mean of 150 samples
    assert cost == pytest.approx(52, abs=4 * deviation)
    assert 2 < cost < 101


def test_one_at_a_time_predicts_the_same(denoiser):
    alone = batching.OneAtATime(denoiser.pipeline)
    rows = denoiser.encode(["a house", "", "a boat"], 64, 64)
    x, sigma = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    with torch.no_grad():
        together, apart = (d.predict(x, sigma, rows) for d in (denoiser, alone))
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(6, 5, 3, 2, 1)])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("weights_at_a_time", [1 << 22, 110, 1])
def test_layers_that_multiply_in_float_keep_their_gradients(
    make, trained, weights_at_a_time, monkeypatch
):
    """In float32 nothing is rounded: the same as torch's own, to its last bits."""
    monkeypatch.setattr(full_size, "_PART", weights_at_a_time)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, shape = make(), (2, 6, 8, 8)
        x = torch.randn(shape if isinstance(layer, nn.Conv2d) else (2, 3, 6), requires_grad=True)
    layer.requires_grad_(trained)
    tensors = [x, *layer.parameters()] if trained else [x]
    expected_out = layer(x)
    expected = torch.autograd.grad(expected_out.square().sum(), tensors)
    full_size.in_float(layer)
    out = layer(x)
    torch.testing.assert_close(out, expected_out)
    for got, wanted in zip(torch.autograd.grad(out.square().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_full_size_is_sdxls():
    with torch.device("meta"):
        unet = full_size.UNet2DConditionModel(**full_size.SDXL)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684


def test_a_random_model_of_small_size_stays_finite():
    denoiser = full_size.denoiser(torch.bfloat16, full_size.SMALL)
    rows = denoiser.encode(["Van Gogh", ""], 64, 64)
    with torch.no_grad():
        predicted = denoiser.predict(torch.randn(2, 4, 8, 8), torch.ones(2), rows)
    assert predicted.isfinite().all() and not predicted[0].equal(predicted[1])


# -- the command -----------------------------------------------------------------------------


def test_a_benchmark_prints_and_writes_its_result(tmp_path, capsys):
    file = tmp_path / "samples.json"
    main(["samples", "--pairs", "1", "--json", str(file)])
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(file.read_text())
    assert told["name"] == "samples" and len(told["pairs"]) == 1
    assert told["ratio"] == told["ours"][0] / told["other"][0]
    assert told["ours"] == [3.0] and told["also"][0]["ours"] == [1.5]


def test_make_hands_on_what_it_is_given():
    """Also inside `make test ARGS=...`, whose own ARGS would be handed on."""
    given = ["NAME=all", "JSON=a.json", "PAIRS=2", "ARGS="]
    words = ["make", "--no-print-directory", "--dry-run", "bench", *given]
    made = subprocess.run(words, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    command = made.stdout.splitlines()[-1].split()
    assert command[-6:] == ["benchmarks", "all", "--json", "a.json", "--pairs", "2"]


def test_struck_words_are_never_drawn(monkeypatch):
    monkeypatch.setattr(Draw, "word", Draw.word)  # put back afterwards
    monkeypatch.setattr(templates, "KNOWN", dict(templates.KNOWN))
    draw = Draw(ErasureConfig.from_mapping({"concepts": ["Monet"]}))
    names = ("Van Gogh", "owl", "sail boat", "House")
    assert {draw.word(names) for _ in range(60)} == {*names}
    efficacy.strike()
    assert {draw.word(names) for _ in range(60)} == {"owl"}


def test_what_is_erased_from_a_wider_concept_is_judged_within_it():
    asked = [[name, look] for name in OBJECTS for look in LOOKS]
    before = {"seen": [[*pair, *pair] for pair in asked]}
    line = "Van Gogh <- a house in the style of Van Gogh"
    pair = ["house", "Van Gogh"]
    within = [[*pair, "house", "plain"], [*pair, "tree", "plain"], [*pair, "house", "Van Gogh"]]
    run = {"lines": [line], "seen": before["seen"], "within": within, "wordings": {}}
    found = efficacy.shares(run, before)
    assert found["left"] == {"Van Gogh": 1 / 3} and found["beside"] == 2 / 3
    # Of everything else as much is shown as was.
    assert found["IRA"] == found["CRA"] == 1


def test_a_probe_is_held_against_pictures():
    """By hand: shares are 0.35 below those of pictures, and one is missed."""
    seen = [(0.65, 1.0), (0.15, 0.5), (0.05, 0.4), (-0.35, 0.0)]
    told = probes.table({"house": seen}).splitlines()
    assert told[2] == "| house | 65%, 100% | 15%, 50% | 5%, 40% | -35%, 0% |"
    assert told[-1].startswith("correlation: 1.000;") and "1 of 4" in told[-1]
