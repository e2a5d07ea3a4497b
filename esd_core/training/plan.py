"""What a run needs of memory, told before its first step.

A step is rehearsed with tensors that have shapes and no contents, on the UNet of the same config:
what would be alive is counted, allocation by allocation. So activations need no rule of thumb, and
gradient checkpointing, size, batch and method count by what they do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..config.settings import ErasureConfig
from ..errors import ESDError
from ..models.denoiser import Denoiser
from .dry_run import Trial
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
        part: samples of a batch that go through the network together.
        rows: evaluations of a round that do.
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
    part: int
    rows: int

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


def plan(denoiser: Denoiser, config: ErasureConfig) -> Plan:
    """How the run would best be run in the memory there is: without checkpointing where that fits
    (and `gradient_checkpointing` is auto), then with it, then in parts of a batch."""
    free = denoiser.free_memory()
    training = config.training
    switches = {"auto": (False, True), "on": (True,), "off": (False,)}
    choices = [(c, training.batch_size) for c in switches[training.gradient_checkpointing]]
    checkpointing, part = choices[-1]
    while part > 1:
        part = (part + 1) // 2
        choices.append((checkpointing, part))
    for checkpointing, part in choices:
        made = _planned(denoiser, config, free, checkpointing, part)
        if made.fits:
            break
    return made


def check(denoiser: Denoiser, config: ErasureConfig) -> Plan:
    """The plan; ESDError when it does not fit, with the nearest settings that do."""
    made = plan(denoiser, config)
    if not made.fits:
        raise ESDError(
            f"training needs {_size(made.needed)} beside the model, and {_size(made.free)} are "
            f"free on {denoiser.device}: {advice(denoiser, config)}"
        )
    return made


def advice(denoiser: Denoiser, config: ErasureConfig) -> str:
    """The nearest settings that fit, in words: as few changes as will do, the mildest first."""
    changes: dict[str, Any] = {}
    for name, value in _milder(config):
        changes[name] = value
        if not plan(denoiser, config.override(changes)).fits:
            continue
        for other in [*changes][:-1]:
            fewer = {n: v for n, v in changes.items() if n != other}
            if plan(denoiser, config.override(fewer)).fits:
                changes = fewer
        told = (f"{n.rpartition('.')[2]} = {v}" for n, v in changes.items())
        return f"it fits with {', '.join(told)}"
    return "no settings make it fit, so use a smaller model or another device"


def ran_out(error: BaseException) -> bool:
    """Whether it tells that memory is used up, on whatever device."""
    return isinstance(error, MemoryError) or bool(_USED_UP.search(str(error)))


def exhausted(error: BaseException) -> ESDError:
    """What is said of it."""
    lines = str(error).strip().splitlines()
    return ESDError(
        f"the memory was used up ({lines[0] if lines else 'no more is given'}): take gradient "
        "checkpointing, the optimizer adafactor, the method esd-x-strict, a rank, or a smaller size"
    )


_USED_UP = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def _milder(config: ErasureConfig) -> Iterator[tuple[str, Any]]:
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
    denoiser: Denoiser, config: ErasureConfig, free: int, checkpointing: bool, part: int
) -> Plan:
    _, height, width = denoiser.latent_shape(config.width, config.height)
    base = denoiser.parameters()
    trial = Trial(
        tuple(sorted((k, _frozen(v)) for k, v in denoiser.unet_config.items())),
        denoiser.architecture,
        next(iter(base.values())).dtype,
        denoiser.compute_dtype,
        (height, width),
    )
    training = config.training
    passes = -(-training.batch_size // part)
    short = are_short(denoiser.compute_dtype, training.rank, passes)
    shapes, step = trial.step(config.method, training.rank, part, checkpointing, short)
    row = trial.evaluation()
    sizes = [4 * shape.numel() for shape in shapes]
    gradients = sum(sizes) // 2 if short else sum(sizes)
    in_float = max(map(sum, in_parts(sizes))) if short else 0
    masters = (2 if training.max_drift else 1) * sum(sizes)
    optimizer = sum(_state(training.optimizer, shape) for shape in shapes)
    held = masters + optimizer
    bank = _bank(config, height, width)
    on_device = bank if denoiser.device.type == "cpu" else 0
    asked = _rows(config)
    rows = max(1, min(asked, (free - held - on_device) // row))
    return Plan(
        weights=sum(t.numel() * t.element_size() for t in base.values()),
        masters=masters,
        gradients=gradients,
        optimizer=optimizer,
        activations=max(0, step - gradients),
        sampling=rows * row,
        bank=bank,
        needed=held + on_device + max(step, gradients + in_float, rows * row),
        free=free,
        checkpointing=checkpointing,
        part=part,
        rows=rows,
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _rows(config: ErasureConfig) -> int:
    """Evaluations of a round that would go through the network together."""
    prompts = 3 if any(c.anchor or c.erase_from for c in config.concepts) else 2
    return config.trajectory.count * prompts


def _bank(config: ErasureConfig, height: int, width: int) -> int:
    """A round's samples: latent and target in float32, as many to preserve as to erase."""
    sides = 2 if config.preserved else 1
    samples = sides * config.trajectory.count * config.trajectory.steps
    return samples * 2 * 4 * 4 * height * width


def _state(optimizer: str, shape: torch.Size) -> int:
    """Bytes that an optimizer keeps for a master of that shape."""
    if optimizer == "adafactor":
        # Rows and columns of the last two dimensions, where there are two.
        rows_and_columns = shape[:-1].numel() + shape[:-2].numel() * shape[-1:].numel()
        return 4 * (rows_and_columns if len(shape) > 1 else shape.numel())
    return {"adamw": 8, "adamw8bit": 2}[optimizer] * shape.numel()
