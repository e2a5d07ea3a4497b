"""The bank: what is recorded equals a direct evaluation, and what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esd_core.errors import ConfigError
from esd_core.method.bank import Bank, Samples

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
        return denoiser.predict_noise(x[None], sigma[None], row)[0]


def bank_of(denoiser, settings, student=None, **overrides):
    bank = Bank(denoiser, settings({"negative_guidance": ETA, **overrides}))
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
    bank, samples = bank_of(denoiser, settings, student, concepts=[line])
    prompt, formula = ERASING[line]
    met = assert_targets(denoiser, bank, samples, {prompt: formula})
    assert met == {(True, prompt), (False, "")}


@pytest.mark.parametrize("on_policy", [False, True])
def test_kinds_of_concepts_mix_in_one_round(denoiser, settings, on_policy):
    """With further prompts and without; with a preserved prompt, and the empty one."""
    student = changed(denoiser) if on_policy else None
    lines = ["Van Gogh", "cowboy hat <- cowboy"]
    bank, samples = bank_of(denoiser, settings, student, concepts=lines, preserve=["a house"])
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
    _, samples = bank_of(denoiser, settings)
    assert_follows(denoiser, samples, "Van Gogh")


def test_on_policy_states_are_the_students(denoiser, settings):
    student = changed(denoiser)
    _, samples = bank_of(denoiser, settings, student)
    with denoiser.swapped(student):
        assert_follows(denoiser, samples, "Van Gogh")


def assert_follows(denoiser, samples, prompt, guidance=3.0):
    schedule = denoiser.schedule(STEPS)
    x = torch.randn((COUNT, 4, 8, 8), generator=stream()) * schedule.initial_scale
    for step, sigma in enumerate(schedule.sigmas[:-1]):
        rows = samples.x[step * COUNT : (step + 1) * COUNT]
        assert distance(rows, x) < 1e-5, step
        for i in range(COUNT):
            empty, own = (eps(denoiser, x[i], sigma, p) for p in ("", prompt))
            following = schedule.sigmas[step + 1]
            x[i] += (following - sigma) * (empty + guidance * (own - empty))


def test_sigmas_are_the_schedules(denoiser, settings):
    _, samples = bank_of(denoiser, settings)
    expected = denoiser.schedule(STEPS).sigmas[:-1].repeat_interleave(COUNT)
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
    bank, samples = bank_of(toy({}), settings, **overrides)
    erasing, preserving = prompts_of(bank, samples)
    assert len(erasing) == len(preserving) == count * STEPS


@pytest.mark.parametrize("named", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_preserved_prompt_has_its_turn(toy, settings, count, named):
    """The empty one too; over as many rounds as there are prompts, each has its share."""
    preserve = [f"prompt {i}" for i in range(named)]
    bank = Bank(toy({}), settings({"preserve": preserve, "trajectory.count": count}))
    noise, met = stream(), []
    for index in range(2 * (named + 1)):
        met += prompts_of(bank, bank.sample_round(index, noise))[1]
    assert set(met) == {"", *preserve}


def test_shares_of_preserved_prompts_are_equal(toy, settings):
    """Three named and the empty one, four trajectories: one each."""
    preserve = ["a", "b", "c"]
    overrides = {"preserve": preserve, "trajectory.count": 4}
    bank, samples = bank_of(toy({}), settings, **overrides)
    _, preserving = prompts_of(bank, samples)
    assert {p: preserving.count(p) for p in preserving} == dict.fromkeys(["", *preserve], STEPS)


def test_without_the_empty_prompt_only_named_ones_are_preserved(toy, settings):
    overrides = {"preserve": ["a"], "preserve_empty": False}
    bank, samples = bank_of(toy({}), settings, **overrides)
    assert set(prompts_of(bank, samples)[1]) == {"a"}
    assert len(samples) == 2 * samples.erasing
    bank, samples = bank_of(toy({}), settings, preserve_empty=False)
    assert len(samples) == samples.erasing == COUNT * STEPS


def test_weights(toy, settings):
    _, samples = bank_of(toy({}), settings, preserve=["a"], preserve_weight=0.25)
    assert set(samples.weight[: samples.erasing].tolist()) == {1.0}
    assert set(samples.weight[samples.erasing :].tolist()) == {0.25}


def test_a_weight_of_nothing_preserves_nothing(toy, settings):
    _, samples = bank_of(toy({}), settings, preserve=["a"], preserve_weight=0.0)
    assert len(samples) == samples.erasing


def test_concepts_come_in_turn(toy, settings):
    lines = ["one", "two -> a", "three <- b"]
    bank = Bank(toy({}), settings({"concepts": lines}))
    noise = stream()
    rounds = [set(prompts_of(bank, bank.sample_round(i, noise))[0]) for i in range(3)]
    # the student's prompts: "b" is what the third concept is erased from
    assert rounds == [{"one", "two"}, {"b", "one"}, {"two", "b"}]


def test_rounds_differ_and_repeat_with_their_seed(toy, settings):
    bank = Bank(toy({}), settings())
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
    bank, samples = bank_of(model, settings, student, **overrides)
    assert len(samples) == 2 * samples.erasing
    assert bank.evaluations == a_sample * samples.erasing
    assert model.rows == bank.evaluations


def test_evaluations_for_a_preserved_prompt(toy, settings):
    """Two a sample as well; half of what preserves is the empty prompt, which is free."""
    model = toy({})
    bank, samples = bank_of(model, settings, preserve=["a"])
    assert model.rows == bank.evaluations == 2 * samples.erasing + 2 * samples.erasing // 2


# -- the order of samples --------------------------------------------------------------------


def blank(erasing, preserving):
    count = erasing + preserving
    return Samples(
        torch.zeros(count, 1, 1, 1),
        torch.zeros(count),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, 1, 1, 1),
        torch.ones(count),
        erasing,
    )


def test_every_sample_comes_as_often_as_it_is_reused():
    order = blank(6, 6).order(stream(), batch_size=4, reuse=3)
    assert order.shape == (9, 4)
    assert order.flatten().bincount().tolist() == [3] * 12
    passes = order.view(3, 12)
    assert all(sorted(p) == list(range(12)) for p in passes.tolist())
    assert len({tuple(p) for p in passes.tolist()}) == 3


@given(
    count=st.integers(1, 30),
    batch_size=st.integers(2, 12),
    reuse=st.integers(1, 3),
    preserves=st.booleans(),
)
def test_batches_erase_and_preserve_in_halves(count, batch_size, reuse, preserves):
    samples = blank(count, count if preserves else 0)
    order = samples.order(stream(), batch_size, reuse)
    erasing = order < count
    preserve_share = batch_size // 2 if preserves else 0
    erase_share = batch_size - preserve_share
    assert (erasing.sum(1) == min(erase_share, count)).all()
    assert ((~erasing).sum(1) == min(preserve_share, count)).all()
    used = order[erasing].bincount(minlength=count)
    assert used.max() <= reuse
    # only what fills no batch of a pass is left out
    assert reuse * count - used.sum() <= reuse * (erase_share - 1)
    assert len(order) >= reuse


def test_the_order_is_the_streams():
    one, two, other = (blank(20, 20).order(stream(seed), 4, 1).tolist() for seed in (1, 1, 2))
    assert one == two != other


# -- what is refused -------------------------------------------------------------------------


def test_a_concept_that_says_nothing_is_refused(toy, settings):
    """Its tokens are those of the empty prompt."""
    with pytest.raises(ConfigError, match='"nothing" encodes to the same tokens'):
        Bank(toy({"nothing": (0, 0, 0, 0)}), settings({"concepts": ["nothing"]}))
