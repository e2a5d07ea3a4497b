"""The forms of a network's own output: how each becomes a direction, and what its errors weigh.

All of them are asked for at a noisy latent x = x0 + sigma * eps, and are affine in each other there
(Salimans and Ho 2022, in sigma space).
"""

from typing import Protocol

from torch import Tensor

from ..errors import ESDError


class Prediction(Protocol):
    """One form."""

    name: str
    """As diffusers' schedulers name it."""

    def direction(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(x - denoised) / sigma, float32 [B, C, h, w], from the network's output at x.

        sigma: noise levels, float32 [B].
        """
        ...

    def loss_weight(self, sigma: float) -> float:
        """Turns a squared error of the direction into one of the network's own output."""
        ...


class Epsilon:
    """The network predicts the noise, which is the direction itself."""

    name = "epsilon"

    def direction(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return output

    def loss_weight(self, sigma: float) -> float:
        return 1.0


class VPrediction:
    """The network predicts v = (eps - sigma * x0) / sqrt(sigma^2 + 1).

    Without its weight in the loss, a v-model would hardly be trained at high noise, where the
    layout of a picture is decided.
    """

    name = "v_prediction"

    def direction(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.view(-1, 1, 1, 1)
        scale = (level**2 + 1).sqrt()
        return (output * scale + x * level) / scale**2

    def loss_weight(self, sigma: float) -> float:
        return sigma**2 + 1


PREDICTIONS: dict[str, Prediction] = {form.name: form for form in (Epsilon(), VPrediction())}
"""By name."""


def prediction(name: str) -> Prediction:
    """ESDError for a form that is not supported."""
    if name not in PREDICTIONS:
        raise ESDError(
            f"the model predicts {name}, and only {' and '.join(PREDICTIONS)} can be erased from: "
            "give another model"
        )
    return PREDICTIONS[name]


def from_denoised(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The direction, where a host has turned every form into denoised latents already."""
    return (x - denoised) / sigma.view(-1, 1, 1, 1)
