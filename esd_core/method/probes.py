"""Probes: how much of a concept is left, and what else has moved, without decoding a picture.

Both are measured at states of the teacher's own guided trajectories, from noise that training
never sees. They have no more steps than the training's: who trains on short ones has little time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.denoiser import Conditioning, Denoiser
from .bank import Bank
from .sampling import sample, unit_noise

TRAJECTORIES, STEPS = 2, 8
UNRELATED = ("a photo of a dog", "a portrait of a woman", "a city street at night")
"""Prompts that an erasure should leave alone, watched but not trained on."""

_PROBE_SEED = 0x5EED


@dataclass(frozen=True)
class ProbeReport:
    """Shares of concepts and drifts of prompts, by name.

    Attributes:
        share: 1 before training; 0 where all of the concept is taken away; -eta where the student
            has reached the target of `c` or `c <- f`.
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
    concept: Tensor


class Probes:
    """Records the teacher once; `measure` then compares the student with it.

    With f = `erase_from`, or the concept c itself, d = eps*(c) - eps*(empty) and <,> summed over
    all states:  share = 1 - <eps*(f) - eps_student(f), d> / <d, d>.
    The plain ratio of norms cannot tell a concept that is there from one that is pushed to the
    other side, where the target lies; the sign of the projection can. What is taken away counts
    against all of the concept, so that it holds as well where f shows little of it.
    """

    def __init__(self, denoiser: Denoiser, bank: Bank, preserved: Sequence[str]) -> None:
        self._denoiser, self._config, self._together = denoiser, bank.config, bank.together
        self.preserved = tuple(preserved)
        plain = [c for c in bank.concepts if not c.erase_from]
        wider = [c for c in bank.concepts if c.erase_from]
        watched = list(dict.fromkeys([*preserved, *UNRELATED]))
        asked = [*(c.student_prompt for c in plain), *watched]
        states = dict(zip([*map(str, plain), *watched], self._record(asked), strict=True))
        self._prompts = {prompt: states[prompt] for prompt in watched}
        found = self._record([c.student_prompt for c in wider], [c.name for c in wider])
        states = {**states, **dict(zip(map(str, wider), found, strict=True))}
        self._concepts = {str(c): states[str(c)] for c in bank.concepts}

    def _record(self, prompts: Sequence[str], names: Sequence[str] = ()) -> list[_States]:
        """States of every prompt's trajectories, followed side by side from the same noise.

        names: what is erased from each prompt, predicted there too; without them, the prompts.
        """
        if not prompts:
            return []
        config, denoiser = self._config, self._denoiser
        rows = denoiser.encode([*prompts, "", *names], config.width, config.height)
        own = torch.arange(len(prompts)).repeat_interleave(TRAJECTORIES)
        empty = torch.full_like(own, len(prompts))
        asked = [own, empty, len(prompts) + 1 + own] if names else [own, empty]
        shape = denoiser.latent_shape(config.width, config.height)
        # Held out whatever the run's seed is.
        seed = _PROBE_SEED + (config.seed == _PROBE_SEED)
        generator = torch.Generator().manual_seed(seed)
        noise = unit_noise((TRAJECTORIES, *shape), generator, denoiser.device)
        seen: list[tuple[Tensor, float, Sequence[Tensor]]] = []
        sample(
            denoiser,
            noise.repeat(len(prompts), 1, 1, 1),
            [rows.select(column) for column in asked],
            denoiser.schedule(min(STEPS, config.trajectory.steps)),
            config.trajectory.guidance,
            lambda x, sigma, predicted: seen.append((x, sigma, predicted)),
            self._together,
        )
        sigma = torch.tensor([s[1] for s in seen], device=noise.device)
        sigma = sigma.repeat_interleave(TRAJECTORIES)

        def states(index: int) -> _States:
            part = slice(index * TRAJECTORIES, (index + 1) * TRAJECTORIES)
            x = torch.cat([s[0][part] for s in seen])
            columns = [torch.cat([s[2][i][part] for s in seen]) for i in range(len(asked))]
            prompt = rows.select([index] * len(x))
            return _States(x, sigma, prompt, columns[0], columns[1], columns[-1 if names else 0])

        return [states(index) for index in range(len(prompts))]

    @torch.no_grad()
    def measure(self, student: Mapping[str, Tensor]) -> ProbeReport:
        """Compares the student of these tensors with the recorded teacher."""
        share, distance, drift = {}, {}, {}
        with self._denoiser.swapped(student):
            for name, states in self._concepts.items():
                predicted = self._predict(states)
                direction = states.concept - states.empty
                taken = ((states.own - predicted) * direction).sum() / direction.square().sum()
                share[name] = 1 - float(taken)
                distance[name] = float((predicted - states.empty).norm() / direction.norm())
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
