"""Terms: the design's table, line by line, and the algebra of the target."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esd_core.method.objective import guided
from esd_core.method.terms import Term, prompts_of, terms

ETA = st.floats(0, 100)
SIGMA = st.floats(0.01, 200)
VALUES = st.lists(st.floats(-10, 10), min_size=3, max_size=3)
LINES = {
    "Van Gogh": Term("Van Gogh", "", "Van Gogh", "", 1.5),
    "Van Gogh -> painting": Term("Van Gogh", "painting", "Van Gogh", "", 1.5),
    "cowboy hat <- cowboy": Term("cowboy", "cowboy", "cowboy hat", "", 2.5),
}


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("line", LINES)
def test_a_line_asks_for_its_term(settings, line):
    config = settings({"concepts": [line], "negative_guidance": 1.5, "preserve_empty": False})
    (term,) = terms(config)
    assert term == LINES[line]
    assert str(term) == line


def test_preserved_prompts_come_after_the_concepts(settings):
    asked = settings({"concepts": [*LINES][1:], "preserve": ["a house"], "preserve_weight": 3.0})
    *_, empty, house = terms(asked)
    assert (empty, house) == (Term("", "", weight=3.0), Term("a house", "a house", weight=3.0))
    assert len(terms(asked)) == 2 + 2
    assert len(terms(settings({"preserve": ["a house"], "preserve_weight": 0.0}))) == 1


def test_prompts_are_named_once_and_the_empty_one_first(settings):
    asked = terms(settings({"concepts": [*LINES][1:], "preserve": ["painting"]}))
    assert prompts_of(asked) == ("", "Van Gogh", "painting", "cowboy hat", "cowboy")
    assert [term.rollout() for term in asked] == [
        ("Van Gogh", "", "painting"),
        ("cowboy", "", "cowboy hat"),
        ("",),
        ("painting", ""),
    ]


@pytest.mark.parametrize(
    ("push", "expected"),
    # anchor (1, 2), concept (3, 5), base (2, 1): concept - base is (1, 4)
    [(0.0, (1.0, 2.0)), (1.0, (0.0, -2.0)), (2.0, (-1.0, -6.0)), (0.5, (0.5, 0.0))],
)
def test_target_by_hand(push, expected):
    predicted = {"a": row(1, 2), "c": row(3, 5), "b": row(2, 1)}
    assert Term("s", "a", "c", "b", push).target(predicted).tolist() == list(expected)


def test_what_preserves_keeps_its_own_prediction():
    assert Term("p", "p", weight=2.0).target({"p": row(3, 5)}).tolist() == [3, 5]


def test_published_conventions_name_the_same_target():
    """The official scripts start from the concept itself, with an eta that is one more."""
    predicted = {"": row(2, 1), "c": row(3, 5)}
    for eta in (0.0, 1.0, 2.5):
        official = Term("c", "c", "c", "", eta + 1).target(predicted)
        assert torch.equal(Term("c", "", "c", "", eta).target(predicted), official)


def v_of(eps, x, sigma):
    """v = alpha eps - s x0 of Salimans and Ho, with alpha = 1 / scale and s = sigma / scale."""
    x0, scale = x - sigma * eps, (sigma**2 + 1) ** 0.5
    return (eps - sigma * x0) / scale


def flow_of(eps, x, sigma):
    """u = eps - x0 of rectified flow."""
    return eps - (x - sigma * eps)


@pytest.mark.parametrize("form", [v_of, flow_of])
@given(anchor=VALUES, concept=VALUES, base=VALUES, x=VALUES, eta=ETA, sigma=SIGMA)
def test_target_is_the_same_in_every_form(form, anchor, concept, base, x, eta, sigma):
    term, x = Term("s", "a", "c", "b", eta), row(*x) * sigma
    predicted = {"a": row(*anchor), "c": row(*concept), "b": row(*base)}
    in_eps = form(term.target(predicted), x, sigma)
    in_form = term.target({prompt: form(p, x, sigma) for prompt, p in predicted.items()})
    # the rounding of numbers of this size in float64
    size = 20 * (1 + eta) * (1 + sigma) ** 2
    torch.testing.assert_close(in_form, in_eps, rtol=0, atol=1e-13 * size)


@given(concept=VALUES, empty=VALUES, eta=ETA, guidance=st.floats(0, 20))
def test_an_ideal_student_makes_of_its_prompt_a_negative_one(concept, empty, eta, guidance):
    concept, empty = row(*concept), row(*empty)
    ideal = Term("c", "", "c", "", eta).target({"c": concept, "": empty})
    expected = empty - guidance * eta * (concept - empty)
    size = 20 * (1 + eta) * (1 + guidance)
    torch.testing.assert_close(guided(ideal, empty, guidance), expected, rtol=0, atol=1e-13 * size)
