"""The loop: regression of the student on samples of the bank."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.settings import ErasureConfig
from ..errors import ESDError
from ..method.objective import regression_loss
from ..method.probes import ProbeReport, Probes
from ..method.rounds import Rounds
from ..method.samples import Samples
from ..method.shares import ALONE, Alone
from ..method.terms import preserving
from ..models.denoiser import Conditioning, Denoiser
from .adversary import Adversary
from .checkpoint import StateFile
from .deterministic import deterministic
from .early_stop import RUNNING, EarlyStop
from .events import Control, Events, Outcome, Progress
from .out_of_memory import oom_as_error
from .plan import Plan
from .student import Student
from .update import Update


class Trainer:
    """Trains a student. Everything that changes meanwhile is in its parts, each with its state.

    Attributes:
        probe_interval: steps between two probes, 0 for none. A host that shows them may set it
            where the config asks for none: measuring changes nothing.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: ErasureConfig,
        rounds: Rounds,
        student: Student,
        probes: Probes,
        plan: Plan,
        state_file: StateFile | None = None,
        ranks: Alone = ALONE,
        adversary: Adversary | None = None,
    ) -> None:
        self.denoiser, self.config, self.plan = denoiser, config, plan
        self.rounds, self.student, self.probes = rounds, student, probes
        self.state_file, self.ranks, self.adversary = state_file, ranks, adversary
        self.update = Update(
            list(student.masters.values()),
            config.training,
            denoiser.compute_dtype,
            plan.keeps_bf16,
            ranks,
        )
        self.early_stop = EarlyStop(config.training, preserving(config))
        self.probe_interval = config.training.probe_interval
        self.step = 0
        self.losses: list[float] = []

    def run(self, events: Events, control: Control) -> Outcome:
        """Trains until the steps are done, a probe says so, or the host asks to stop.

        On a stop, and when anything fails, the state is saved; not on KeyboardInterrupt, which
        ends a run at once.

        Raises:
            ESDError: the loss is not finite, or the memory is used up.
        """
        try:
            with oom_as_error(), deterministic(self.config.training.deterministic):
                return self._run(events, control)
        except KeyboardInterrupt:
            raise
        except BaseException:
            # A sharded optimizer is saved by all ranks, and not all of them come by here.
            if self.step and not self.ranks.shards_optimizer:
                self.save(events)
            raise

    def _run(self, events: Events, control: Control) -> Outcome:
        training = self.config.training
        started, is_stopped, is_kept = time.monotonic(), False, False
        with self.denoiser.checkpointed(self.plan.checkpointing):
            while self.step < training.steps and self.early_stop.status == RUNNING:
                is_stopped = self.ranks.any(control.should_stop())
                is_kept = self.step > 0 and self.ranks.any(control.should_finish())
                if is_stopped or is_kept:
                    break
                self.take_step()
                events.on_step(Progress(self.step, training.steps, self.losses[-1]))
                self._after_step(events)
        if is_stopped:
            self.save(events)
        report = self._final_report(is_stopped)
        if not is_stopped:
            events.on_probe(self.step, report)
            if training.preview_every:
                self._preview(events)
        finished = "by hand" if is_kept else "done"
        ended = finished if self.early_stop.status == RUNNING else self.early_stop.status
        ending = "stopped" if is_stopped else ended
        return Outcome(ending, self.step, time.monotonic() - started, self.losses, report)

    def take_step(self) -> None:
        """One step of the optimizer, and the round before it where one is due."""
        rounds, adversary = self.rounds, self.adversary
        before = rounds.state_dict(), adversary.state_dict() if adversary else {}
        try:
            batch = rounds.next_batch(self.student.tensors)
            if adversary:
                adversary.learn(batch, self.plan.micro_batch, self.student.tensors(), self.step)
            loss = self._backward(batch)
            while not self.update.step(self.step):  # fp16 overflowed: again, at a lower scale
                loss = self._backward(batch)
        except BaseException:  # it may have failed halfway: it is to be repeated in full
            rounds.load_state_dict(before[0])
            if adversary:
                adversary.load_state_dict(before[1])
            self.update.discard()
            raise
        self.losses.append(loss)
        self.step += 1

    def _backward(self, batch: Samples) -> float:
        """Leaves the gradients of a batch with the update, those of all ranks; its loss."""
        losses = []
        for part in batch.share(self.ranks).split(self.plan.micro_batch):
            samples = part.to(self.denoiser.device)
            prompts = self._prompts(samples)
            # Inside until backward has run: checkpointing reads the swapped-in tensors again.
            with self.denoiser.swapped(self.student.tensors()):
                predicted = self.denoiser.predict(samples.x, samples.sigma, prompts)
                loss = regression_loss(predicted, samples.target, samples.weight)
                loss = loss * (len(part) / len(batch))
                self._refuse_non_finite(loss, samples.sigma)
                self.update.backward(loss)
            losses.append(loss.item())
        total = self.ranks.total(sum(losses))
        self.update.add_up()
        return total

    def _prompts(self, samples: Samples) -> Conditioning:
        if self.adversary:
            return self.adversary.prompts(samples, self.step)
        return self.rounds.bank.rows(samples.condition)

    def _refuse_non_finite(self, loss: Tensor, sigma: Tensor) -> None:
        if torch.isfinite(loss):
            return
        levels = ", ".join(f"{level:.2f}" for level in sigma.tolist())
        raise ESDError(
            f"the loss is not finite at step {self.step + 1} (sigma {levels}): lower "
            "`training.learning_rate`, or set `training.precision` to fp32 or bf16"
        )

    def _after_step(self, events: Events) -> None:
        """Previews, probes and saves, where they are due."""
        training = self.config.training
        if _due(self.step, training.preview_every) and self.step < training.steps:
            self._preview(events)
        if _due(self.step, self.probe_interval):
            report = self._probe()
            events.on_probe(self.step, report)
            self.step = self.early_stop.check(report, self.student, self.step)
        if _due(self.step, training.save_every) and self.early_stop.status == RUNNING:
            self.save(events)

    def _preview(self, events: Events) -> None:
        if self.ranks.is_first:
            events.on_preview(self.step, self.student.tensors())

    def _probe(self) -> ProbeReport:
        return self.probes.measure(self.student.tensors())

    def _final_report(self, is_stopped: bool) -> ProbeReport:
        """Of what comes out, which is an earlier state if the last one has drifted."""
        report = self._probe()
        if is_stopped or self.early_stop.status != RUNNING:
            return report
        step = self.early_stop.check_drift(report, self.student, self.step)
        if step == self.step:
            return report
        self.step = step
        return self._probe()

    def save(self, events: Events) -> None:
        """Writes the state file, where the run has one."""
        if not self.state_file:
            return
        state = self.state_dict()
        if self.ranks.is_first:
            self.state_file.write(state)
            events.on_save(self.step, self.state_file.path)

    def state_dict(self) -> dict[str, Any]:
        adversary = {"adversary": self.adversary.state_dict()} if self.adversary else {}
        return {
            "step": self.step,
            "losses": self.losses,
            "rounds": self.rounds.state_dict(),
            "student": self.student.state_dict(),
            "update": self.update.state_dict(),
            "early_stop": self.early_stop.state_dict(),
            **adversary,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """KeyError or ValueError when a part is missing or does not fit."""
        self.student.load_state_dict(state["student"])
        self.rounds.load_state_dict(state["rounds"])
        self.update.load_state_dict(state["update"])
        self.early_stop.load_state_dict(state["early_stop"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])
        self.step, self.losses = state["step"], list(state["losses"])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
