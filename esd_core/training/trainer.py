"""The loop: regression of the student on samples of the bank."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ESDError
from ..files.apply import fingerprint
from ..method.bank import Bank, Samples
from ..method.objective import regression_loss
from ..method.probes import ProbeReport, Probes
from ..models.denoiser import Denoiser
from .checkpoint import TrainingState, optimizer_tensors, restore_optimizer, write_state
from .gradients import ShortGradients, are_short
from .optimizer import make_optimizer
from .plan import Plan, exhausted, ran_out
from .student import Student


@dataclass(frozen=True)
class Progress:
    """Where a run is. `seconds` is the mean time of a step of this run, rounds included."""

    step: int
    total: int
    loss: float
    seconds: float

    @property
    def left(self) -> float:
        """Seconds until the last step."""
        return (self.total - self.step) * self.seconds


class Events(Protocol):
    """What a host is told."""

    def on_step(self, progress: Progress) -> None: ...

    def on_preview(self, step: int, student: dict[str, Tensor]) -> None:
        """Also at the end, of what comes out."""

    def on_save(self, step: int, path: Path) -> None: ...


class Commands(Protocol):
    """What a host may ask."""

    def should_stop(self) -> bool: ...


@dataclass
class Outcome:
    """How a run ended: "done", "erased" (until), "drifted" (max_drift) or "stopped"."""

    ending: str
    step: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    probes: ProbeReport | None = None


class Trainer:
    """Owns everything that changes while a student is trained.

    Two random streams, `noise` (latents, choice of states) and `order` (shuffles), start from the
    config's seed and are part of the saved state.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        bank: Bank,
        student: Student,
        probes: Probes,
        state_file: Path | None,
        plan: Plan | None = None,
    ) -> None:
        self.denoiser, self.bank, self.student, self.probes = denoiser, bank, student, probes
        self.config = bank.config
        self.state_file = state_file
        training = self.config.training
        self.checkpointing = training.gradient_checkpointing == "on"
        self.part = training.batch_size
        if plan:
            self.checkpointing, self.part = plan.checkpointing, plan.part
        masters = list(student.masters.values())
        self.optimizer = make_optimizer(training, masters)
        passes = -(-training.batch_size // self.part)
        short = are_short(denoiser.compute_dtype, training.rank, passes)
        self.short_gradients = ShortGradients(masters) if short else None
        scaled = denoiser.compute_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(denoiser.device.type, enabled=scaled)
        seed = self.config.seed
        self.noise = torch.Generator().manual_seed(seed)
        self.order = torch.Generator().manual_seed(seed ^ 0x0DDE)
        self.step = self.round = self.position = 0
        self.losses: list[float] = []
        self.samples: Samples | None = None
        self.batches = torch.empty(0, 0, dtype=torch.long)
        self.kept: dict[str, Tensor] = {}
        self.kept_step = 0
        self.below_until = False
        self.ending = "done"
        """Part of the state: a run that breaks off after its end is not trained further."""

    def run(self, events: Events, commands: Commands) -> Outcome:
        """Trains until the steps are done, a probe says so, or the host asks to stop.

        Raises:
            ESDError: the loss is not finite, or the memory is used up; then the state is saved.
        """
        try:
            return self._run(events, commands)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            if self.step:
                self.save(events)
            raise exhausted(error) from error

    def _run(self, events: Events, commands: Commands) -> Outcome:
        training = self.config.training
        started, first, is_stopped = time.monotonic(), self.step, False
        with self.denoiser.checkpointed(self.checkpointing):
            while self.step < training.steps and self.ending == "done":
                is_stopped = commands.should_stop()
                if is_stopped:
                    break
                self.take_step()
                seconds = (time.monotonic() - started) / (self.step - first)
                events.on_step(Progress(self.step, training.steps, self.losses[-1], seconds))
                if _due(self.step, training.preview_every) and self.step < training.steps:
                    events.on_preview(self.step, self.student.tensors())
                if _due(self.step, training.probe_interval):
                    self._judge(self.probes.measure(self.student.tensors()))
                if _due(self.step, training.save_every) and self.ending == "done":
                    self.save(events)
        if is_stopped:
            self.save(events)
        report = self._final_report(is_stopped)
        if training.preview_every and not is_stopped:
            events.on_preview(self.step, self.student.tensors())
        ending = "stopped" if is_stopped else self.ending
        return Outcome(ending, self.step, time.monotonic() - started, self.losses, report)

    def _final_report(self, is_stopped: bool) -> ProbeReport:
        """Of what comes out, which is an earlier state if the last one has drifted."""
        report = self.probes.measure(self.student.tensors())
        if not is_stopped and self.ending == "done" and self._drifts(report):
            self._take_back()
            report = self.probes.measure(self.student.tensors())
        return report

    @property
    def round_is_used_up(self) -> bool:
        """Whether the next step samples new trajectories first."""
        return self.position == len(self.batches)

    def take_step(self) -> None:
        """One step of the optimizer, and the round before it where one is due."""
        place = self._place()
        try:
            loss = self._train(self._next_batch())
        except BaseException:  # of a step, or of a round, a part may be done: nothing is skipped
            self._put_back(place)
            raise
        self.losses.append(loss)
        self.step += 1

    def _place(self) -> tuple[Any, ...]:
        course = (self.samples, self.batches, self.round, self.position, self.bank.evaluations)
        return (*course, self.noise.get_state(), self.order.get_state())

    def _put_back(self, place: tuple[Any, ...]) -> None:
        self.samples, self.batches, self.round, self.position, self.bank.evaluations = place[:5]
        self.noise.set_state(place[5])
        self.order.set_state(place[6])
        self.optimizer.zero_grad(set_to_none=True)
        if self.short_gradients:
            self.short_gradients.clear()

    def _next_batch(self) -> Tensor:
        """Rows of the round's samples; a new round when this one is used up."""
        if self.round_is_used_up:
            with torch.no_grad():
                policy = self.config.trajectory.source == "student"
                student = self.student.tensors() if policy else None
                self.samples = self.bank.sample_round(self.round, self.noise, student)
            training = self.config.training
            self.batches = self.samples.order(
                self.order, training.batch_size, self.config.trajectory.reuse
            )
            self.round, self.position = self.round + 1, 0
        self.position += 1
        return self.batches[self.position - 1]

    def _train(self, rows: Tensor) -> float:
        """One optimizer step on these samples; returns the loss."""
        loss = sum(self._add_gradients(part, len(rows)) for part in rows.split(self.part))
        self._update()
        return loss

    def _add_gradients(self, rows: Tensor, batch_size: int) -> float:
        """Backward through these samples of a batch; returns their share of its loss."""
        assert self.samples is not None
        device = self.denoiser.device
        batch = {name: value.to(device) for name, value in self.samples.rows(rows).items()}
        conditioning = self.bank.conditioning.select(batch["condition"])
        # Inside until backward has run: checkpointing reads the swapped-in tensors again.
        with self.denoiser.swapped(self.student.made()):
            prediction = self.denoiser.predict_noise(batch["x"], batch["sigma"], conditioning)
            loss = regression_loss(prediction, batch["target"], batch["weight"])
            loss = loss * (len(rows) / batch_size)
            self._refuse_non_finite(loss, batch["sigma"])
            self.scaler.scale(loss).backward()
        return loss.item()

    def _update(self) -> None:
        training = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * min(1.0, (self.step + 1) / (training.warmup + 1))
        if self.short_gradients:
            self.short_gradients.step(self.optimizer, training.max_grad_norm)
            return
        self.scaler.unscale_(self.optimizer)
        if training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.student.masters.values(), training.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _refuse_non_finite(self, loss: Tensor, sigma: Tensor) -> None:
        if torch.isfinite(loss):
            return
        levels = ", ".join(f"{level:.2f}" for level in sigma.tolist())
        raise ESDError(
            f"the loss is not finite at step {self.step + 1} (sigma {levels}): lower "
            "training.learning_rate, or set training.precision to fp32 or bf16"
        )

    def _judge(self, report: ProbeReport) -> None:
        """Ends the run where the probes say so."""
        training = self.config.training
        if self._drifts(report):
            self._take_back()
            return
        if training.max_drift:
            self.kept = {n: m.detach().clone() for n, m in self.student.masters.items()}
            self.kept_step = self.step
        below = training.until > 0 and max(report.share.values()) <= training.until
        # One reading may be a dip of a noisy run: the share must stay there for a second one.
        if below and self.below_until:
            self.ending = "erased"
        self.below_until = below

    def _drifts(self, report: ProbeReport) -> bool:
        limit = self.config.training.max_drift
        return limit > 0 and max(report.drift[p] for p in self.probes.preserved) > limit

    @torch.no_grad()
    def _take_back(self) -> None:
        """To the last probe that was within the drift; ESDError when there was none."""
        if not self.kept:
            raise ESDError(
                "the first probe already lies beyond training.max_drift: lower "
                "training.learning_rate, probe more often, or raise max_drift"
            )
        self.ending = "drifted"
        for name, master in self.student.masters.items():
            master.copy_(self.kept[name])
        self.step = self.kept_step

    # -- state

    def save(self, events: Events) -> None:
        """Writes the state file, where the run has one."""
        if self.state_file:
            write_state(self.state_file, self.state())
            events.on_save(self.step, self.state_file)

    def state(self) -> TrainingState:
        tensors, numbers = optimizer_tensors(self.optimizer)
        groups = {
            "student": {n: m.detach() for n, m in self.student.masters.items()},
            "optimizer": tensors,
            "kept": self.kept,
            "samples": self.samples.tensors() if self.samples else {},
            "run": {
                "batches": self.batches,
                "noise": self.noise.get_state(),
                "order": self.order.get_state(),
            },
        }
        values: dict[str, Any] = {
            "step": self.step,
            "round": self.round,
            "position": self.position,
            "kept_step": self.kept_step,
            "below_until": self.below_until,
            "ending": self.ending,
            "base": fingerprint(self.denoiser.parameters()),
            "losses": self.losses,
            "erasing": self.samples.erasing if self.samples else 0,
            "evaluations": self.bank.evaluations,
            "optimizer": numbers,
            "scaler": self.scaler.state_dict(),
            "config": self.config.to_mapping(),
        }
        flat = {f"{g}.{name}": t for g, group in groups.items() for name, t in group.items()}
        return TrainingState(flat, values)

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Goes back to where `state` was taken."""
        masters = self.student.masters
        saved = state.group("student")
        if {n: m.shape for n, m in masters.items()} != {n: m.shape for n, m in saved.items()}:
            raise ValueError("the state is of another student")
        for name, value in saved.items():
            masters[name].copy_(value)
        self.kept = {
            n: v.to(self.student.masters[n].device, copy=True)
            for n, v in state.group("kept").items()
        }
        values = state.values
        restore_optimizer(self.optimizer, state.group("optimizer"), values["optimizer"])
        self.scaler.load_state_dict(values["scaler"])
        samples, run = state.group("samples"), state.group("run")
        self.samples = Samples(**samples, erasing=values["erasing"]) if samples else None
        self.batches = run["batches"]
        self.noise.set_state(run["noise"])
        self.order.set_state(run["order"])
        self.step, self.round, self.position = values["step"], values["round"], values["position"]
        self.kept_step, self.below_until = values["kept_step"], values["below_until"]
        self.ending, self.losses = values["ending"], list(values["losses"])
        self.bank.evaluations = values["evaluations"]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
