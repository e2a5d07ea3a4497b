"""The settings of an erasure: declared once, checked once.

A setting is declared with its doc, bounds and choices in one place. The command's help, the nodes'
tooltips and widgets, and every error are made from that, so they cannot drift apart. The default
values are those of the official SDXL script of 2025 in our convention (preset official-sdxl).

Settings travel in three forms: the frozen dataclasses, which are always valid; mappings with the
tables `trajectory` and `training`, as TOML gives them; and flat dotted names ("training.steps").
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .concepts import Concept, parse_all
from .fields import Bounds, Field, Settings, setting, toml_value, unknown_setting

METHODS = ("esd-x", "esd-x-strict", "esd-u", "esd-all", "selfattn")
DEFAULT_PROBE_EVERY = 10
_MANY = 10**9
_SIZES = Bounds(64, 4096, multiple_of=8)


@dataclass(frozen=True)
class TrajectoryConfig(Settings):
    """How the noisy latents come about that the student is trained on."""

    table = "trajectory"

    source: str = setting(
        "teacher",
        "Which model samples the trajectories: the frozen teacher, or the student as it is by "
        "then (on policy, as in the paper).",
        choices=("teacher", "student"),
    )
    steps: int = setting(
        50,
        "Sampling steps of a trajectory; each step gives one training sample.",
        Bounds(1, 1000),
    )
    guidance: float = setting(
        2.0,
        "Classifier-free guidance while a trajectory is sampled. The published runs use 2 on SDXL "
        "and 3 on SD 1.x.",
        Bounds(0, 100),
    )
    count: int = setting(
        4,
        "Trajectories sampled side by side in one round. More of them mix more noises, and take "
        "more memory.",
        Bounds(1, 1024),
    )
    reuse: int = setting(
        1,
        "How often each sample of a round is trained on before new trajectories are sampled.",
        Bounds(1, 1000),
    )


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """The optimiser, the form of the student, and when to save, look and stop."""

    table = "training"

    steps: int = setting(200, "Optimiser steps.", Bounds(1, _MANY))
    batch_size: int = setting(
        2,
        "Samples a step: half of them erase, half preserve, when any prompt is preserved (the "
        "empty prompt is, unless switched off).",
        Bounds(1, 1024),
    )
    learning_rate: float = setting(
        2e-4,
        "Step size of the optimiser. The published runs on SDXL use 2e-4 for esd-x and "
        "esd-x-strict, 1e-5 for esd-u and esd-all.",
        Bounds(0, 1, exclusive=True),
    )
    optimizer: str = setting(
        "adamw",
        "adamw, or adafactor, which keeps far less state in memory; adamw8bit, a quarter of "
        "adamw's state, needs the package bitsandbytes.",
        choices=("adamw", "adafactor", "adamw8bit"),
    )
    weight_decay: float = setting(
        0.0, "Decoupled weight decay; at 0, adamw is plain Adam.", Bounds(0, 1)
    )
    warmup: int = setting(
        0, "Steps over which the learning rate rises to its value.", Bounds(0, _MANY)
    )
    max_grad_norm: float = setting(
        1.0, "Larger gradient norms are scaled down to this; 0 switches it off.", Bounds(0, _MANY)
    )
    rank: int = setting(
        0,
        "Rank of a low-rank student; 0 trains the full tensors.",
        Bounds(0, 4096),
    )
    alpha: float = setting(
        0.0, "A low-rank change is scaled by alpha / rank; 0 means alpha = rank.", Bounds(0, 4096)
    )
    precision: str = setting(
        "auto",
        "Number format that the model computes in; auto takes what the device is best at. The "
        "trained tensors are kept in fp32 whatever it is.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    gradient_checkpointing: str = setting(
        "auto",
        "Recompute activations in the backward pass: much less memory, and slower. auto "
        "does so where the memory at hand needs it.",
        choices=("auto", "on", "off"),
    )
    save_every: int = setting(
        0, "Save the training state every so many steps; 0 saves it only on stop.", Bounds(0, _MANY)
    )
    preview_every: int = setting(
        0,
        "Show a preview every so many steps, and at the end, when the file takes it for its cover; "
        "0 shows none.",
        Bounds(0, _MANY),
    )
    probe_every: int = setting(
        0,
        "Measure on held-out noise every so many steps; 0 measures only at the end, or every "
        f"{DEFAULT_PROBE_EVERY} steps when until or max_drift needs it.",
        Bounds(0, _MANY),
    )
    until: float = setting(
        0.0,
        "Stop early once two probes running find this share or less of the concept; 0 is off.",
        Bounds(0, 1),
    )
    max_drift: float = setting(
        0.0,
        "Stop when a preserved prompt has drifted beyond this, relative to its prediction, and "
        "keep the last state below it; 0 is off.",
        Bounds(0, 10),
    )
    save_dtype: str = setting(
        "fp16", "Number format of the erasure file.", choices=("fp16", "bf16", "fp32")
    )

    def __post_init__(self) -> None:
        if isinstance(self.gradient_checkpointing, bool):  # which it was in files of version 0.1
            switch = "on" if self.gradient_checkpointing else "off"
            object.__setattr__(self, "gradient_checkpointing", switch)
        super().__post_init__()
        if self.warmup > self.steps:
            raise ConfigError(
                f"training.warmup must be at most training.steps, {self.steps}, not {self.warmup}"
            )
        if self.alpha and not self.rank:
            raise ConfigError("training.alpha is for low-rank students: set training.rank above 0")

    @property
    def probe_interval(self) -> int:
        """Steps between two probes, 0 for none: `until` and `max_drift` need some."""
        needed = self.until > 0 or self.max_drift > 0
        return self.probe_every or (DEFAULT_PROBE_EVERY if needed else 0)

    @property
    def effective_alpha(self) -> float:
        """What a low-rank change is scaled by, before it is divided by the rank."""
        return self.alpha or float(self.rank)


@dataclass(frozen=True)
class ErasureConfig(Settings):
    """All that decides an erasure, apart from the model it is trained on."""

    concepts: tuple[Concept, ...] = setting(
        (),
        'What to erase, one concept a line: "Van Gogh", "Van Gogh -> painting" to replace it, '
        '"cowboy hat <- cowboy" to erase it from a wider prompt only.',
    )
    preserve: tuple[str, ...] = setting((), "Prompts whose predictions must not move.")
    preserve_empty: bool = setting(
        True, "Preserve the empty prompt too, which every guided picture rests on."
    )
    preserve_weight: float = setting(
        1.0, "Weight of the preserving samples in the loss.", Bounds(0, 1000)
    )
    method: str = setting(
        "esd-x",
        "Which weights train. esd-x: cross-attention, for what a prompt names, such as styles and "
        "people. esd-x-strict: its keys and values only. esd-u: all but cross-attention, for what "
        "must go whatever the prompt says. esd-all: both. selfattn: self-attention only.",
        choices=METHODS,
    )
    negative_guidance: float = setting(
        0.0,
        "How far the concept is pushed beyond its anchor. This is the paper's convention: 0 stops "
        "at the anchor, 1 goes as far again to the other side. The official SDXL and SD scripts "
        "count one more: their 1 is 0 here, their 2 is 1.",
        Bounds(0, 100),
    )
    width: int = setting(1024, "Width of the training pictures, in pixels.", _SIZES)
    height: int = setting(1024, "Height of the training pictures, in pixels.", _SIZES)
    seed: int = setting(0, "Seed of all noise and of the order of samples.", Bounds(0, 2**64 - 1))
    trajectory: TrajectoryConfig = TrajectoryConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        if isinstance(self.concepts, (list, tuple)):  # parsed ones are checked as their lines
            lines = tuple(str(c) if isinstance(c, Concept) else c for c in self.concepts)
            object.__setattr__(self, "concepts", lines)
        super().__post_init__()
        self._check_prompts()
        if self.preserved and self.training.batch_size < 2:
            raise ConfigError(
                "training.batch_size must be at least 2 while prompts are preserved, not 1: raise "
                "it, or set preserve_empty = false and give no preserve"
            )
        if self.training.max_drift and not self.preserved:
            raise ConfigError("training.max_drift watches preserved prompts, and there are none")

    def _check_prompts(self) -> None:
        concepts = parse_all(map(str, self.concepts))
        object.__setattr__(self, "concepts", concepts)
        object.__setattr__(self, "preserve", tuple(" ".join(p.split()) for p in self.preserve))
        erased = {concept.student_prompt.casefold() for concept in concepts}
        for prompt in self.preserve:
            if not prompt:
                raise ConfigError("preserve holds an empty prompt: preserve_empty is for that")
            if prompt.casefold() in erased:
                raise ConfigError(f'preserve names "{prompt}", which a concept is erased from')

    @property
    def preserved(self) -> tuple[str, ...]:
        """Every prompt to preserve, the empty one first; none when their weight is 0."""
        empty = ("",) if self.preserve_empty else ()
        return (*empty, *self.preserve) if self.preserve_weight > 0 else ()

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ErasureConfig:
        """A config from nested or dotted settings; ConfigError on unknown names and bad values."""
        known = [field.name for field in fields()]
        for name in _flat(mapping):
            if name not in known:
                raise unknown_setting(name, known)
        nested = override(mapping, {})
        parts: dict[str, Any] = {t: kind(**nested.pop(t, {})) for t, kind in _TABLES.items()}
        return cls(**nested, **parts)

    def to_mapping(self) -> dict[str, Any]:
        """All settings as JSON and TOML know them, the nested tables last."""
        mapping = dataclasses.asdict(self) | {"concepts": list(map(str, self.concepts))}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in mapping.items()}

    def to_toml(self) -> str:
        """A TOML document that reads back as this config."""
        lines = []
        for name, value in self.to_mapping().items():
            if isinstance(value, dict):
                lines += ["", f"[{name}]", *(f"{k} = {toml_value(v)}" for k, v in value.items())]
            else:
                lines.append(f"{name} = {toml_value(value)}")
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """sha256, in hex, of all settings: equal for equal configs."""
        text = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def override(self, overrides: Mapping[str, Any]) -> ErasureConfig:
        """This config with some settings changed, checked anew."""
        return self.from_mapping(override(self.to_mapping(), overrides))


_TABLES: dict[str, type[TrajectoryConfig] | type[TrainingConfig]] = {
    "trajectory": TrajectoryConfig,
    "training": TrainingConfig,
}


def fields() -> tuple[Field, ...]:
    """Every setting there is, in order."""
    parts = (ErasureConfig, *_TABLES.values())
    return tuple(field for part in parts for field in part.declared())


def override(mapping: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping, nested, with other settings laid over it.

    Both may be nested or dotted. A None among the overrides means "not given" and changes nothing.
    Values are not checked here: `ErasureConfig.from_mapping` does that.
    """
    given = {name: value for name, value in _flat(overrides).items() if value is not None}
    nested: dict[str, Any] = {}
    for name, value in {**_flat(mapping), **given}.items():
        table, _, key = name.partition(".")
        if table in _TABLES:
            nested.setdefault(table, {})[key] = value
        else:
            nested[name] = value
    return nested


def _flat(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names; what is dotted already stays."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping) and (value or name in _TABLES):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        elif name in _TABLES:
            raise ConfigError(f"{name} must be a table of settings, not {reprlib.repr(value)}")
        else:
            flat[str(name)] = value
    return flat
