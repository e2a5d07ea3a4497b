"""The evaluations that sample a round, as batches and one at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from trainers import bank_of

from esd_core.models.denoiser import Conditioning
from esd_core.models.diffusers_backend import DiffusersDenoiser

from . import pocket
from .figure import Figure, seconds

PAIRS = 5


class OneAtATime(DiffusersDenoiser):
    """Every row goes through the network alone."""

    def predict(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        rows = range(len(x))
        return torch.cat(
            [
                super(OneAtATime, self).predict(
                    x[i : i + 1], sigma[i : i + 1], conditioning.select([i])
                )
                for i in rows
            ]
        )


def run(pairs: int) -> list[Figure]:
    batched = pocket.load()
    alone = OneAtATime(batched.pipeline)
    config = pocket.config()
    times: list[list[float]] = [[], []]
    for index in range(-1, pairs):
        for side, denoiser in zip(times, (batched, alone), strict=True):
            bank, noise = bank_of(denoiser, config), torch.Generator().manual_seed(max(index, 0))
            took = seconds(lambda bank=bank, noise=noise: bank.sample_round(0, noise))
            if index >= 0:  # the first of all is slow, whichever it is
                side.append(took)
    what = "sampling a round on pocket, batched against one evaluation at a time"
    return [Figure("batching", what, "s", 0.5, *times)]
