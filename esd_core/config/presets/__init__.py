"""Presets: settings that ship as TOML files beside this one, and those of a person's own file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError, FileError
from ..mappings import flat, override
from ..settings import ErasureConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent


def load_settings(source: str) -> dict[str, Any]:
    """The settings of a preset, by its name, or of a TOML file, by its path; concepts may lack."""
    if source in preset_names():
        return load_preset(source)
    try:
        return tomllib.loads(Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        presets = ", ".join(preset_names())
        raise FileError(f"{source} is neither a file nor one of the presets {presets}") from None
    except OSError as error:
        raise FileError(f"{source} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise FileError(f"{source} is not a TOML file: {error}") from error


def preset_names() -> tuple[str, ...]:
    """The presets that ship with the code, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def load_preset(name: str, is_robust: bool = False) -> dict[str, Any]:
    """The settings of a preset, as a mapping; most name no concept.

    is_robust: with its table [robust] over them, where it has one.
    """
    if name not in preset_names():
        raise ConfigError(f'no preset "{name}": expected one of {", ".join(preset_names())}')
    settings = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    robust = settings.pop("robust", {})
    return override(settings, robust) if is_robust else settings


def settled(preset: str, asked: Mapping[str, Any]) -> ErasureConfig:
    """The settings asked for, over those of a preset.

    A preset in contexts has steps for one concept, and several share what a run sees: so each has
    as many, unless steps are asked for.

    Raises:
        ConfigError: an unknown setting, or a bad value.
    """
    given = flat(asked)
    settings = override(load_preset(preset, bool(given.get("training.robust"))), asked)
    config = ErasureConfig.from_mapping(settings)
    says_steps = given.get("training.steps") is not None
    if says_steps or not config.contexts or len(config.concepts) < 2:
        return config
    return config.override({"training.steps": config.training.steps * len(config.concepts)})
