"""The presets: each makes a valid config, names its source, and says what its run published."""

import importlib.util
import sys
from pathlib import Path

import pytest

from esd_core.config.presets import FOLDER, load_preset, load_settings, settled
from esd_core.config.presets import preset_names as names
from esd_core.config.settings import ErasureConfig
from esd_core.errors import ConfigError, FileError

EMBEDDED = ("pocket", "pocket-dit")
DEFAULTS = ("sd", "sdxl", "sdxl-esd-u")
TRANSFORMERS = ("flux", "flux-schnell", "flux2", "sd3", "transformer", "transformer-turbo")


PUBLISHED = [n for n in names() if n not in (*EMBEDDED, *DEFAULTS, *TRANSFORMERS)]


def load(name: str) -> ErasureConfig:
    return ErasureConfig.from_mapping({"concepts": ["Seurat"], **load_preset(name)})


def test_the_presets_there_are() -> None:
    assert names() == (
        "diffengine-sdxl-van-gogh",
        "flux",
        "flux-schnell",
        "flux2",
        "leco-sdxl",
        "official-sd",
        "official-sdxl",
        "official-sdxl-esd-u",
        "paper-sd14",
        "pocket",
        "pocket-dit",
        "sd",
        "sd3",
        "sdxl",
        "sdxl-esd-u",
        "transformer",
        "transformer-turbo",
    )


@pytest.mark.parametrize("name", names())
def test_a_preset_is_valid_and_commented(name: str) -> None:
    assert load(name).concepts
    assert load_settings(name) == load_preset(name)
    assert (FOLDER / f"{name}.toml").read_text(encoding="ascii").startswith("# ")


def test_a_robust_run_has_settings_of_its_own_where_a_preset_has_some() -> None:
    """Over the preset's, and under what is asked for."""
    asked = {"concepts": ["Seurat"], "training.robust": True, "training.learning_rate": 2e-3}
    robust, plain = settled("pocket", asked), settled("pocket", {**asked, "training.robust": False})
    assert (robust.method, plain.method) == ("esd-all", "esd-x")
    assert robust.training.steps > plain.training.steps
    assert robust.training.learning_rate == plain.training.learning_rate == 2e-3
    two = settled("pocket", {**asked, "concepts": ["Seurat", "house"]})
    assert two.training.steps == 2 * robust.training.steps
    asked["method"] = "esd-u"
    without = settled("sdxl", {**asked, "training.robust": False})
    assert settled("sdxl", asked) == without.override({"training.robust": True})


@pytest.mark.parametrize("method", ["esd-x", "esd-x-strict"])
def test_a_robust_run_of_cross_attention_alone_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match="set `method` to esd-all"):
        settled("pocket", {"concepts": ["a"], "training.robust": True, "method": method})


@pytest.mark.parametrize("name", [name for name in names() if name not in EMBEDDED])
def test_a_published_run_names_its_source(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="ascii")
    sources = (
        *("rohitgandikota/erasing", "okotaku/diffengine", "p1atdev/LECO"),
        *("CookedMorsel/erasing", "nxjiang-jnx/Z-Erase"),
    )
    assert any(source in text for source in sources)


def test_only_the_van_gogh_run_names_a_concept() -> None:
    named = {name: load_preset(name).get("concepts") for name in names()}
    assert {name: found for name, found in named.items() if found} == {
        "diffengine-sdxl-van-gogh": ["Van Gogh"]
    }


def test_the_defaults_are_those_for_sdxl() -> None:
    assert load("sdxl") == ErasureConfig.from_mapping({"concepts": ["Seurat"]})


@pytest.mark.parametrize(
    ("name", "published"),
    [("sdxl", "official-sdxl"), ("sdxl-esd-u", "official-sdxl-esd-u"), ("sd", "official-sd")],
)
def test_a_default_leaves_as_published_what_depends_on_the_scale(name: str, published: str) -> None:
    ours, theirs = load(name), load(published)
    assert (ours.method, ours.width, ours.height) == (theirs.method, theirs.width, theirs.height)
    assert ours.trajectory.guidance == theirs.trajectory.guidance
    assert ours.training.steps == theirs.training.steps
    assert ours.training.learning_rate == theirs.training.learning_rate


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_has_the_bare_name_and_the_plain_error(name: str) -> None:
    config = load(name)
    assert config.contexts == () and config.preserve_weight == 1.0
    assert (config.training.loss_weight, config.training.schedule) == ("output", "constant")
    assert (config.training.batch_size, config.trajectory.count) == (2, 4)


@pytest.mark.parametrize(
    ("name", "official_eta"), [("official-sdxl", 1), ("official-sdxl-esd-u", 1), ("official-sd", 2)]
)
def test_presets_count_eta_as_the_paper_does(name: str, official_eta: float) -> None:
    assert load(name).negative_guidance == official_eta - 1


@pytest.mark.parametrize(
    ("name", "method", "eta", "source", "guidance", "size", "steps", "learning_rate"),
    [
        ("official-sdxl", "esd-x", 0, "teacher", 2, 1024, 200, 2e-4),
        ("official-sdxl-esd-u", "esd-u", 0, "teacher", 2, 1024, 200, 1e-5),
        ("official-sd", "esd-x", 1, "teacher", 3, 512, 200, 5e-5),
        ("paper-sd14", "esd-x", 1, "student", 3, 512, 1000, 1e-5),
        ("diffengine-sdxl-van-gogh", "esd-x", 1, "student", 3, 1024, 300, 1e-5),
        ("leco-sdxl", "esd-all", 1, "student", 3, 512, 500, 1e-4),
    ],
)
def test_what_was_published(
    name: str,
    method: str,
    eta: float,
    source: str,
    guidance: float,
    size: int,
    steps: int,
    learning_rate: float,
) -> None:
    config = load(name)
    assert (config.method, config.negative_guidance) == (method, eta)
    assert (config.trajectory.source, config.trajectory.guidance) == (source, guidance)
    assert (config.width, config.height, config.trajectory.steps) == (size, size, 50)
    assert (config.training.steps, config.training.learning_rate) == (steps, learning_rate)


def test_leco_is_low_rank_and_preserves_nothing() -> None:
    config = load("leco-sdxl")
    assert (config.training.rank, config.training.alpha, config.preserved) == (4, 1.0, ())


def test_diffengine_uses_adafactor() -> None:
    training = load("diffengine-sdxl-van-gogh").training
    assert (training.optimizer, training.weight_decay, training.max_grad_norm) == (
        "adafactor",
        0.01,
        1.0,
    )


def test_several_concepts_have_a_presets_steps_each() -> None:
    one = settled("sdxl", {"concepts": ["Seurat"]})
    assert one.training.steps == load_preset("sdxl")["training"]["steps"]
    three = settled("sdxl", {"concepts": ["Seurat", "house", "a car -> a tree"]})
    assert three.training.steps == 3 * one.training.steps
    assert three.override({"concepts": ["Seurat"], "training.steps": 200}) == one


@pytest.mark.parametrize("asked", [{"training.steps": 70}, {"training": {"steps": 70}}])
def test_steps_that_are_asked_for_are_taken(asked: dict[str, object]) -> None:
    config = settled("pocket", {"concepts": ["Seurat", "house"], **asked})
    assert config.training.steps == 70


def test_without_contexts_several_concepts_share_the_published_steps() -> None:
    config = settled("official-sdxl", {"concepts": ["Seurat", "house"]})
    assert config.training.steps == load_preset("official-sdxl")["training"]["steps"]


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match='no preset "official": expected one of .*official-sdxl'):
        load_preset("official")


def test_presets_load_under_a_package_name_like_a_host_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ComfyUI names a custom node's package by its path, which no import statement could say."""
    package = "/somewhere/custom_nodes/esd-concept-erasure.esd_core"
    parts = {"": FOLDER.parents[1], ".config": FOLDER.parent, ".config.presets": FOLDER}
    for name, folder in ((package + part, folder) for part, folder in parts.items()):
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    assert module.preset_names() == names()
    assert module.load_preset("pocket") == load_preset("pocket")


# --- a person's own file -----------------------------------------------------------------------


def test_settings_load_from_a_file(tmp_path: Path) -> None:
    config = load("pocket")
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert ErasureConfig.from_mapping(load_settings(str(path))) == config


def test_a_missing_file_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="neither a file nor one of the presets .*official-sdxl"):
        load_settings(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"bad\.toml is not a TOML file"):
        load_settings(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        load_settings(str(tmp_path))
