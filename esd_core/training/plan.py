"""What a run needs of memory, told before its first step.

A step is rehearsed on the backend's own network, with tensors that have shapes and no contents:
what would be alive is counted, allocation by allocation. So activations need no rule of thumb, and
gradient checkpointing, size, batch and method count by what they do.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..config.settings import ErasureConfig, TrainingConfig
from ..errors import ESDError
from ..method.contexts import term_source
from ..method.shares import ALONE, Alone
from ..models.denoiser import Rehearsable
from .dry_run import DryRun
from .gradients import keeps_bf16
from .optimizer import chunks, state_bytes, step_bytes


@dataclass(frozen=True)
class Plan:
    """Bytes that a run needs, and how it is run to need no more.

    Attributes:
        weights: of the network, which are there already. masters: float32 (twice with max_drift).
        gradients, optimizer: of the masters. activations: of a step, beside the gradients.
        bank: a round's samples, which lie in the CPU's memory.
        needed: the most at one time, beside the weights, on the device.
        free: what there is of it, without a margin.
        checkpointing: whether blocks recompute their activations.
        micro_batch: samples of a batch that go through the network together.
        keeps_bf16: whether gradients wait for the optimizer's step in bf16.
        sampling_batch: evaluations of a round that go through the network together.
    """

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    bank: int
    needed: int
    free: int
    checkpointing: bool
    micro_batch: int
    keeps_bf16: bool
    sampling_batch: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def __str__(self) -> str:
        names = ("weights", "masters", "gradients", "optimizer", "activations", "bank")
        parts = ", ".join(f"{name} {size(getattr(self, name))}" for name in names)
        how = f"checkpointing {'on' if self.checkpointing else 'off'}"
        return (
            f"memory: {parts} ({how}); {size(self.needed)} needed beside the weights, "
            f"{size(self.free)} free"
        )


def size(count: int) -> str:
    """Of so many bytes, in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _silent(_: str) -> None:
    """For who does not wait to be told."""


def check(
    denoiser: Rehearsable,
    config: ErasureConfig,
    tell: Callable[[str], None] = _silent,
    ranks: Alone = ALONE,
) -> Plan:
    """The plan; ESDError when it does not fit, with the nearest settings that do.

    tell: as in `Planner`.
    """
    planner = Planner(denoiser, config, tell, ranks)
    return planner.check(config, planner.plan(config))


def margin(device: torch.device, free: int) -> int:
    """Bytes of an accelerator that a run leaves alone, since no count of tensors shows them.

    Workspaces of its libraries for matrix products and convolutions, the texts of all prompts, and
    pieces that its allocator will hold between tensors and cannot put together. Those that it holds
    already do not count as free. What probes have recorded lies in the CPU's memory, and a preview
    that finds no room for the autoencoder is skipped.
    """
    return 0 if device.type == "cpu" else _WORKSPACES + round(_FRAGMENTS * free)


_WORKSPACES = 256 * 2**20
_FRAGMENTS = 0.03


def _rounding(masters: int) -> int:
    """What an allocator adds that hands out pieces of 512 bytes: to each master, its gradient and
    its optimizer's state, and to the activations that are alive together."""
    return 4 * 512 * masters + 2**18


class Planner:
    """Plans runs of one model and one list of prompts, in the memory that is free now; of several
    ranks, the share of one."""

    def __init__(
        self,
        denoiser: Rehearsable,
        config: ErasureConfig,
        tell: Callable[[str], None] = _silent,
        ranks: Alone = ALONE,
    ) -> None:
        """tell: what is counted next, a second's work at a time; what it raises ends the planning,
        as a host's Cancel does."""
        self._denoiser, self._ranks = denoiser, ranks
        is_shared = denoiser.device.type == "cpu"
        free = denoiser.free_memory() // (ranks.neighbours if is_shared else 1)
        self._free = max(0, free - margin(denoiser.device, free))
        self._dry_run = DryRun(denoiser, config, tell)
        self._weights = sum(t.numel() * t.element_size() for t in denoiser.parameters().values())

    def plan(self, config: ErasureConfig) -> Plan:
        """How the run would best be run: without checkpointing where that fits (and
        `gradient_checkpointing` is auto), then with it, then in parts of a batch."""
        *choices, last = self._choices(config.training)
        for choice in choices:
            if self._least(config, choice[1]) <= self._free:
                made = self._planned(config, *choice)
                if made.fits:
                    return made
        return self._planned(config, *last)

    def check(self, config: ErasureConfig, made: Plan) -> Plan:
        """The plan of this config, if it fits; else ESDError with settings that do."""
        if made.fits:
            return made
        raise ESDError(
            f"training needs {size(made.needed)} beside the model, and {size(made.free)} are "
            f"free on {self._denoiser.device}: {self.suggest(config)}"
        )

    def suggest(self, config: ErasureConfig) -> str:
        """The smallest set of setting changes that makes the run fit, in words."""
        changes: dict[str, Any] = {}
        for name, value in memory_savers(config):
            if name == "training.rank":  # with which all of cross-attention costs little more
                changes.pop("method", None)
            changes[name] = value
            if not self._fits(config.override(changes)):
                continue
            for other in [*changes][:-1]:
                fewer = {n: v for n, v in changes.items() if n != other}
                if self._fits(config.override(fewer)):
                    changes = fewer
            named = (f"`{name}` = {value}" for name, value in changes.items())
            return f"it fits with {', '.join(named)}"
        return "no settings make it fit, so use a smaller model or another device"

    def _fits(self, config: ErasureConfig) -> bool:
        """Rehearses only the leanest way to run, and nothing where what is held is too much."""
        checkpointing, leanest = self._choices(config.training)[-1]
        return any(
            self._least(config, part) <= self._free
            and self._planned(config, checkpointing, part).fits
            for part in {leanest, self._ranks.most(config.training.batch_size)}
        )

    def _keeps_bf16(self, training: TrainingConfig, micro_batch: int) -> bool:
        passes = self._passes(training, micro_batch) * self._ranks.count
        return keeps_bf16(self._denoiser.compute_dtype, training.rank, passes)

    def _held(self, config: ErasureConfig) -> tuple[int, int]:
        """Bytes of masters and of the optimizer, as long as the run lasts."""
        shapes = [master.shape for master in self._dry_run.masters(config)]
        copies = 2 if config.training.max_drift else 1
        masters = copies * 4 * sum(shape.numel() for shape in shapes)
        optimizer = sum(state_bytes(config.training.optimizer, shape) for shape in shapes)
        if self._ranks.shards_optimizer:
            optimizer = self._ranks.most(optimizer)
        return masters, optimizer

    def _least(self, config: ErasureConfig, micro_batch: int) -> int:
        """What a run needs in any case: what is held, and the gradients."""
        masters, optimizer = self._held(config)
        each = 2 if self._keeps_bf16(config.training, micro_batch) else 4
        return masters + optimizer + each * sum(m.numel() for m in self._dry_run.masters(config))

    def _planned(self, config: ErasureConfig, checkpointing: bool, micro_batch: int) -> Plan:
        training = config.training
        channels, *_, height, width = self._denoiser.latent_shape(config.width, config.height)
        masters, optimizer = self._held(config)
        bank, evaluations = self._round(config)
        held = masters + optimizer + (bank if self._denoiser.device.type == "cpu" else 0)
        sizes = [4 * master.numel() for master in self._dry_run.masters(config)]
        passes = self._passes(training, micro_batch)
        short = self._keeps_bf16(training, micro_batch)
        gradients = sum(sizes) // 2 if short else sum(sizes)
        # From a batch's second pass on, all gradients are there before it begins.
        arriving: str | int = sum(sizes) if passes > 1 else "bf16" if short else "fp32"
        batch = micro_batch, height, width
        step = self._dry_run.step(config, checkpointing, *batch).peak(*batch, arriving)
        chunk = max(map(sum, chunks(sizes))) if short else 0
        stepping = step_bytes(training.optimizer, sizes, optimizer, gradients, chunk)
        row = self._dry_run.evaluation(1, height, width).peak(1, height, width)
        # Of each, its text is copied twice, and its latents are there beside what is predicted.
        waiting = evaluations * (2 * self._dry_run.text + 4 * 4 * channels * height * width)
        rows = max(1, min(evaluations, (self._free - held - waiting) // row))
        return Plan(
            weights=self._weights,
            masters=masters,
            gradients=gradients,
            optimizer=optimizer,
            activations=max(0, step - gradients),
            bank=bank,
            needed=held + max(step, stepping, rows * row + waiting) + _rounding(len(sizes)),
            free=self._free,
            checkpointing=checkpointing,
            micro_batch=micro_batch,
            keeps_bf16=short,
            sampling_batch=rows,
        )

    def _choices(self, training: TrainingConfig) -> list[tuple[bool, int]]:
        """Checkpointing and micro-batch, from the fastest to the one that needs least."""
        switches = {"auto": (False, True), "on": (True,), "off": (False,)}
        share = self._ranks.most(training.batch_size)
        choices = [(c, share) for c in switches[training.gradient_checkpointing]]
        while choices[-1][1] > 1:
            choices.append((choices[-1][0], (choices[-1][1] + 1) // 2))
        return choices

    def _passes(self, training: TrainingConfig, micro_batch: int) -> int:
        return -(-self._ranks.most(training.batch_size) // micro_batch)

    def _round(self, config: ErasureConfig) -> tuple[int, int]:
        """Bytes of a round's samples, latent and target in float32, with those that preserve; and
        its evaluations that would go through the network together."""
        source, trajectory = term_source(config, self._denoiser.architecture), config.trajectory
        sides = 1 + source.preserving if config.preserves else 1
        latent = math.prod(self._denoiser.latent_shape(config.width, config.height))
        widest = max(len(term.rollout()) for term in source.terms)
        samples = sides * trajectory.count * trajectory.steps
        return samples * 2 * 4 * latent, self._ranks.most(trajectory.count) * widest


def memory_savers(config: ErasureConfig) -> Iterator[tuple[str, Any]]:
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
