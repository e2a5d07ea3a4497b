"""Ways to get an erased concept back from a model, for who has its weights.

Each is in its simplest published form, and sees pictures of the concept that the untouched model
made. The model under attack is the denoiser as it stands: erased, inside of its `swapped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from esd_core.method.objective import regression_loss, v_weight
from esd_core.method.sampling import predict_together, sample
from esd_core.models.denoiser import Conditioning, Schedule
from esd_core.models.headless import Headless
from esd_core.models.prediction import Epsilon
from esd_core.models.swap import materialize
from esd_core.pocket import GUIDANCE
from esd_core.pocket.world import SIZE
from esd_core.training.student import LowRankStudent

_LEVELS = 50
_BATCH = 32


@dataclass(frozen=True)
class Examples:
    """What an attack learns from: latents [N, C, h, w] in sigma space at 0, and their prompts."""

    latents: Tensor
    prompts: tuple[str, ...]

    def draw(self, count: int, noise: torch.Generator) -> Tensor:
        """Places of some of them."""
        return torch.randint(len(self.latents), (count,), generator=noise)


def latents_of(denoiser: Headless, pictures: Tensor) -> Tensor:
    """What the autoencoder makes of pictures in 0..1: the mean of its code, [N, C, h, w]."""
    vae = denoiser.pipeline.vae
    with torch.no_grad():
        parts = [vae.encode(2 * part - 1).latent_dist.mean for part in pictures.split(_BATCH)]
    return torch.cat(parts) * vae.config.scaling_factor


def encode(denoiser: Headless, prompts: Sequence[str]) -> Conditioning:
    """As the denoiser's own, with a graph to the embeddings of the words."""
    context, _, pooled, _ = denoiser.pipeline.encode_prompt(
        list(prompts), do_classifier_free_guidance=False
    )
    return replace(denoiser.encode(prompts, SIZE, SIZE), context=context, pooled=pooled)


def denoising_loss(
    denoiser: Headless, latents: Tensor, rows: Conditioning, noise: torch.Generator
) -> Tensor:
    """How badly pictures are denoised under their prompts, at noise levels of their own.

    The objective of diffusion models, by which such attacks search (Zhang et al., UnlearnDiffAtk,
    arXiv 2310.11868), counted as an error of v.
    """
    sigmas = denoiser.schedule(_LEVELS, 64, 64).sigmas[:-1]
    weigh = v_weight(Epsilon(), sigmas)
    sigma = sigmas[torch.randint(len(sigmas), (len(latents),), generator=noise)]
    added = torch.randn(latents.shape, generator=noise)
    x = latents + sigma.view(-1, 1, 1, 1) * added
    weights = torch.tensor([weigh(level) for level in sigma.tolist()])
    return regression_loss(denoiser.predict(x, sigma, rows), added, weights)


# -- a learned token ---------------------------------------------------------------------------


class LearnedToken:
    """A word with a learned embedding in every text encoder (textual inversion, Gal et al., arXiv
    2208.01618; against erased models, Pham et al., arXiv 2308.01508).

    Attributes:
        word: one of the vocabulary, a single token, which `installed` lends the embedding to.
        vectors: one an encoder.
    """

    def __init__(self, pipeline: Any, word: str, start: str) -> None:
        """start: the word whose embeddings the vectors begin as."""
        self.word = word
        self._id, first = (_token(pipeline.tokenizer, text) for text in (word, start))
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        self._tables: list[nn.Module] = [encoder.get_input_embeddings() for encoder in encoders]
        self.vectors = [
            nn.Parameter(table.weight[first].detach().clone())  # type: ignore[index]
            for table in self._tables
        ]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the word has the learned embeddings; no weight is written to."""
        with ExitStack() as hooks:
            for table, vector in zip(self._tables, self.vectors, strict=True):
                hooks.enter_context(table.register_forward_hook(self._hook(vector)))
            yield

    def _hook(self, vector: Tensor) -> Any:
        def put(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.where((inputs[0] == self._id)[..., None], vector, output)

        return put

    def learn(self, denoiser: Headless, examples: Examples, steps: int, batch: int = 4) -> None:
        """Adam on the denoising loss; prompts hold the word. A step is a tenth of the spread of
        the embeddings."""
        noise = torch.Generator().manual_seed(0)
        groups = [
            {"params": [vector], "lr": 0.1 * float(table.weight.detach().std())}  # type: ignore[operator]
            for vector, table in zip(self.vectors, self._tables, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        with self.installed():
            for _ in range(steps):
                places = examples.draw(batch, noise)
                rows = encode(denoiser, [examples.prompts[i] for i in places])
                loss = denoising_loss(denoiser, examples.latents[places], rows, noise)
                for vector, slope in zip(
                    self.vectors, torch.autograd.grad(loss, self.vectors), strict=True
                ):
                    vector.grad = slope
                optimizer.step()


def _token(tokenizer: Any, word: str) -> int:
    ids = tokenizer(word).input_ids[1:-1]
    if len(ids) != 1:
        raise ValueError(f"{word} is {len(ids)} tokens")
    return int(ids[0])


# -- a learned prompt --------------------------------------------------------------------------


def learned_prompts(
    denoiser: Headless, rows: Conditioning, latents: Tensor, steps: int, batch: int = 2
) -> Conditioning:
    """The prompts' own states, moved to where pictures of the concept are denoised best.

    Projected gradient descent (Madry et al., arXiv 1706.06083) in a ball around each prompt's
    states, whose radius is half of their distance from those of the empty prompt: much farther,
    and guidance makes of the untouched model's own prompts what shows the concept less. Steps
    shrink linearly, from five times the radius shared out among them.

    Args:
        rows: P prompts.
        latents: pictures of each, [P, n, C, h, w], of which a step takes `batch`.
    """
    noise = torch.Generator().manual_seed(0)
    empty = denoiser.encode([""], SIZE, SIZE).context
    radius = (rows.context - empty).norm(dim=(1, 2), keepdim=True) / 2
    moved = torch.zeros_like(rows.context)
    for step in range(steps):
        moved.requires_grad_(True)
        spread = replace(rows, context=rows.context + moved)
        places = torch.randint(latents.shape[1], (batch,), generator=noise)
        shown = latents[:, places].flatten(0, 1)
        each = spread.map(lambda part: repeat(part, "p ... -> (p b) ...", b=batch))
        loss = denoising_loss(denoiser, shown, each, noise)
        (slope,) = torch.autograd.grad(loss, moved)
        length = 5 / steps * (1 - step / steps)
        moved = projected(moved.detach(), slope, radius, length)
    return replace(rows, context=rows.context + moved.detach())


def projected(moved: Tensor, slope: Tensor, radius: Tensor, length: float) -> Tensor:
    """A step of so many radii down the slope, and back into the ball.

    moved, slope: [P, tokens, width]; radius: [P, 1, 1].
    """
    moved = moved - length * radius * slope / _length(slope)
    return moved * (radius / _length(moved)).clamp(max=1)


def _length(rows: Tensor) -> Tensor:
    return rows.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)


# -- benign fine-tuning ------------------------------------------------------------------------


def fine_tuned(
    denoiser: Headless,
    erased: Mapping[str, Tensor],
    examples: Examples,
    steps: int,
    rank: int = 4,
    rate: float = 1e-3,
    batch: int = 8,
) -> dict[str, Tensor]:
    """Tensors of the erased model after a LoRA of its attention was trained on other pictures, as
    who means no harm does."""
    noise = torch.Generator().manual_seed(0)
    base = {**denoiser.parameters(), **erased}
    names = [n for n in base if (".attn1." in n or ".attn2." in n) and n.endswith(".weight")]
    student = LowRankStudent(base, names, denoiser.compute_dtype, rank, float(rank), noise)
    optimizer = torch.optim.AdamW(student.masters.values(), lr=rate)
    encoded = denoiser.encode(examples.prompts, SIZE, SIZE)
    for _ in range(steps):
        places = examples.draw(batch, noise)
        with denoiser.swapped({**erased, **student.tensors()}):
            rows = encoded.select(places)
            loss = denoising_loss(denoiser, examples.latents[places], rows, noise)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return {**erased, **{n: materialize(w).detach() for n, w in student.tensors().items()}}


# -- an inverted latent ------------------------------------------------------------------------


@torch.no_grad()
def inverted(
    denoiser: Headless,
    latents: Tensor,
    rows: Conditioning,
    schedule: Schedule,
    iterations: int = 8,
) -> Tensor:
    """Unit noise from which Euler's method at guidance 1 ends in these latents [N, C, h, w].

    Inversion as for DDIM (Song et al., arXiv 2010.02502), but each step x' = x + (s' - s) d(x, s)
    is solved for x by repeated insertion, since the direction is that at x and not at x'.
    """
    x, levels = latents, schedule.sigmas.tolist()
    for following, sigma in zip(levels[:0:-1], levels[-2::-1], strict=True):
        reached = x
        for _ in range(iterations):
            (direction,) = predict_together(denoiser, x, sigma, [rows])
            x = reached - (following - sigma) * direction
    return x / schedule.initial_scale


# -- pictures ----------------------------------------------------------------------------------


def pictures(
    denoiser: Headless,
    noise: Tensor,
    rows: Conditioning,
    steps: int,
    guidance: float = GUIDANCE,
) -> Tensor:
    """As `render`, of unit noise and rows that are at hand: [N, 3, H, W]."""
    empty, schedule = denoiser.encode([""], SIZE, SIZE), denoiser.schedule(steps, 64, 64)
    made = []
    for part in torch.arange(len(noise)).split(_BATCH):
        pair = [rows.select(part), empty.select([0] * len(part))]
        made.append(denoiser.decode(sample(denoiser, noise[part], pair, schedule, guidance)))
    return torch.cat(made)
