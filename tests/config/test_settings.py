"""The config: bounds hold and are named in errors; every written form reads back equal."""

import math
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from esd_core.config import settings as config_module
from esd_core.config.mappings import override
from esd_core.config.rules import bounds, choices, described, kind_of, limits, renamed
from esd_core.config.settings import (
    METHODS,
    ErasureConfig,
    TrainingConfig,
    TrajectoryConfig,
    fields,
)
from esd_core.errors import ConfigError, ESDError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ONE = {"concepts": ["Van Gogh"]}
FIELDS = fields()
NUMBERS = [name for name, field in FIELDS.items() if bounds(field)]


def make(**dotted: Any) -> ErasureConfig:
    """A config of one concept; double underscores in the names stand for dots."""
    settings = {name.replace("__", "."): value for name, value in dotted.items()}
    return ErasureConfig.from_mapping(override(ONE, settings))


def values(name: str) -> st.SearchStrategy[Any]:
    """All that a setting allows."""
    field = FIELDS[name]
    if choices(field):
        return st.sampled_from(choices(field))
    if kind_of(field) is bool:
        return st.booleans()
    low, high, step = range_of(name)
    if kind_of(field) is int:
        return st.integers(low // step, high // step).map(lambda n: n * step)
    return st.floats(low, high, exclude_min="gt" in limits(field)) | st.integers(low + 1, high)


def range_of(name: str) -> tuple[int, int, int]:
    """The lowest, the highest, and the step."""
    rules = limits(FIELDS[name])
    return rules.get("ge", rules.get("gt")), rules["le"], rules.get("multiple_of", 1)


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Dotted settings, any subset of them, that make a valid config."""
    lists = ("concepts", "preserve", "contexts")
    optional = {name: values(name) for name in FIELDS if name not in lists}
    optional["contexts"] = st.lists(st.sampled_from(["auto", "a {} house", "{}"]), max_size=2)
    drawn = draw(st.fixed_dictionaries({}, optional=optional))
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<#"), min_size=1)
    prompts = draw(st.lists(texts.filter(str.strip), min_size=1, max_size=4, unique_by=_key))
    drawn |= {"concepts": prompts[:2], "preserve": prompts[2:]}
    drawn["training.batch_size"] = max(2, drawn.get("training.batch_size", 2))
    drawn["training.steps"] = max(drawn.get("training.steps", 200), drawn.get("training.warmup", 0))
    if drawn.get("method", "esd-x") in ("esd-x", "esd-x-strict"):
        drawn["training.robust"] = False
    if not drawn.get("training.rank"):
        drawn["training.alpha"] = 0.0
    if not (drawn.get("preserve_empty", True) and drawn.get("preserve_weight", 1.0)):
        drawn["training.max_drift"] = 0.0
    return drawn


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


# --- written forms ---------------------------------------------------------------------------


@given(settings())
@example({"concepts": ['a "b" \\ \x7f\x00 \u00e9\U0001f600'], "training.learning_rate": 1e-300})
@example({"concepts": ["a"], "negative_guidance": -0.0, "seed": 2**64 - 1})
def test_every_form_reads_back_equal(dotted: dict[str, Any]) -> None:
    config = ErasureConfig.from_mapping(dotted)
    assert ErasureConfig.from_mapping(config.to_mapping()) == config
    again = ErasureConfig.from_mapping(tomllib.loads(config.to_toml()))
    assert again == config
    assert again.digest() == config.digest()


@given(settings(), st.randoms(use_true_random=False))
def test_the_digest_knows_no_order(dotted: dict[str, Any], random: Any) -> None:
    shuffled = list(dotted.items())
    random.shuffle(shuffled)
    one, other = (ErasureConfig.from_mapping(form) for form in (dotted, dict(shuffled)))
    assert one.digest() == other.digest()


@pytest.mark.parametrize("name", FIELDS)
def test_the_digest_tells_every_setting(name: str) -> None:
    base, field = make(training__rank=8, preserve=["a"], method="esd-all"), FIELDS[name]
    others = {
        bool: not base.flat()[name],
        int: 16,
        float: 0.5,
        str: next((c for c in choices(field) if c != base.flat()[name]), ""),
        tuple: ["another {}"],
    }
    value = 128 if "multiple_of" in limits(field) else others[kind_of(field)]
    changed = base.override({name: value})
    assert changed != base
    assert changed.digest() != base.digest()


def test_the_digest_is_stable() -> None:
    """Digests are written into files: a change here must be a decision."""
    assert make().digest() == "c84d2afe9be2b9ccb372a86f41fe81bcec1c78f8fd9575c1dc1e73d1098d5298"


# --- bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data())
def test_a_number_out_of_bounds_is_refused_by_name(name: str, data: st.DataObject) -> None:
    field, (low, high, step) = FIELDS[name], range_of(name)
    wrong = st.integers(max_value=low - 1) | st.integers(min_value=high + 1)
    if kind_of(field) is float:
        wrong |= st.floats(max_value=low, exclude_max=True) | st.floats(min_value=high + 1.0)
        wrong |= st.just(math.nan)
    if "gt" in limits(field):
        wrong |= st.just(low)
    if step > 1:
        wrong |= st.integers(low, high).filter(lambda n: n % step)
    with pytest.raises(ConfigError) as caught:
        make(**{name: data.draw(wrong)})
    assert str(caught.value).startswith(f"`{name}` must be {bounds(field)}, not ")


FITS: dict[type, tuple[type, ...]] = {float: (float, int), int: (int,), bool: (bool,)}
SAMPLES = (b"x", {}, "x", "1", 0.5, 1, True, None, [1], ["a\udc80"])
VERSION_0_1 = {"training.gradient_checkpointing"}
"""It was a switch."""


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_type_is_refused_by_name(name: str) -> None:
    for value in SAMPLES:
        if (
            type(value) in FITS.get(kind_of(FIELDS[name]), ())
            or name in VERSION_0_1
            and value is True
        ):
            continue
        with pytest.raises(ConfigError, match=f"^`{name}` must be "):
            ErasureConfig.from_mapping(ONE | {name: value})


def test_errors_name_field_bound_and_value() -> None:
    with pytest.raises(ConfigError) as caught:
        make(training__learning_rate=-3)
    assert str(caught.value) == "`training.learning_rate` must be above 0 and at most 1, not -3"
    with pytest.raises(ConfigError) as caught:
        make(method="esd-y")
    assert str(caught.value) == f"`method` must be one of {', '.join(METHODS)}, not 'esd-y'"
    with pytest.raises(ConfigError) as caught:
        make(width=100)
    assert str(caught.value) == (
        "`width` must be at least 64 and at most 4096, in multiples of 8, not 100"
    )


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "trajectory", "training", "x", ""]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_any_mapping_makes_a_config_or_an_error(mapping: dict[str, Any]) -> None:
    try:
        ErasureConfig.from_mapping(mapping)
    except ESDError as error:
        assert str(error)


# --- settings that must fit each other -------------------------------------------------------


@pytest.mark.parametrize("concepts", [[], [""], ["# comment"]])
def test_no_concept_is_refused(concepts: list[str]) -> None:
    with pytest.raises(ConfigError, match="no concept given"):
        ErasureConfig.from_mapping({"concepts": concepts})


@pytest.mark.parametrize(
    ("dotted", "message"),
    [
        (
            {"training.warmup": 11, "training.steps": 10},
            "`training.warmup` must be at most `training.steps`, 10",
        ),
        ({"training.alpha": 4}, "`training.alpha` is for low-rank students"),
        ({"training.batch_size": 1}, "`training.batch_size` must be at least 2"),
        ({"training.max_drift": 0.1, "preserve_empty": False}, "`training.max_drift` watches"),
        ({"preserve": ["van  GOGH"]}, '`preserve` names "van GOGH"'),
        ({"preserve": [" "]}, "`preserve` holds an empty prompt"),
        ({"concepts": ["a", "A"]}, 'the concept "A" is given twice'),
        ({"concepts": ["hat <- cowboy"], "preserve": ["cowboy"]}, '`preserve` names "cowboy"'),
    ],
)
def test_settings_that_do_not_fit_each_other(dotted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ErasureConfig.from_mapping(override(ONE, dotted))


@pytest.mark.parametrize(
    ("dotted", "expected"),
    [
        ({}, ("",)),
        ({"preserve": ["a  house", "b"]}, ("", "a house", "b")),
        ({"preserve": ["a"], "preserve_empty": False}, ("a",)),
        ({"preserve": ["a"], "preserve_weight": 0}, ()),
        ({"preserve_empty": False, "contexts": [], "training.batch_size": 1}, ()),
    ],
)
def test_what_is_preserved(dotted: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert ErasureConfig.from_mapping(override(ONE, dotted)).preserved == expected


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({}, 0),
        ({"probe_every": 7}, 7),
        ({"until": 0.1}, 10),
        ({"max_drift": 0.1}, 10),
        ({"until": 0.1, "probe_every": 7}, 7),
    ],
)
def test_probes_come_when_they_are_needed(settings: dict[str, Any], interval: int) -> None:
    assert TrainingConfig(**settings).probe_interval == interval


def test_alpha_is_the_rank_unless_given() -> None:
    assert TrainingConfig(rank=8).effective_alpha == 8
    assert TrainingConfig(rank=8, alpha=1).effective_alpha == 1


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make().seed = 1  # type: ignore[misc]


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "unknown", "nearest"),
    [
        ({"learning_rate": 1}, "learning_rate", "training.learning_rate"),
        ({"training": {"step": 1}}, "training.step", "training.steps"),
        ({"train": {"steps": 1}}, "train.steps", "training.steps"),
        ({"training": {"guidance": 1}}, "training.guidance", "trajectory.guidance"),
        ({"concept": "a"}, "concept", "concepts"),
        ({"preserv": {}}, "preserv", "preserve"),
        ({"train": 5}, "train", "training"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest(
    mapping: dict[str, Any], unknown: str, nearest: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ErasureConfig.from_mapping(ONE | mapping)
    assert str(caught.value) == f'unknown setting "{unknown}": did you mean {nearest}?'


def test_an_unknown_setting_like_no_other_points_to_the_help() -> None:
    with pytest.raises(ConfigError, match='unknown setting "zzz": `esd erase --help`'):
        ErasureConfig.from_mapping({"zzz": 1})


def test_a_table_must_be_a_table() -> None:
    with pytest.raises(ConfigError, match="`training` must be a table of settings, not 5"):
        ErasureConfig.from_mapping({"training": 5})


def test_fields_name_every_setting_once_and_describe_it() -> None:
    names = [name for name in ErasureConfig.model_fields if name not in ("trajectory", "training")]
    names += [f"trajectory.{name}" for name in TrajectoryConfig.model_fields]
    names += [f"training.{name}" for name in TrainingConfig.model_fields]
    assert [*FIELDS] == names == [*make().flat()]
    for name, field in FIELDS.items():
        text = described(field)
        assert text.endswith(".") and text.isascii()
        assert "%" not in text, "argparse would read it as a format"
        assert bool(bounds(field)) == (kind_of(field) in (int, float))
        assert bool(choices(field)) == (kind_of(field) is str)
        assert name == "concepts" or make(**{name: field.default}) == make()


def test_a_host_puts_its_own_names_in_the_place_of_the_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        make(training__warmup=300)
    names = {"training.warmup": "--warmup", "training.steps": "--steps"}
    told = renamed(str(caught.value), names)
    assert told == "--warmup must be at most --steps, 200, not 300"
    assert renamed("run `pip install x`", names) == "run `pip install x`"


def test_the_help_states_the_convention_of_eta() -> None:
    doc = described(FIELDS["negative_guidance"])
    assert "paper's convention" in doc and "official SDXL and SD scripts count one more" in doc


# --- overrides -------------------------------------------------------------------------------


def test_overrides_lie_over_a_mapping_and_leave_it_alone() -> None:
    mapping = {"seed": 1, "training": {"steps": 5, "rank": 2}}
    merged = override(mapping, {"training.steps": 7, "trajectory.count": 3, "seed": None})
    assert merged == {"seed": 1, "training": {"steps": 7, "rank": 2}, "trajectory": {"count": 3}}
    assert mapping == {"seed": 1, "training": {"steps": 5, "rank": 2}}
    assert override(mapping, {"training": {"steps": 7}})["training"] == {"steps": 7, "rank": 2}


def test_a_config_with_overrides_is_checked_anew() -> None:
    config = make()
    assert config.override({"training.steps": 5}).training.steps == 5
    assert config.training.steps == 200
    with pytest.raises(ConfigError, match=r"^`training\.steps` must be"):
        config.override({"training.steps": 0})


def test_the_module_says_where_its_defaults_come_from() -> None:
    assert "preset sdxl" in (config_module.__doc__ or "")
