"""Probes: how much of a concept is left, and what else has moved, without decoding a picture.

Both are measured at states of the teacher's own guided trajectories, from noise that training
never sees. They have no more steps than the training's: who trains on short ones has little time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import Bank
from .concepts import Concept
from .denoiser import Conditioning, Denoiser
from .sampling import sample, unit_noise

TRAJECTORIES, STEPS = 2, 8
UNRELATED = ("a photo of a dog", "a portrait of a woman", "a city street at night")
"""Prompts that an erasure should leave alone, watched but not trained on."""

_PROBE_SEED = 0x5EED


@dataclass(frozen=True)
class ProbeReport:
    """Shares of concepts and drifts of prompts, by name.

    Attributes:
        share: 1 before training; 0 where the student predicts as little of the concept as the
            empty prompt does; -eta where it has reached the target.
        distance: |student - empty| / |concept - empty|, which is eta at the target.
        drift: |student - teacher| / |teacher| for preserved and unrelated prompts.
    """

    share: dict[str, float]
    distance: dict[str, float]
    drift: dict[str, float]

    def as_dict(self) -> dict[str, dict[str, float]]:
        return {"share": self.share, "distance": self.distance, "drift": self.drift}


@dataclass(frozen=True)
class _States:
    """What the teacher predicts at the states of one prompt's trajectories; rows are states."""

    x: Tensor
    sigma: Tensor
    prompt: Conditioning
    own: Tensor
    empty: Tensor
    concept: Tensor | None = None


class Probes:
    """Records the teacher once; `measure` then compares the student with it.

    With f = `erase_from`, or the concept c itself, d = eps*(c) - eps*(empty) and <,> summed over
    all states:  share = <eps_student(f) - eps*(empty), d> / <eps*(f) - eps*(empty), d>.
    The plain ratio of norms cannot tell a concept that is there from one that is pushed to the
    other side, where the target lies; the sign of the projection can.
    """

    def __init__(self, denoiser: Denoiser, bank: Bank, preserved: Sequence[str]) -> None:
        self._denoiser, self._config = denoiser, bank.config
        self.preserved = tuple(preserved)
        self._concepts = {str(c): self._record(c.student_prompt, c) for c in bank.concepts}
        watched = dict.fromkeys([*preserved, *UNRELATED])
        self._prompts = {prompt: self._record(prompt) for prompt in watched}

    def _record(self, prompt: str, concept: Concept | None = None) -> _States:
        config, denoiser = self._config, self._denoiser
        further = [concept.name] if concept and concept.erase_from else []
        rows = denoiser.encode([prompt, "", *further], config.width, config.height)
        shape = denoiser.latent_shape(config.width, config.height)
        # Held out whatever the run's seed is.
        seed = _PROBE_SEED + (config.seed == _PROBE_SEED)
        generator = torch.Generator().manual_seed(seed)
        noise = unit_noise((TRAJECTORIES, *shape), generator, denoiser.device)
        seen: list[tuple[Tensor, Tensor, Sequence[Tensor]]] = []
        sample(
            denoiser,
            noise,
            [rows.select([i] * TRAJECTORIES) for i in range(len(rows))],
            denoiser.schedule(min(STEPS, config.trajectory.steps)),
            config.trajectory.guidance,
            lambda x, sigma, p: seen.append((x, torch.full((len(x),), sigma), p)),
        )
        x, sigma = torch.cat([s[0] for s in seen]), torch.cat([s[1] for s in seen]).to(noise.device)
        columns = [torch.cat([s[2][i] for s in seen]) for i in range(len(rows))]
        target = columns[-1] if further else columns[0]
        return _States(x, sigma, rows.select([0] * len(x)), columns[0], columns[1], target)

    @torch.no_grad()
    def measure(self, student: Mapping[str, Tensor]) -> ProbeReport:
        """Compares the student of these tensors with the recorded teacher."""
        share, distance, drift = {}, {}, {}
        with self._denoiser.swapped(student):
            for name, states in self._concepts.items():
                moved = self._predict(states) - states.empty
                direction = (
                    states.concept if states.concept is not None else states.own
                ) - states.empty
                whole = ((states.own - states.empty) * direction).sum()
                share[name] = float((moved * direction).sum() / whole)
                distance[name] = float(moved.norm() / direction.norm())
            for name, states in self._prompts.items():
                drift[name] = float((self._predict(states) - states.own).norm() / states.own.norm())
        return ProbeReport(share, distance, drift)

    def _predict(self, states: _States) -> Tensor:
        """The student's eps-hat at all states, in batches no larger than the training's."""
        parts = torch.arange(len(states.x)).split(self._config.training.batch_size)
        return torch.cat(
            [
                self._denoiser.predict_noise(
                    states.x[rows], states.sigma[rows], states.prompt.select(rows)
                )
                for rows in parts
            ]
        )
