"""Contexts: what is drawn, what it asks for, and that it is the seed's."""

import re
from itertools import chain

import pytest
import torch
from trainers import bank_of

from esd_core.config.concepts import parse
from esd_core.errors import ConfigError
from esd_core.method.contexts import MOST, ROOM, ContextTerms, Draw, probed, term_source
from esd_core.method.rounds import Rounds
from esd_core.method.templates import (
    ACT,
    OBJECT,
    PERSON,
    ROLES,
    STYLE,
    Template,
    own_role,
    plural,
    roles_of,
)
from esd_core.method.terms import LineTerms, Term, prompts_of
from esd_core.method.words import OBJECTS, STYLES
from esd_core.models.architectures import FLUX2, HIDREAM, SDXL, WAN

ROLE_KINDS = [STYLE, OBJECT, PERSON, ACT]
AUTO = {"contexts": ["auto"], "negative_guidance": 1.5, "preserve_weight": 3.0}


def drawn(settings, rounds=8, different=0, turns=1, **overrides):
    return ContextTerms(settings({**AUTO, **overrides}), rounds, different or rounds, turns)


def leading(round_terms):
    """All terms of a round's trajectories, in order."""
    return [*chain(*round_terms.followed)]


def erasing(source, rounds=8):
    terms = [term for index in range(rounds) for term in leading(source.of_round(index))]
    return [term for term in terms if term.concept is not None]


def preserving(source, rounds=8):
    found = [source.of_round(index) for index in range(rounds)]
    followed = [term for r in found for term in leading(r) if term.concept is None]
    return followed + [term for r in found for term in r.beside]


# -- templates and words ---------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLE_KINDS)
def test_every_template_names_the_concept_and_its_context_does_not(role):
    for template in (*role.plain, *role.mixed, *role.held_out):
        assert len(re.findall(r"\{c(:s)?\}", template.text)) == 1 and "{c" not in template.without
        assert ("{w}" in template.text) == ("{w}" in template.without)
    assert all("{w}" not in template.text for template in role.plain)
    assert all("{w}" in template.text for template in role.mixed)


@pytest.mark.parametrize("role", ROLE_KINDS)
def test_what_probes_ask_is_not_trained_on(role):
    trained = {template.text for template in (*role.plain, *role.mixed)}
    assert role.held_out and not trained & {template.text for template in role.held_out}


def test_the_lists_are_broad_and_name_nothing_twice():
    assert len(OBJECTS) >= 1000 and len(STYLES) >= 200
    for words in (OBJECTS, STYLES):
        assert len({word.casefold() for word in words}) == len(words)
        assert all(word == word.strip() and word for word in words)


def test_articles_fit_their_words():
    template = Template("a {c} in the style of a {w}", "art of a {w}").with_words("owl")
    assert template.prompt("apple") == "an apple in the style of an owl"
    assert template.anchor() == "art of an owl"


@pytest.mark.parametrize(
    ("noun", "several"),
    [("boat", "boats"), ("fox", "foxes"), ("church", "churches"), ("lady", "ladies")]
    + [("toy", "toys"), ("Van Gogh", "Van Goghs"), ("LENS", "LENSes")],
)
def test_several_of_a_noun(noun, several):
    assert plural(noun) == several
    template = Template("two {a} {c:s}").with_words("", "old")
    assert template.prompt(noun) == f"two old {several}"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("a {} painting of a house", "painting of a house"),
        ("a house in the style of {}", "a house"),
        ("a photo of {}", "a photo"),
        ("{}", ""),
        ("a garden with a {} in it", "a garden in it"),
    ],
)
def test_an_own_template_without_its_concept(text, without):
    (template,) = own_role([text]).plain
    assert template.prompt("owl") == text.replace("a {}", "an {}").replace("{}", "owl")
    assert template.without == without


@pytest.mark.parametrize("template", ["no place", "two {} of {}", "{} and {}"])
def test_a_template_without_one_place_is_refused(settings, template):
    with pytest.raises(ConfigError, match="`contexts` has"):
        settings({"contexts": [template]})


# -- terms -----------------------------------------------------------------------------------


def test_without_contexts_lines_are_learnt_by_their_bare_names(settings):
    assert isinstance(term_source(settings(), SDXL), LineTerms)
    assert isinstance(term_source(settings(AUTO), SDXL), ContextTerms)


def test_a_concept_is_pushed_from_the_same_prompt_without_it(settings):
    found = erasing(drawn(settings))
    assert len(found) == 16
    for term in found:
        assert "Van Gogh" in term.student and term.student == term.concept
        assert "Van Gogh" not in term.anchor and term.base == term.anchor
        assert 1 <= term.push <= 1.5 and term.weight == 1.0


def test_an_anchor_takes_the_concepts_place_in_its_context(settings):
    for term in erasing(drawn(settings, concepts=["Van Gogh -> Mondrian"])):
        assert term.anchor == term.student.replace("Van Gogh", "Mondrian") == term.base


def test_what_is_erased_from_stays_in_its_context(settings):
    for term in erasing(drawn(settings, concepts=["hat <- cowboy"])):
        assert "cowboy" in term.student and term.anchor == term.student
        assert (term.concept, term.base, term.push) == ("hat", "", 2.5)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Van Gogh (object)", "object"),
        ("Van Gogh", "style"),
        ("a House", "object"),
        ("a smurf", ""),
    ],
)
def test_a_kind_decides_the_templates(settings, line, kind):
    """Said by the person, or else by the list that has the name."""
    concept, roles = parse(line), ROLES[kind]
    assert roles_of(concept) == roles
    texts = {t.text.partition("{c")[0] for r in roles for t in r.plain + r.mixed}
    for term in erasing(drawn(settings, concepts=[line])):
        before = term.student.partition(concept.name)[0]
        assert any(
            re.match(re.sub(r"\{[wa]\}", ".+", t.replace("a {a}", "an? {a}")), before)
            for t in texts
        )


@pytest.mark.parametrize("different", [7, 2], ids=["each once", "that come again"])
@pytest.mark.parametrize(
    ("line", "eta", "first", "last"),
    [
        ("Van Gogh", 3.0, 3.0, 1.0),
        ("Van Gogh", 1.0, 1.0, 1.0),
        ("Van Gogh", 0.5, 0.5, 0.5),
        ("house", 3.0, 3.0, 3.0),
        ("a smurf", 3.0, 3.0, 3.0),
        ("Van Gogh <- art by Van Gogh", 3.0, 4.0, 2.0),
    ],
)
def test_a_large_push_away_from_a_style_falls_to_the_papers(
    settings, line, eta, first, last, different
):
    """In step with the rounds. What may be an object keeps all of its push; what takes a concept
    out of something wider is one push more, which stays."""
    own = {"concepts": [line], "negative_guidance": eta}
    source = drawn(settings, rounds=7, different=different, **own)
    pushes = [[t.push for t in leading(source.of_round(i)) if t.concept] for i in range(7)]
    assert torch.allclose(torch.tensor(pushes).mean(1), torch.linspace(first, last, 7))


def test_concepts_come_in_turn_and_each_in_all_its_roles(settings):
    source = drawn(settings, concepts=["Monet", "teapot"])
    names = ["Monet" if "Monet" in term.student else "teapot" for term in erasing(source)]
    assert names == ["Monet", "teapot"] * 8


@pytest.mark.parametrize("turns", [1, 4])
def test_contexts_lead_a_trajectory_by_turns(settings, turns):
    """All of them of its own concept, in its roles by turns."""
    source = drawn(settings, turns=turns, concepts=["Monet", "a smurf"])
    for index in range(8):
        followed = [led for led in source.of_round(index).followed if led[0].concept]
        assert {len(led) for led in followed} == {turns}
        for led in followed:
            assert len({"Monet" in term.student for term in led}) == 1
    led = erasing(source)
    smurfs = [term.student for term in led if "Monet" not in term.student]
    assert len(led) == 16 * turns and len(smurfs) == 8 * turns
    assert len({term.student for term in led}) > 14 * turns


def test_other_words_are_preserved_and_never_the_concepts_own(settings):
    found = preserving(drawn(settings, concepts=["house", "Van Gogh"]))
    assert found and all(term == Term(term.student, term.student, weight=3.0) for term in found)
    words = {word for term in found for word in term.student.replace(",", "").split()}
    assert "house" not in words and not any("Van Gogh" in term.student for term in found)
    assert len({term.student for term in found}) > 40


def test_no_word_holds_what_is_erased(settings):
    """sailboats and houseboats go with boats."""
    assert sum("boat" in word for word in OBJECTS) > 5
    found = preserving(drawn(settings, rounds=80, concepts=["boat"]), rounds=80)
    assert len(found) > 400 and not any("boat" in term.student for term in found)


@pytest.mark.parametrize("name", ["photo", "Painting", "person", "art", "postcard"])
def test_what_templates_say_can_be_erased_too(settings, name):
    """No prompt that is preserved names it, nor does an anchor, which is preserved as well."""
    source = drawn(settings, rounds=20, concepts=[f"{name} (object)", "a face (person)"])
    held = [term.student for term in preserving(source, 20)]
    held += [term.anchor for term in erasing(source, 20)]
    assert len(held) > 100
    assert not [prompt for prompt in held if re.search(rf"\b{name}s?\b", prompt, re.IGNORECASE)]


def test_a_line_is_probed_by_its_name_and_in_contexts(settings):
    config = settings({**AUTO, "concepts": ["Van Gogh (style)", "boat (object) -> a tree"]})
    asked = probed(config)
    assert list(asked) == ["Van Gogh (style)", "boat (object) -> a tree"]
    assert [bare.base for bare, *_ in asked.values()] == ["", "a tree"], "what tells it from that"
    for (bare, *held_out), name in zip(asked.values(), ("Van Gogh", "boat"), strict=True):
        assert bare.student == name and len(held_out) == 3
        assert all(name in t.student and name not in t.base for t in held_out)
    assert probed(settings({**AUTO, "seed": 5})) == probed(settings(AUTO)), "whatever the seed is"


def test_words_are_dealt_before_any_comes_again(settings):
    draw, words = Draw(settings()), ("owl", "red Van Gogh", "lamp", "tea")
    deals = [[draw.word(words) for _ in range(3)] for _ in range(9)]
    assert all(sorted(deal) == ["lamp", "owl", "tea"] for deal in deals)
    assert len(set(map(tuple, deals))) > 2, "in another order"


def test_what_a_person_preserves_comes_among_them(settings):
    found = [term.student for term in preserving(drawn(settings, preserve=["a blue door"]))]
    assert len(found) / 4 < found.count("a blue door") < len(found)


def test_a_seed_decides_them_and_more_rounds_only_add(settings):
    one, more, other = drawn(settings), drawn(settings, rounds=12), drawn(settings, seed=1)
    assert [t.student for t in erasing(one)] == [t.student for t in erasing(more)]
    assert preserving(one) == preserving(more)
    prompts = prompts_of(one.terms)
    assert prompts_of(more.terms)[: len(prompts)] == prompts
    assert one.of_round(0) != other.of_round(0)


@pytest.mark.parametrize("further", [{}, {"preserve_empty": False}, {"preserve_weight": 0.0}])
def test_a_run_uses_up_the_rounds_that_are_drawn(toy, settings, further):
    """2 trajectories of 3 steps; a batch of 4 erases with 2 of them, or with all where nothing is
    preserved."""
    config = settings({**AUTO, "training.steps": 9, **further})
    rounds = Rounds(bank_of(toy({}), config), 4, 0)
    asked, draw = [], rounds.bank.sample_round
    rounds.bank.sample_round = lambda index, *rest: asked.append(index) or draw(index, *rest)
    for _ in range(9):
        rounds.next_batch(dict)
    source = term_source(config, SDXL)
    assert len(source._drawn) == len(asked) == (3 if config.preserves else 9)


def test_a_long_run_comes_back_to_its_contexts(settings):
    """What is encoded beforehand does not grow with the steps."""
    source = term_source(settings({**AUTO, "training.steps": 10**6}), SDXL)
    assert len(source.terms) < 4 * MOST
    first, again = source.of_round(0), source.of_round(len(source._drawn))
    assert prompts_of(leading(first)) == prompts_of(leading(again)) and first.beside == again.beside


@pytest.mark.parametrize("architecture", [FLUX2, WAN, HIDREAM])
def test_prompts_of_wide_text_are_as_few_as_their_room_holds(settings, architecture):
    config = settings({**AUTO, "training.steps": 10**6, "trajectory.count": 1})
    few, many = (term_source(config, one) for one in (architecture, SDXL))
    assert 4 * architecture.text_numbers * len(prompts_of(few.terms)) <= ROOM
    assert len(few.terms) < len(many.terms)
    assert few.of_round(0) == many.of_round(0)


# -- in a bank -------------------------------------------------------------------------------


def test_a_round_preserves_twice_what_it_erases_in_many_prompts(toy, settings):
    """2 trajectories of 3 steps; contexts without the concept and the empty prompt come free."""
    bank = bank_of(toy({}), settings({**AUTO, "training.steps": 5}))
    samples = bank.sample_round(0, generator(3))
    assert samples.erasing == 6 and len(samples) == 18
    held = {bank.prompts[c] for c in samples.condition[samples.erasing :].tolist()}
    assert len(held) >= 6 and not any("Van Gogh" in prompt for prompt in held)
    assert set(samples.weight[samples.erasing :].tolist()) == {3.0}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_targets_of_a_round_are_the_teachers_at_its_states(denoiser, settings):
    """Each sample's, from predictions made one by one for the prompts of its term."""
    config = settings({**AUTO, "training.steps": 3})
    source, bank = term_source(config, SDXL), bank_of(denoiser, config)
    samples = bank.sample_round(0, generator(3))
    terms = {term.student: term for term in leading(source.of_round(0)) if term.concept}

    def predicted(prompt, place):
        with torch.no_grad():
            row = denoiser.encode([prompt], 64, 64)
            x, sigma = samples.x[place : place + 1], samples.sigma[place : place + 1]
            return denoiser.predict(x, sigma, row)[0]

    for place in range(len(samples)):
        prompt = bank.prompts[samples.condition[place]]
        term = terms[prompt] if place < samples.erasing else Term(prompt, prompt)
        expected = term.target({p: predicted(p, place) for p in term.prompts()})
        error = (samples.target[place] - expected).norm() / expected.norm()
        assert error < 1e-4, prompt
