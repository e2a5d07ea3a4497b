"""The settings of an erasure: declared once, checked once.

A setting is a pydantic field: its bounds and choices, and the docstring below it, which describes
it. The command's help, the nodes' tooltips and widgets, and every error are made from that, so they
cannot drift apart. The default values are those for SDXL (preset sdxl, which says where they come
from).

An error puts a setting's name in backquotes, so that a host can replace it with what the person
sees: a flag, or a widget (`rules.renamed`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    model_validator,
)
from pydantic.fields import FieldInfo

from ..errors import ConfigError
from .concepts import Concept, parse_all
from .mappings import flat, override, toml
from .rules import Settings, Text, encodable, named_fields

Method = Literal["esd-x", "esd-x-strict", "esd-u", "esd-all", "selfattn"]
METHODS: tuple[str, ...] = get_args(Method)
CROSS_ATTENTION = ("esd-x", "esd-x-strict")
FileDtype = Literal["fp16", "bf16", "fp32"]
DEFAULT_PROBE_EVERY = 10
AUTO = "auto"
"""Among contexts: the generic templates that ship with the code."""
_MANY = 10**9


def _parsed(value: Any) -> tuple[Concept, ...]:
    """Concepts of lines, or of concepts; ValueError for anything else, undecodable bytes too."""
    kinds = (str, Concept)
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, kinds) for v in value):
        raise ValueError
    return parse_all([encodable(str(line)) for line in value])


def _lines(concepts: Iterable[Concept]) -> list[str]:
    return list(map(str, concepts))


def _prompts(value: tuple[str, ...]) -> tuple[str, ...]:
    prompts = tuple(" ".join(prompt.split()) for prompt in value)
    if "" in prompts:
        raise ConfigError("`preserve` holds an empty prompt: `preserve_empty` is for that")
    return prompts


def _switch(value: Any) -> Any:
    """Files of version 0.1 say true or false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Number = Annotated[float, AfterValidator(lambda x: x + 0.0)]
"""-0.0 becomes 0.0: equal settings have equal digests."""
SIZES = Field(ge=64, le=4096, multiple_of=8)
Size = Annotated[int, SIZES]
Concepts = Annotated[tuple[Concept, ...], PlainValidator(_parsed), PlainSerializer(_lines)]
Prompts = Annotated[tuple[Text, ...], Strict(False), AfterValidator(_prompts)]


def _templates(value: tuple[str, ...]) -> tuple[str, ...]:
    for template in value:
        if template != AUTO and template.count("{}") != 1:
            raise ConfigError(
                f'`contexts` has "{template}": write {AUTO}, or a prompt with one {{}} where the '
                "concept goes"
            )
    return tuple(" ".join(template.split()) for template in value)


Templates = Annotated[tuple[Text, ...], Strict(False), AfterValidator(_templates)]


class TrajectoryConfig(Settings):
    """How the noisy training latents are sampled."""

    source: Literal["teacher", "student"] = "teacher"
    """Which model samples the trajectories: the frozen teacher, or the student as it is by then (on
    policy, as in the paper)."""
    steps: int = Field(20, ge=1, le=1000)
    """Sampling steps of a trajectory; each step gives one training sample."""
    guidance: Number = Field(2.0, ge=0, le=100)
    """Classifier-free guidance while a trajectory is sampled. The published runs use 2 on SDXL and
    3 on SD 1.x."""
    count: int = Field(4, ge=1, le=1024)
    """Trajectories sampled side by side in one round. More of them mix more noises, and take more
    memory."""
    reuse: int = Field(1, ge=1, le=1000)
    """How often each sample of a round is trained on before new trajectories are sampled."""


class TrainingConfig(Settings):
    """The optimizer, the form of the student, and when to save, report and stop."""

    steps: int = Field(200, ge=1, le=_MANY)
    """Optimizer steps. In contexts, a preset's are for one concept, and several have as many
    each."""
    batch_size: int = Field(6, ge=1, le=1024)
    """Samples a step. In contexts two preserve for every one that erases; without them, half of
    them preserve when any prompt is preserved (the empty prompt is, unless switched off)."""
    learning_rate: Number = Field(2e-4, gt=0, le=1)
    """Step size of the optimizer. The published runs on SDXL use 2e-4 for esd-x and esd-x-strict,
    1e-5 for esd-u and esd-all."""
    optimizer: Literal["adamw", "adafactor", "adamw8bit"] = "adamw"
    """adamw, or adafactor, which keeps far less state in memory; adamw8bit, a quarter of adamw's
    state, needs the package bitsandbytes."""
    weight_decay: Number = Field(0.0, ge=0, le=1)
    """Decoupled weight decay; at 0, adamw is plain Adam."""
    schedule: Literal["constant", "linear"] = "constant"
    """How the learning rate goes on: constant, or linear, which falls to 0 over the second half."""
    loss_weight: Literal["output", "v"] = "v"
    """What an error counts at each noise level: as one of the model's own output, or as one of v,
    which counts more where a picture is decided. The published runs use output."""
    warmup: int = Field(0, ge=0, le=_MANY)
    """Steps over which the learning rate rises to its value."""
    max_grad_norm: Number = Field(1.0, ge=0, le=_MANY)
    """Larger gradient norms are scaled down to this; 0 switches it off."""
    rank: int = Field(0, ge=0, le=4096)
    """Rank of a low-rank student; 0 trains the full tensors."""
    alpha: Number = Field(0.0, ge=0, le=4096)
    """A low-rank change is scaled by alpha / rank; 0 means alpha = rank."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format that the model computes in; auto takes what the device is best at. The trained
    tensors are kept in fp32 whatever it is."""
    gradient_checkpointing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = (
        "auto"
    )
    """Recompute activations in the backward pass: much less memory, and slower. auto does so where
    the memory at hand needs it."""
    save_every: int = Field(0, ge=0, le=_MANY)
    """Save the training state every so many steps; 0 saves it only on stop."""
    preview_every: int = Field(0, ge=0, le=_MANY)
    """Preview every so many steps and at the end; the last one becomes the file's cover. 0 shows
    none."""
    probe_every: int = Field(0, ge=0, le=_MANY)
    """Measure on held-out noise every so many steps; 0 measures only at the end, or every 10 steps
    when until or max_drift needs it."""
    until: Number = Field(0.0, ge=0, le=1)
    """Stop early once two probes running find this share or less of the concept; 0 is off. A run
    that stops so has met few contexts, and can leave the concept in other prompts."""
    max_drift: Number = Field(0.0, ge=0, le=10)
    """Stop when a preserved prompt has drifted beyond this, relative to its prediction, and keep
    the last state below it; 0 is off."""
    save_dtype: FileDtype = "fp16"
    """Number format of the erasure file."""
    deterministic: bool = False
    """On a GPU, compute the same bits in every run, as a CPU does by itself: without it two runs
    differ there in their last digits, and so does one that was stopped and went on. Slower."""

    robust: bool = False
    """Train against an adversary as well, which looks for what brings the concept back in the space
    of the text encoder's states. Cross-attention alone does not hold what it finds: the method
    esd-all does. A run takes longer, and more steps help."""

    @model_validator(mode="after")
    def _fit_each_other(self) -> TrainingConfig:
        if self.warmup > self.steps:
            raise ConfigError(
                f"`training.warmup` must be at most `training.steps`, {self.steps}, not "
                f"{self.warmup}"
            )
        if self.alpha and not self.rank:
            raise ConfigError(
                "`training.alpha` is for low-rank students: set `training.rank` above 0"
            )
        return self

    @property
    def probe_interval(self) -> int:
        """Steps between two probes, 0 for none: `until` and `max_drift` need some."""
        needed = self.until > 0 or self.max_drift > 0
        return self.probe_every or (DEFAULT_PROBE_EVERY if needed else 0)

    @property
    def effective_alpha(self) -> float:
        """What a low-rank change is scaled by, before it is divided by the rank."""
        return self.alpha or float(self.rank)


class ErasureConfig(Settings):
    """All that decides an erasure, apart from the model it is trained on."""

    concepts: Concepts = ()
    """What to erase, one concept a line: "Van Gogh", "Van Gogh -> painting" to replace it, "cowboy
    hat <- cowboy" to erase it from a wider prompt only."""
    preserve: Prompts = ()
    """Prompts whose predictions must not move."""
    preserve_empty: bool = True
    """Preserve the empty prompt too, which every guided picture rests on."""
    preserve_weight: Number = Field(3.0, ge=0, le=1000)
    """Weight of the preserving samples in the loss."""
    contexts: Templates = (AUTO,)
    """Prompts to erase the concept in, one a line, with {} where it goes: "a {} painting of a
    house". auto stands for generic ones, and preserves many generic words beside the concept. None:
    the bare name alone, as in the published runs."""
    method: Method = "esd-x"
    """Which weights train. esd-x: cross-attention, for what a prompt names, such as styles and
    people. esd-x-strict: its keys and values only. esd-u: all but cross-attention, for what must go
    whatever the prompt says. esd-all: both. selfattn: self-attention only."""
    negative_guidance: Number = Field(1.0, ge=0, le=100)
    """How far the concept is pushed beyond its anchor. This is the paper's convention: 0 predicts
    like the anchor, 1 pushes equally far past it, away from the concept. The official SDXL and SD
    scripts count one more: their 1 is 0 here, their 2 is 1. In contexts, a push of more than 1
    away from a style falls to 1 over the run."""
    width: Size = 1024
    """Width of the training pictures, in pixels."""
    height: Size = 1024
    """Height of the training pictures, in pixels."""
    seed: int = Field(0, ge=0, le=2**64 - 1)
    """Seed of all noise and of the order of samples."""
    trajectory: TrajectoryConfig = TrajectoryConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _fit_each_other(self) -> ErasureConfig:
        parse_all(_lines(self.concepts))  # the default, none, is not validated
        erased = {(c.erase_from or c.name).casefold() for c in self.concepts}
        for prompt in self.preserve:
            if prompt.casefold() in erased:
                raise ConfigError(f'`preserve` names "{prompt}", which a concept is erased from')
        if self.preserves and self.training.batch_size < 2:
            raise ConfigError(
                "`training.batch_size` must be at least 2 while prompts are preserved, not 1: "
                "raise it, or set `preserve_weight` to 0"
            )
        if self.training.robust and self.method in CROSS_ATTENTION:
            raise ConfigError(
                f"`training.robust` is not for `method` {self.method}: cross-attention alone does "
                "not hold what an adversary finds; set `method` to esd-all"
            )
        if self.training.max_drift and not self.preserved:
            raise ConfigError("`training.max_drift` watches preserved prompts: there are none")
        return self

    @property
    def preserved(self) -> tuple[str, ...]:
        """Every prompt to preserve, the empty one first; none when their weight is 0."""
        empty = ("",) if self.preserve_empty else ()
        return (*empty, *self.preserve) if self.preserve_weight > 0 else ()

    @property
    def preserves(self) -> bool:
        """Whether a part of each batch preserves: contexts do so by themselves."""
        return bool(self.preserved or (self.contexts and self.preserve_weight > 0))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ErasureConfig:
        """A config from nested or dotted settings; ConfigError on unknown names and bad values."""
        return super().from_mapping(override(mapping, {}))

    def to_mapping(self) -> dict[str, Any]:
        """All settings as JSON and TOML know them, the nested tables last."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """`to_mapping` under dotted names."""
        return flat(self.to_mapping())

    def to_toml(self) -> str:
        """A TOML document that reads back as this config."""
        return toml(self.to_mapping())

    def digest(self) -> str:
        """sha256, in hex, of all settings: equal for equal configs."""
        text = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def override(self, overrides: Mapping[str, Any]) -> ErasureConfig:
        """This config with some settings changed, checked anew."""
        return self.from_mapping(override(self.to_mapping(), overrides))


def fields() -> dict[str, FieldInfo]:
    """Every setting by its dotted name, in order."""
    return named_fields(ErasureConfig)
