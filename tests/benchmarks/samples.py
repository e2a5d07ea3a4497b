"""Evaluations of the UNet that a training sample costs, the student's own forward among them.

As the official code trains: one concept, and nothing preserved. What is evaluated makes no
difference to how often it is, so the network's work is left out, and thousands can be counted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esd_core.config.settings import ErasureConfig
from esd_core.models.denoiser import Conditioning
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.models.swap import materialize
from esd_core.training.trainer import Trainer

from . import pocket
from .figure import Figure
from .official import official

PAIRS = 5
REUSE = 4
_BARS = {1: 0.06, REUSE: 0.04}
_BATCH = 8


class Counter(DiffusersDenoiser):
    """Counts rows; predicts no noise, with a graph to the student's tensors."""

    rows = 0

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.rows += len(x)
        module, leaf = self._slots["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
        return torch.zeros_like(x) * materialize(module._parameters[leaf]).sum()


def run(pairs: int, samples: int = 640) -> list[Figure]:
    """`samples` a side and pair are trained on."""
    counter = Counter(pocket.load().pipeline)
    other = [per_sample(official(counter, _config(s, 1, samples)), counter) for s in range(pairs)]
    figures = []
    for reuse, bar in _BARS.items():
        configs = [_config(seed, reuse, samples) for seed in range(pairs)]
        ours = [per_sample(pocket.trainer(counter, c), counter) for c in configs]
        what = f"UNet evaluations a training sample at reuse {reuse}, against the official schedule"
        name = "samples" if reuse == 1 else f"samples, reuse {reuse}"
        figures.append(Figure(name, what, "evaluations", bar, ours, other))
    return figures


def _config(seed: int, reuse: int, samples: int) -> ErasureConfig:
    return pocket.config(
        seed=seed,
        contexts=(),
        preserve_empty=False,
        width=64,
        height=64,
        trajectory__reuse=reuse,
        training__steps=samples // _BATCH,
        training__batch_size=_BATCH,
    )


def per_sample(trainer: Trainer, counter: Counter) -> float:
    """Rows that were evaluated in the steps of a run, over the samples that it trained on."""
    training = trainer.config.training
    counter.rows = 0
    while trainer.step < training.steps:
        trainer.take_step()
    return counter.rows / (training.steps * training.batch_size)
