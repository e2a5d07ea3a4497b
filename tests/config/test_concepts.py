"""Concept lines: what they mean, what is refused, and that text and Concept round-trip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esd_core.config.concepts import Concept, parse, parse_all
from esd_core.errors import ESDError

# Letters, the arrows' own characters, comments and white space: what trips a parser up.
TEXTS = st.text(st.sampled_from("abZ<->#\"' \t\n\u00e9\u2028\U0001f600")) | st.text()


@st.composite
def concepts(draw: st.DrawFn) -> Concept:
    parts = TEXTS.map(lambda text: " ".join(text.split())).filter(
        lambda text: text and "->" not in text and "<-" not in text
    )
    name = draw(parts.filter(lambda text: not text.startswith("#")))
    other = draw(st.sampled_from(["", "anchor", "erase_from"]))
    return Concept(name, **({other: draw(parts)} if other else {}))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Van Gogh", Concept("Van Gogh")),
        ("  Van \t Gogh ", Concept("Van Gogh")),
        ("Van Gogh->painting", Concept("Van Gogh", anchor="painting")),
        ("hat <- cowboy", Concept("hat", erase_from="cowboy")),
        ("sci-fi < 1950 - x", Concept("sci-fi < 1950 - x")),
    ],
)
def test_a_line_means(line: str, expected: Concept) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no concept given"),
        (" \t ", "no concept given"),
        ("-> painting", "nothing before its arrow"),
        ("Van Gogh ->", "nothing after its arrow"),
        ("<- cowboy", "nothing before its arrow"),
        ("hat <-  ", "nothing after its arrow"),
        ("->", "nothing before its arrow"),
        ("a -> b -> c", '"->" more than once'),
        ("a <- b <- c", '"<-" more than once'),
        ("a -> b <- c", "both arrows"),
        ("a <-> b", "both arrows"),
        ("# a", "like a comment"),
        ("#a -> b", "like a comment"),
    ],
)
def test_a_line_is_refused_with_its_reason(line: str, message: str) -> None:
    with pytest.raises(ESDError, match=message):
        parse(line)


@pytest.mark.parametrize("part", ["name", "anchor", "erase_from"])
def test_no_part_of_a_concept_holds_an_arrow(part: str) -> None:
    with pytest.raises(ESDError, match=f'the {part} "b -> c" holds an arrow'):
        Concept(**{"name": "a", part: "b -> c"})


def test_anchor_and_erase_from_exclude_each_other() -> None:
    with pytest.raises(ESDError, match='"hat" has an anchor and'):
        Concept("hat", anchor="hair", erase_from="cowboy")


def test_several_lines_skip_blanks_and_comments_and_keep_their_order() -> None:
    text = "# styles\nVan Gogh -> painting\n\n  \n  # objects\r\nhat <- cowboy\nSeurat"
    expected = (
        Concept("Van Gogh", anchor="painting"),
        Concept("hat", erase_from="cowboy"),
        Concept("Seurat"),
    )
    assert parse_all(text) == expected
    assert parse_all(text.splitlines()) == expected
    assert parse_all(iter(text.splitlines())) == expected


@pytest.mark.parametrize("lines", ["", "# only a comment\n", [], ["", " "]])
def test_lines_that_name_nothing_are_refused(lines: str | list[str]) -> None:
    with pytest.raises(ESDError, match="no concept given"):
        parse_all(lines)


@pytest.mark.parametrize("second", ["Van Gogh", "van  gogh", "Van Gogh -> painting"])
def test_a_concept_given_twice_is_named(second: str) -> None:
    with pytest.raises(ESDError, match=f'"{parse(second).name}" is given twice'):
        parse_all(["Van Gogh", "Seurat", second])


@given(concepts())
def test_a_concept_reads_back_from_its_text(concept: Concept) -> None:
    assert parse(str(concept)) == concept
    assert parse_all([str(concept)]) == parse_all(str(concept)) == (concept,)


@given(TEXTS)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        concept = parse(text)
    except ESDError as error:
        assert str(error)
    else:
        assert parse(str(concept)) == concept


@given(st.lists(TEXTS))
def test_any_lines_parse_or_are_refused(lines: list[str]) -> None:
    try:
        found = parse_all(lines)
    except ESDError as error:
        assert str(error)
    else:
        assert parse_all(map(str, found)) == found
