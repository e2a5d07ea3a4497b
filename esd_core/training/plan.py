"""What a run needs of memory, told before its first step.

A step is rehearsed on the model's own network, in tensors that have shapes and no contents: what
would be alive is counted, allocation by allocation. So activations need no rule of thumb, and
gradient checkpointing, size, batch and method count by what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..config.settings import ErasureConfig
from ..errors import ESDError
from ..method.contexts import term_source
from ..models.denoiser import Rehearsable
from .dry_run import DryRun
from .gradients import are_short, in_parts


@dataclass(frozen=True)
class Plan:
    """Bytes that a run needs, and how it is run to need no more.

    Attributes:
        weights: of the UNet, which are there already. masters: float32 (twice with max_drift).
        gradients, optimizer: of the masters. activations: of a step, beside the gradients.
        sampling: activations of a round. bank: its samples, which lie in the CPU's memory.
        needed: the most at one time, beside the weights, on the device.
        free: what there is of it.
        checkpointing: whether blocks recompute their activations.
        micro_batch: samples of a batch that go through the network together.
        sampling_batch: evaluations of a round that do.
    """

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    sampling: int
    bank: int
    needed: int
    free: int
    checkpointing: bool
    micro_batch: int
    sampling_batch: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def __str__(self) -> str:
        names = ("weights", "masters", "gradients", "optimizer", "activations", "bank")
        parts = ", ".join(f"{name} {_size(getattr(self, name))}" for name in names)
        how = f"checkpointing {'on' if self.checkpointing else 'off'}"
        return (
            f"memory: {parts} ({how}); {_size(self.needed)} needed beside the weights, "
            f"{_size(self.free)} free"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def plan(denoiser: Rehearsable, config: ErasureConfig) -> Plan:
    """How the run would best be run in the memory there is: without checkpointing where that fits
    (and `gradient_checkpointing` is auto), then with it, then in parts of a batch."""
    return _best(denoiser, config, DryRun(denoiser, config.width, config.height))


def check(denoiser: Rehearsable, config: ErasureConfig) -> Plan:
    """The plan; ESDError when it does not fit, with the nearest settings that do."""
    dry_run = DryRun(denoiser, config.width, config.height)
    made = _best(denoiser, config, dry_run)
    if not made.fits:
        raise ESDError(
            f"training needs {_size(made.needed)} beside the model, and {_size(made.free)} are "
            f"free on {denoiser.device}: {_suggestion(denoiser, config, dry_run)}"
        )
    return made


def _best(denoiser: Rehearsable, config: ErasureConfig, dry_run: DryRun) -> Plan:
    free = denoiser.free_memory()
    training = config.training
    switches = {"auto": (False, True), "on": (True,), "off": (False,)}
    choices = [(c, training.batch_size) for c in switches[training.gradient_checkpointing]]
    checkpointing, micro_batch = choices[-1]
    while micro_batch > 1:
        micro_batch = (micro_batch + 1) // 2
        choices.append((checkpointing, micro_batch))
    for choice in choices:
        made = _planned(denoiser, config, dry_run, free, *choice)
        if made.fits:
            break
    return made


def _suggestion(denoiser: Rehearsable, config: ErasureConfig, dry_run: DryRun) -> str:
    """The nearest settings that fit, in words: the fewest changes that do, the mildest first."""
    sizes = {(config.width, config.height): dry_run}

    def fits(changes: dict[str, Any]) -> bool:
        other = config.override(changes)
        size = other.width, other.height
        if size not in sizes:
            sizes[size] = DryRun(denoiser, *size)
        return _best(denoiser, other, sizes[size]).fits

    changes: dict[str, Any] = {}
    for name, value in _memory_savers(config):
        changes[name] = value
        if not fits(changes):
            continue
        for other in [*changes][:-1]:
            fewer = {n: v for n, v in changes.items() if n != other}
            if fits(fewer):
                changes = fewer
        named = (f"`{name}` = {value}" for name, value in changes.items())
        return f"it fits with {', '.join(named)}"
    return "no settings make it fit, so use a smaller model or another device"


def _memory_savers(config: ErasureConfig) -> Iterator[tuple[str, Any]]:
    """Settings that take less memory, from the one that costs least."""
    training = config.training
    if training.gradient_checkpointing == "off":
        yield "training.gradient_checkpointing", "on"
    if training.max_drift:
        yield "training.max_drift", 0.0
    if training.optimizer != "adafactor":
        yield "training.optimizer", "adafactor"
    if config.method == "esd-x":
        yield "method", "esd-x-strict"
    if not training.rank:
        yield "training.rank", 16
    for edge in (768, 512, 256):
        if max(config.width, config.height) > edge:
            yield "width", min(config.width, edge)
            yield "height", min(config.height, edge)


def _planned(
    denoiser: Rehearsable,
    config: ErasureConfig,
    dry_run: DryRun,
    free: int,
    checkpointing: bool,
    micro_batch: int,
) -> Plan:
    base = denoiser.parameters()
    training = config.training
    passes = -(-training.batch_size // micro_batch)
    short = are_short(denoiser.compute_dtype, training.rank, passes)
    shapes, step = dry_run.step(config.method, training.rank, micro_batch, checkpointing, short)
    row = dry_run.evaluation()
    sizes = [4 * shape.numel() for shape in shapes]
    gradients = sum(sizes) // 2 if short else sum(sizes)
    in_float = max(map(sum, in_parts(sizes))) if short else 0
    masters = (2 if training.max_drift else 1) * sum(sizes)
    optimizer = sum(_state(training.optimizer, shape) for shape in shapes)
    held = masters + optimizer
    latent = denoiser.latent_shape(config.width, config.height)
    bank = _bank(config, latent)
    on_device = bank if denoiser.device.type == "cpu" else 0
    sampling_batch = max(1, min(_rows(config), (free - held - on_device) // row))
    return Plan(
        weights=sum(t.numel() * t.element_size() for t in base.values()),
        masters=masters,
        gradients=gradients,
        optimizer=optimizer,
        activations=max(0, step - gradients),
        sampling=sampling_batch * row,
        bank=bank,
        needed=held + on_device + max(step, gradients + in_float, sampling_batch * row),
        free=free,
        checkpointing=checkpointing,
        micro_batch=micro_batch,
        sampling_batch=sampling_batch,
    )


def _rows(config: ErasureConfig) -> int:
    """Evaluations of a round that would go through the network together."""
    return config.trajectory.count * max(len(term.rollout()) for term in term_source(config).terms)


def _bank(config: ErasureConfig, latent: tuple[int, ...]) -> int:
    """A round's samples: latent and target in float32, as many to preserve as to erase."""
    sides = 2 if config.preserved else 1
    samples = sides * config.trajectory.count * config.trajectory.steps
    return samples * 2 * 4 * prod(latent)


def _state(optimizer: str, shape: torch.Size) -> int:
    """Bytes that an optimizer keeps for a master of that shape."""
    if optimizer == "adafactor":
        # Rows and columns of the last two dimensions, where there are two.
        rows_and_columns = shape[:-1].numel() + shape[:-2].numel() * shape[-1:].numel()
        return 4 * (rows_and_columns if len(shape) > 1 else shape.numel())
    return {"adamw": 8, "adamw8bit": 2}[optimizer] * shape.numel()
