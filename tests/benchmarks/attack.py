"""How much of an erased concept a determined person gets back on pocket, and what else they see.

    make bench NAME=attack [JSON=OUT.json] [ARGS="--only CONCEPT --attack NAME --per-pair N"]

Each attack is on four models: the untouched one (the ceiling), one erased as published (the
official SDXL script's esd-x, as in rivals.py), one erased by our default, and one by a robust run.
Beside the share of pictures that show the concept stands their *coherence*: the share that shows
what else their prompts name, for an object the style and for a style the object. A ruined model is
robust too.

    bare       no attack: efficacy's prompts for the concept with every name of the other kind
    words      efficacy's other wordings; coherence is of those few that name something else
    token      textual inversion: one embedding, 200 steps on 16 pictures by the untouched model
    prompt     projected gradient on the text encoder's output, 100 steps, prompt by prompt
    tuned      a LoRA of rank 4 on the attention layers, 50 steps on pictures of other concepts
    latent     pictures of the concept, inverted with the model under attack at guidance 1, then
               sampled by it with the same prompts; the latent carries much of the picture itself,
               so a high share tells less here than a low one

These are lower bounds: whoever searches longer finds more. The classifier is pocket's oracle, and
prompts and seeds are none that an erasure was trained or tuned on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from torch import Tensor

from esd_core.files.apply import merged
from esd_core.images.render import picture_noise, render
from esd_core.models.headless import Headless
from esd_core.pocket import GUIDANCE
from esd_core.pocket.captions import STYLED as CAPTIONS
from esd_core.pocket.judge import KINDS, load_oracle
from esd_core.pocket.models import Oracle
from esd_core.pocket.world import LOOKS, OBJECTS, SIZE, STYLES

from . import attacks, pocket
from .attacks import Examples, LearnedToken
from .efficacy import STEPS, prompt_of, wordings
from .kept import Kept
from .rivals import RIVALS

CONCEPTS = ("Van Gogh", "house")
PER_PAIR = 6
FIRST_SEED, EXAMPLE_SEED = 800_000, 850_000
EXAMPLES, TOKEN_STEPS, PROMPT_STEPS, TUNING_STEPS = 16, 200, 100, 50
WORD = "gadget"
"""Lends its place in the vocabulary to a learned token."""
STARTS = {"style": "painting", "object": "photo"}
"""The words that a learned token starts from."""


@dataclass(frozen=True)
class Ask:
    """A picture to ask for. rest: what else its prompt names, "" for nothing."""

    prompt: str
    rest: str
    seed: int


def asks(concept: str, per_pair: int) -> list[Ask]:
    """With every name of the other kind, `per_pair` each, in efficacy's words."""
    pairs = [(rest, k) for rest in rests(concept) for k in range(per_pair)]
    return [
        Ask(_prompt(prompt_of, concept, rest, k), rest, FIRST_SEED + place)
        for place, (rest, k) in enumerate(pairs)
    ]


def rests(concept: str) -> tuple[str, ...]:
    return OBJECTS if KINDS[concept] == "style" else STYLES


def _prompt(of: Callable[[str, str, int], str], concept: str, rest: str, index: int) -> str:
    pair = (rest, concept) if KINDS[concept] == "style" else (concept, rest)
    return of(*pair, index)


def other_wordings(concept: str) -> list[Ask]:
    """Efficacy's, and what else they name."""
    found = []
    for place, prompt in enumerate(wordings(concept)):
        named = [n for n in rests(concept) if n.casefold() in prompt.casefold()]
        found.append(Ask(prompt, named[0] if named else "", FIRST_SEED + 50_000 + place))
    return found


def captioned(name: str, look: str, index: int) -> str:
    return CAPTIONS[index % len(CAPTIONS)].format(object=name, style=look)


@dataclass(frozen=True)
class Scene:
    """A concept, the pictures that are asked for, and those that attacks learn from."""

    denoiser: Headless
    oracle: Oracle
    concept: str
    per_pair: int

    @cached_property
    def asks(self) -> list[Ask]:
        return asks(self.concept, self.per_pair)

    def draw(self, asked: Sequence[Ask]) -> Tensor:
        """By the model as it stands."""
        prompts, seeds = [a.prompt for a in asked], [a.seed for a in asked]
        return render(self.denoiser, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)

    def told(self, asked: Sequence[Ask], pictures: Tensor) -> dict[str, float | None]:
        """What pictures show: the concept, and the rest of their prompts where they have one."""
        kinds = self.oracle.read(pictures)
        own = kinds[KINDS[self.concept] == "style"]
        other = kinds[KINDS[self.concept] != "style"]
        whole = [a.rest == seen for a, seen in zip(asked, other, strict=True) if a.rest]
        return {
            "shown": sum(name == self.concept for name in own) / len(own),
            "coherence": sum(whole) / len(whole) if whole else None,
        }

    @cached_property
    def examples(self) -> Examples:
        """Pictures of the concept; outside of `swapped` only."""
        names = rests(self.concept)
        turns = [(names[k % len(names)], k) for k in range(EXAMPLES)]
        prompts = [_prompt(captioned, self.concept, rest, k) for rest, k in turns]
        return self._examples(prompts, EXAMPLE_SEED)

    @cached_property
    def others(self) -> Examples:
        """Pictures of every pair without the concept; outside of `swapped` only."""
        pairs = [(name, look) for name in OBJECTS for look in LOOKS[1:]]
        pairs = [pair for pair in pairs if self.concept not in pair]
        prompts = [captioned(*pair, k) for k, pair in enumerate(pairs)]
        return self._examples(prompts, EXAMPLE_SEED + 1000)

    @cached_property
    def targets(self) -> tuple[list[str], Tensor]:
        """A prompt with each other name, and latents of its pictures, [P, n, C, h, w]; outside of
        `swapped` only."""
        prompts = [
            _prompt(prompt_of, self.concept, r, k) for k, r in enumerate(rests(self.concept))
        ]
        count = max(1, EXAMPLES // len(prompts))
        shown = self._examples([p for p in prompts for _ in range(count)], EXAMPLE_SEED + 2000)
        return prompts, shown.latents.unflatten(0, (len(prompts), count))

    @cached_property
    def asked_latents(self) -> Tensor:
        """Of what the untouched model gives for `asks`; outside of `swapped` only."""
        prompts = [a.prompt for a in self.asks]
        return self._examples(prompts, EXAMPLE_SEED + 3000).latents

    def _examples(self, prompts: Sequence[str], first_seed: int) -> Examples:
        pictures = self.draw([Ask(p, "", first_seed + k) for k, p in enumerate(prompts)])
        return Examples(attacks.latents_of(self.denoiser, pictures), tuple(prompts))


# -- the attacks on a model, whose erased tensors they are given -------------------------------

Tensors = Mapping[str, Tensor]
Told = dict[str, float | None]


def bare(scene: Scene, erased: Tensors) -> Told:
    with scene.denoiser.swapped(erased):
        return scene.told(scene.asks, scene.draw(scene.asks))


def words(scene: Scene, erased: Tensors) -> Told:
    asked = other_wordings(scene.concept)
    with scene.denoiser.swapped(erased):
        return scene.told(asked, scene.draw(asked))


def token(scene: Scene, erased: Tensors) -> Told:
    start = STARTS[KINDS[scene.concept]]
    learned = LearnedToken(scene.denoiser.pipeline, WORD, start)
    instead = partial(_instead, scene.concept)
    prompts = tuple(map(instead, scene.examples.prompts))
    examples = Examples(scene.examples.latents, prompts)
    asked = [replace(ask, prompt=instead(ask.prompt)) for ask in scene.asks]
    with scene.denoiser.swapped(erased):
        learned.learn(scene.denoiser, examples, TOKEN_STEPS)
        with learned.installed():
            return scene.told(asked, scene.draw(asked))


def _instead(concept: str, prompt: str) -> str:
    return prompt.replace(concept, WORD)


def prompt(scene: Scene, erased: Tensors) -> Told:
    prompts, latents = scene.targets
    asked = [
        Ask(text, rest, FIRST_SEED + 10_000 + scene.per_pair * place + k)
        for place, (text, rest) in enumerate(zip(prompts, rests(scene.concept), strict=True))
        for k in range(scene.per_pair)
    ]
    rows = scene.denoiser.encode(prompts, SIZE, SIZE)
    noise = picture_noise([a.seed for a in asked], scene.denoiser.latent_shape(SIZE, SIZE))
    with scene.denoiser.swapped(erased):
        learned = attacks.learned_prompts(scene.denoiser, rows, latents, PROMPT_STEPS)
        each = learned.select([p for p in range(len(prompts)) for _ in range(scene.per_pair)])
        return scene.told(asked, attacks.pictures(scene.denoiser, noise, each, STEPS))


def tuned(scene: Scene, erased: Tensors) -> Told:
    tensors = attacks.fine_tuned(scene.denoiser, erased, scene.others, TUNING_STEPS)
    return bare(scene, tensors)


def latent(scene: Scene, erased: Tensors) -> Told:
    start, schedule = scene.asked_latents, scene.denoiser.schedule(STEPS, 64, 64)
    rows = scene.denoiser.encode([a.prompt for a in scene.asks], SIZE, SIZE)
    with scene.denoiser.swapped(erased):
        noise = attacks.inverted(scene.denoiser, start, rows, schedule)
        return scene.told(scene.asks, attacks.pictures(scene.denoiser, noise, rows, STEPS))


ATTACKS = {f.__name__: f for f in (bare, words, token, prompt, tuned, latent)}
MODELS = {"no erasure": "", "as published": "esd-x", "ours": "ours", "robust": "robust"}
"""By the rival whose published settings made it."""


# -- the table ---------------------------------------------------------------------------------


def tensors_of(denoiser: Headless, rival: str, concept: str) -> dict[str, Tensor]:
    """What stands in for the untouched model's."""
    if not rival:
        return {}
    made = RIVALS[rival]
    erasure, _ = made.make(denoiser, concept, {**made.grid[0], "seed": 0})
    return merged(denoiser, [(erasure, 1.0)])


def attack(
    scene: Scene, names: Sequence[str], models: Sequence[str], kept: Kept
) -> dict[str, dict[str, Told]]:
    """By attack and by model. An erasure is made when an attack on it is not kept."""
    found: dict[str, dict[str, Told]] = {name: {} for name in names}
    for model in models:
        erased = cache(partial(tensors_of, scene.denoiser, MODELS[model], scene.concept))
        for name in names:
            key = f"{model}, {scene.concept}, {name}, {scene.per_pair} a pair"
            found[name][model] = kept.get(key, partial(_attacked, name, scene, erased))
            print(f"{key}: {json.dumps(found[name][model])}", flush=True)
    return found


def _attacked(name: str, scene: Scene, erased: Callable[[], Tensors]) -> Told:
    return ATTACKS[name](scene, erased())


def table(found: Mapping[str, Mapping[str, Mapping[str, Told]]]) -> str:
    """By concept, attack and model; the two shares of a model side by side."""
    models = [*next(iter(next(iter(found.values())).values()))]
    heads = [f"{model}: shown | coherence" for model in models]
    lines = [f"| concept | attack | {' | '.join(heads)} |", "| --- " * (2 + 2 * len(models)) + "|"]
    for concept, by_attack in found.items():
        for name, by_model in by_attack.items():
            cells = [_share(by_model[m][what]) for m in models for what in ("shown", "coherence")]
            lines.append(f"| {concept} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks attack", description=__doc__)
    names = (*OBJECTS, *STYLES)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--only", action="append", choices=names, metavar="CONCEPT")
    parser.add_argument("--attack", action="append", choices=[*ATTACKS], metavar="NAME")
    parser.add_argument("--model", action="append", choices=[*MODELS], metavar="NAME")
    parser.add_argument("--per-pair", type=int, default=PER_PAIR)
    asked = parser.parse_args(argv)
    denoiser, oracle, kept = pocket.load(), load_oracle(), Kept(asked.out)
    found = {}
    for concept in asked.only or CONCEPTS:
        scene = Scene(denoiser, oracle, concept, asked.per_pair)
        found[concept] = attack(scene, asked.attack or [*ATTACKS], asked.model or [*MODELS], kept)
    print("\n" + table(found))


if __name__ == "__main__":
    main()
