"""The forms of a network's own output: how each becomes a direction, and what its errors weigh.

Each is affine in the direction (x - denoised) / sigma at one noisy latent x (Salimans and Ho 2022
for eps and v, in sigma space).
"""

from torch import Tensor

from ..errors import ESDError


class Prediction:
    """One form; as it stands here, of a network that predicts the direction itself, at noisy
    latents x0 + sigma * eps."""

    name: str
    """As diffusers' schedulers name it."""

    def direction(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """(x - denoised) / sigma, float32 [B, C, h, w], from the network's output at x.

        sigma: noise levels, float32 [B].
        """
        return output

    def loss_weight(self, sigma: float) -> float:
        """Turns a squared error of the direction into one of the network's own output."""
        return 1.0

    def v_weight(self, sigma: float) -> float:
        """Turns it into one of v, or of a flow's velocity."""
        return sigma**2 + 1


class Epsilon(Prediction):
    """The network predicts the noise, which is the direction itself."""

    name = "epsilon"


class VPrediction(Prediction):
    """The network predicts v = (eps - sigma * x0) / sqrt(sigma^2 + 1).

    Without its weight in the loss, a v-model would hardly be trained at high noise, where the
    layout of a picture is decided.
    """

    name = "v_prediction"

    def direction(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        level = by_row(sigma, x)
        scale = (level**2 + 1).sqrt()
        return (output * scale + x * level) / scale**2

    def loss_weight(self, sigma: float) -> float:
        return self.v_weight(sigma)


class Flow(Prediction):
    """The network predicts the velocity eps - x0 of x = (1 - sigma) * x0 + sigma * eps (Liu et al.
    2022), which is the direction itself."""

    name = "flow_prediction"

    def v_weight(self, sigma: float) -> float:
        return 1.0


PREDICTIONS = {form.name: form for form in (Epsilon(), VPrediction(), Flow())}
"""By name."""


def prediction(name: str) -> Prediction:
    """ESDError for a form that is not supported."""
    if name not in PREDICTIONS:
        *others, last = PREDICTIONS
        raise ESDError(
            f"the model predicts {name}, and only {', '.join(others)} and {last} can be erased "
            "from: give another model"
        )
    return PREDICTIONS[name]


def from_denoised(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The direction, where a host has turned every form into denoised latents already."""
    return (x - denoised) / by_row(sigma, x)


def by_row(sigma: Tensor, x: Tensor) -> Tensor:
    """[B] in a shape that meets every row of x, [B, ...]."""
    return sigma.view(-1, *[1] * (x.ndim - 1))
