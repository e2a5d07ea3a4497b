"""A training loop that resumes: cut short anywhere, it ends with the bits of an uncut run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LossOf = Callable[[np.random.Generator], Tensor]

_WARM = 0.05
"""Part of the steps in which the learning rate rises."""
_SAVE_EVERY = 250


@dataclass(frozen=True)
class Course:
    """How long and how fast a stage trains.

    Args:
        steps: optimizer steps in all.
        learning_rate: at the top of its one cycle.
        averaging: decay of the moving average of the weights, which are the result.
    """

    steps: int
    learning_rate: float
    averaging: float

    def rate_at(self, step: int) -> float:
        """A short linear rise, then half a cosine down to 1/500 of the top."""
        part = step / self.steps
        if part < _WARM:
            return self.learning_rate * (0.04 + 0.96 * part / _WARM)
        down = 0.5 * (1 + math.cos(math.pi * (part - _WARM) / (1 - _WARM)))
        return self.learning_rate * (0.002 + 0.998 * down)


class Loop:
    """AdamW over a module's parameters, with an averaged copy of them.

    All that a later step depends on is saved; random numbers come from generators seeded by the
    step alone, so that a resumed loop repeats the uninterrupted one.
    """

    def __init__(self, module: nn.Module, path: Path, course: Course) -> None:
        self.module, self.path, self.course, self.step = module, path, course, 0
        self.parameters = dict(module.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), course.learning_rate, (0.9, 0.99), weight_decay=1e-3
        )
        self.averaged = {name: p.detach().clone() for name, p in self.parameters.items()}
        if path.exists():
            self._load()

    def run(self, loss_of: LossOf) -> None:
        """Takes all steps that are left; then the module holds the averaged weights, frozen.

        Args:
            loss_of: the loss of a batch that it chooses by the generator it is given; torch's own
                generator is seeded too.
        """
        self.module.requires_grad_(True).train()
        started, losses = time.monotonic(), []
        while self.step < self.course.steps:
            losses.append(self._take(loss_of))
            if self.step % _SAVE_EVERY == 0 or self.step == self.course.steps:
                self._save()
                print(
                    f"{self.path.stem}: {self.step}/{self.course.steps} steps, "
                    f"loss {np.mean(losses):.5f}, {time.monotonic() - started:.0f} s",
                    flush=True,
                )
                losses = []
        self.module.load_state_dict(self.averaged, strict=False)
        self.module.requires_grad_(False).train(False)

    def _take(self, loss_of: LossOf) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.rate_at(self.step)
        torch.manual_seed(self.step)
        loss = loss_of(np.random.default_rng(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        # The first steps' weights do not belong into a mean, which starts short and grows.
        keep = min(self.course.averaging, self.step / (self.step + 10))
        for name, parameter in self.parameters.items():
            self.averaged[name].lerp_(parameter.detach(), 1 - keep)
        return loss.item()

    def _save(self) -> None:
        tensors = {f"module.{k}": v.contiguous() for k, v in self.module.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).clone()
        part = self.path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(self.path)

    def _load(self) -> None:
        tensors = load_file(self.path)

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.module.load_state_dict(under("module."))
        self.averaged = under("averaged.")
        for name, parameter in self.parameters.items():
            state = under(f"optimizer.{name}.")
            if state:  # a parameter that the loss does not depend on has none
                self.optimizer.state[parameter] = state
                self.step = int(state["step"].item())
