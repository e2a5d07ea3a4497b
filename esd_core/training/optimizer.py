"""The optimizers that a student's masters can be trained with."""

from __future__ import annotations

import torch
from torch import nn
from transformers.optimization import Adafactor

from ..config.settings import TrainingConfig
from ..errors import ConfigError


def make_optimizer(training: TrainingConfig, masters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """As `training.optimizer` says; ConfigError where its package is missing."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adafactor":
        return Adafactor(
            masters, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False
        )
    if training.optimizer == "adamw8bit":
        return _eight_bit(masters, rate, decay)
    # Fused: no copies of all masters in between, as the default on an accelerator makes.
    return torch.optim.AdamW(masters, lr=rate, weight_decay=decay, fused=_fuses(masters[0].device))


def _fuses(device: torch.device) -> bool:
    return device.type in ("cuda", "cpu")


def _eight_bit(masters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "training.optimizer adamw8bit needs the package bitsandbytes: install it, or take "
            "adafactor"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(masters, lr=rate, weight_decay=decay)
    return optimizer
