"""The bank: what is recorded equals a direct evaluation, and what it costs."""

from functools import partial

import pytest
import torch
from trainers import bank_of

from esd_core.errors import ConfigError
from esd_core.method.terms import RoundTerms, Term

STEPS, COUNT, ETA = 3, 2, 1.5
"""Of the small config's trajectories, and an eta that is not the default."""


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def distance(got, expected):
    """Relative; float32 rounding stays below 1e-5, and prompts differ by a tenth."""
    return float((got - expected).norm() / expected.norm())


def eps(denoiser, x, sigma, prompt):
    """The model's prediction for one sample, the prompt encoded anew."""
    with torch.no_grad():
        row = denoiser.encode([prompt], 64, 64)
        return denoiser.predict(x[None], sigma[None], row)[0]


def sampled(denoiser, settings, student=None, **overrides):
    """A bank, and its first round."""
    bank = bank_of(denoiser, settings({"negative_guidance": ETA, **overrides}))
    return bank, bank.sample_round(0, stream(), student)


# -- targets ---------------------------------------------------------------------------------

# concept line -> the student's prompt, and the target from e, the model's prediction for a prompt
ERASING = {
    "Van Gogh": ("Van Gogh", lambda e: e("") - ETA * (e("Van Gogh") - e(""))),
    "Van Gogh -> painting": (
        "Van Gogh",
        lambda e: e("painting") - ETA * (e("Van Gogh") - e("")),
    ),
    "cowboy hat <- cowboy": (
        "cowboy",
        lambda e: e("cowboy") - (ETA + 1) * (e("cowboy hat") - e("")),
    ),
}


def assert_targets(denoiser, bank, samples, formulas):
    """Every third sample, against predictions made one by one.

    formulas: of the erasing samples, by the student's prompt. Returns what was met.
    """
    met = set()
    for i in range(0, len(samples), 3):
        prompt, erases = bank.prompts[samples.condition[i]], i < samples.erasing

        def e(text, x=samples.x[i], sigma=samples.sigma[i]):
            return eps(denoiser, x, sigma, text)

        expected = formulas[prompt](e) if erases else e(prompt)
        assert distance(samples.target[i], expected) < 1e-5
        met.add((erases, prompt))
    return met


@pytest.mark.parametrize("line", ERASING)
@pytest.mark.parametrize("on_policy", [False, True])
def test_targets_are_the_teachers_at_the_same_states(denoiser, settings, line, on_policy):
    student = changed(denoiser) if on_policy else None
    bank, samples = sampled(denoiser, settings, student, concepts=[line])
    prompt, formula = ERASING[line]
    met = assert_targets(denoiser, bank, samples, {prompt: formula})
    assert met == {(True, prompt), (False, "")}


@pytest.mark.parametrize("on_policy", [False, True])
def test_kinds_of_concepts_mix_in_one_round(denoiser, settings, on_policy):
    """With further prompts and without; with a preserved prompt, and the empty one."""
    student = changed(denoiser) if on_policy else None
    lines = ["Van Gogh", "cowboy hat <- cowboy"]
    bank, samples = sampled(denoiser, settings, student, concepts=lines, preserve=["a house"])
    met = assert_targets(denoiser, bank, samples, dict(ERASING[line] for line in lines))
    assert {(True, "Van Gogh"), (True, "cowboy")} <= met
    assert {bank.prompts[c] for c in samples.condition[samples.erasing :]} == {"", "a house"}


def changed(denoiser):
    """A student that is far from its teacher."""
    name = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    noise = torch.randn(denoiser.parameters()[name].shape, generator=stream(9))
    return {name: denoiser.parameters()[name] + noise}


def test_states_are_those_of_guided_euler(denoiser, settings):
    """Two trajectories, followed by hand from the round's noise."""
    _, samples = sampled(denoiser, settings)
    assert_follows(denoiser, samples, ["Van Gogh"] * STEPS)


def test_on_policy_states_are_the_students(denoiser, settings):
    student = changed(denoiser)
    _, samples = sampled(denoiser, settings, student)
    with denoiser.swapped(student):
        assert_follows(denoiser, samples, ["Van Gogh"] * STEPS)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_terms_lead_a_trajectory_in_turn(denoiser, settings, turns, on_policy):
    """In one round without a break, as the formula has it for each step; one that needs more
    predictions than another, too. A fourth term finds no step of the three."""
    prompts = ["Van Gogh", "a boat by Van Gogh", "Van Gogh's art", "no step"]
    anchors = ["", "a boat", "art", "none"]
    led = tuple(
        Term(prompt, anchor, prompt, anchor, ETA)
        for prompt, anchor in zip(prompts[:turns], anchors, strict=False)
    )
    bank = bank_of(denoiser, settings({"trajectory.count": COUNT}), source=Led((led,) * COUNT))
    student = changed(denoiser) if on_policy else {}
    samples = bank.sample_round(0, stream(), student)
    by_sigma = samples.sigma.argsort(descending=True, stable=True)
    chosen = by_sigma[by_sigma < samples.erasing]
    samples = samples.select(chosen)
    of_step = {1: [0, 0, 0], 2: [0, 1, 1]}.get(turns, [0, 1, 2])
    asked = [bank.prompts[c] for c in samples.condition.tolist()]
    assert asked == [prompts[place] for place in of_step for _ in range(COUNT)]
    with denoiser.swapped(student):
        assert_follows(denoiser, samples, [prompts[place] for place in of_step])
    formulas = {term.student: partial(led_target, term) for term in led}
    assert_targets(denoiser, bank, samples, formulas)


def led_target(term, e):
    return e(term.anchor) - ETA * (e(term.student) - e(term.anchor))


class Led:
    """Terms of every round, each trajectory led by several."""

    preserves_anchors, preserving = True, 1

    def __init__(self, followed):
        self.terms = tuple({term: None for led in followed for term in led})
        self._round = RoundTerms(followed)

    def of_round(self, index):
        return self._round


def assert_follows(denoiser, samples, prompts, guidance=3.0):
    """prompts: that of every step."""
    schedule = denoiser.schedule(STEPS, 64, 64)
    x = torch.randn((COUNT, 4, 8, 8), generator=stream()) * schedule.initial_scale
    for step, sigma in enumerate(schedule.sigmas[:-1]):
        rows = samples.x[step * COUNT : (step + 1) * COUNT]
        assert distance(rows, x) < 1e-5, step
        for i in range(COUNT):
            empty, own = (eps(denoiser, x[i], sigma, p) for p in ("", prompts[step]))
            following = schedule.sigmas[step + 1]
            x[i] += (following - sigma) * (empty + guidance * (own - empty))


def test_sigmas_are_the_schedules(denoiser, settings):
    _, samples = sampled(denoiser, settings)
    expected = denoiser.schedule(STEPS, 64, 64).sigmas[:-1].repeat_interleave(COUNT)
    assert torch.equal(samples.sigma[: samples.erasing], expected)
    assert set(samples.sigma.tolist()) <= set(expected.tolist())


# -- what a round holds ----------------------------------------------------------------------


def prompts_of(bank, samples):
    named = [bank.prompts[c] for c in samples.condition.tolist()]
    return named[: samples.erasing], named[samples.erasing :]


@pytest.mark.parametrize("named", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_much_preserves_as_erases(toy, settings, count, named):
    preserve = [f"prompt {i}" for i in range(named)]
    overrides = {"preserve": preserve, "trajectory.count": count}
    bank, samples = sampled(toy({}), settings, **overrides)
    erasing, preserving = prompts_of(bank, samples)
    assert len(erasing) == len(preserving) == count * STEPS


@pytest.mark.parametrize("named", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_preserved_prompt_has_its_turn(toy, settings, count, named):
    """The empty one too; over as many rounds as there are prompts, each has its share."""
    preserve = [f"prompt {i}" for i in range(named)]
    bank = bank_of(toy({}), settings({"preserve": preserve, "trajectory.count": count}))
    noise, met = stream(), []
    for index in range(2 * (named + 1)):
        met += prompts_of(bank, bank.sample_round(index, noise))[1]
    assert set(met) == {"", *preserve}


def test_shares_of_preserved_prompts_are_equal(toy, settings):
    """Three named and the empty one, four trajectories: one each."""
    preserve = ["a", "b", "c"]
    overrides = {"preserve": preserve, "trajectory.count": 4}
    bank, samples = sampled(toy({}), settings, **overrides)
    _, preserving = prompts_of(bank, samples)
    assert {p: preserving.count(p) for p in preserving} == dict.fromkeys(["", *preserve], STEPS)


def test_without_the_empty_prompt_only_named_ones_are_preserved(toy, settings):
    overrides = {"preserve": ["a"], "preserve_empty": False}
    bank, samples = sampled(toy({}), settings, **overrides)
    assert set(prompts_of(bank, samples)[1]) == {"a"}
    assert len(samples) == 2 * samples.erasing
    bank, samples = sampled(toy({}), settings, preserve_empty=False)
    assert len(samples) == samples.erasing == COUNT * STEPS


def test_weights(toy, settings):
    _, samples = sampled(toy({}), settings, preserve=["a"], preserve_weight=0.25)
    assert set(samples.weight[: samples.erasing].tolist()) == {1.0}
    assert set(samples.weight[samples.erasing :].tolist()) == {0.25}


def test_a_weight_of_nothing_preserves_nothing(toy, settings):
    _, samples = sampled(toy({}), settings, preserve=["a"], preserve_weight=0.0)
    assert len(samples) == samples.erasing


def test_concepts_come_in_turn(toy, settings):
    lines = ["one", "two -> a", "three <- b"]
    bank = bank_of(toy({}), settings({"concepts": lines}))
    noise = stream()
    rounds = [set(prompts_of(bank, bank.sample_round(i, noise))[0]) for i in range(3)]
    # the student's prompts: "b" is what the third concept is erased from
    assert rounds == [{"one", "two"}, {"b", "one"}, {"two", "b"}]


def test_rounds_differ_and_repeat_with_their_seed(toy, settings):
    bank = bank_of(toy({}), settings())
    noise, again = stream(3), stream(3)
    first, second = (bank.sample_round(i, noise) for i in range(2))
    for name, tensor in bank.sample_round(0, again).tensors().items():
        assert torch.equal(tensor, first.tensors()[name]), name
    assert not torch.equal(first.x, second.x)


# -- what it costs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "on_policy", "a_sample"),
    [
        ({}, False, 2),
        ({"concepts": [f"concept {i}" for i in range(10)]}, False, 2),
        ({"concepts": ["x -> a"]}, False, 3),
        ({"concepts": ["x <- a"]}, False, 3),
        # the student samples on two prompts, and the teacher gives the targets
        ({}, True, 4),
        ({"concepts": ["x -> a"]}, True, 5),
    ],
)
def test_evaluations_a_sample(toy, settings, overrides, on_policy, a_sample):
    """The empty prompt is preserved at no cost at all."""
    model = toy({})
    student = {"gain": torch.zeros(4)} if on_policy else None
    bank, samples = sampled(model, settings, student, **overrides)
    assert len(samples) == 2 * samples.erasing
    assert bank.evaluations == a_sample * samples.erasing
    assert model.rows == bank.evaluations


def test_evaluations_for_a_preserved_prompt(toy, settings):
    """Two a sample as well; half of what preserves is the empty prompt, which is free."""
    model = toy({})
    bank, samples = sampled(model, settings, preserve=["a"])
    assert model.rows == bank.evaluations == 2 * samples.erasing + 2 * samples.erasing // 2


# -- what is refused -------------------------------------------------------------------------


def test_a_concept_that_says_nothing_is_refused(toy, settings):
    """Its tokens are those of the empty prompt."""
    with pytest.raises(ConfigError, match='"nothing" encodes to the same tokens'):
        bank_of(toy({"nothing": (0, 0, 0, 0)}), settings({"concepts": ["nothing"]}))
