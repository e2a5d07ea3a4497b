"""Whether probes tell what pictures show: the default's erasures, at a part of their strength.

    make bench NAME=probes [JSON=OUT.json] [PAIRS=SEEDS] [ARGS="--only NAME"]

A probe's share is of what a few pictures come to, in latents, and not of pictures that show it. How
it is taken was chosen on training seed 0; every other has pictures of its own, too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from esd_core.files.apply import applied, merged
from esd_core.images.render import render
from esd_core.method.contexts import probed
from esd_core.method.probes import Probes
from esd_core.models.headless import Headless
from esd_core.pocket import GUIDANCE
from esd_core.pocket.judge import KINDS, load_oracle, make_cases
from esd_core.pocket.world import OBJECTS, SIZE, STYLES
from esd_core.training.run import erase

from . import pocket
from .efficacy import FIRST_SEED, STEPS, prompt_of
from .kept import Kept

STRENGTHS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
PER_PAIR = 4


def measure(
    denoiser: Headless, artist: Headless, name: str, seed: int
) -> list[tuple[float, float]]:
    """The probe's share and the share of pictures that show it, by strength."""
    config = pocket.config(concepts=[name], seed=seed)
    probes = Probes(denoiser, probed(config), config)
    erasure = erase(denoiser, config, pocket.Silent(), pocket.Silent()).erasure
    found = []
    for strength in STRENGTHS:
        applying = [(erasure, strength)]
        (share,) = probes.measure(merged(denoiser, applying)).share.values()
        with applied(artist, applying) if strength else nullcontext():
            found.append((share, shown(artist, name, seed)))
    return found


def shown(artist: Headless, name: str, seed: int) -> float:
    first = FIRST_SEED + 1000 * seed
    cases = [c for c in make_cases(PER_PAIR, first, prompt_of) if name in c.asked]
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    pictures = render(artist, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)
    seen = load_oracle().read(pictures)[KINDS[name] == "style"]
    return sum(found == name for found in seen) / len(seen)


def table(found: dict[str, list[Any]]) -> str:
    """A row a name, a column a strength: what the probe says, and what pictures show."""
    heads = " | ".join(f"strength {strength:g}" for strength in STRENGTHS)
    rows = [f"| erased | {heads} |", "| --- " * (1 + len(STRENGTHS)) + "|"]
    for name, pairs in found.items():
        cells = (f"{share:.0%}, {seen:.0%}" for share, seen in pairs)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    pairs = [pair for each in found.values() for pair in each]
    shares, seen = zip(*pairs, strict=True)
    unseen = sum(1 for share, part in pairs if part > 0.3 and share < 0.1)
    rows.append(
        f"\ncorrelation: {statistics.correlation(shares, seen):.3f}; "
        f"below 10 % where more than 30 % of pictures show it: {unseen} of {len(pairs)}"
    )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks probes", description=__doc__)
    names = (*OBJECTS, *STYLES)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args(argv)
    denoiser, artist, kept = pocket.load(), pocket.load_artist(), Kept(asked.out)
    found = {}
    for seed in range(asked.seeds):
        for name in asked.only or names:
            key = f"{name}, seed {seed}"
            found[key] = kept.get(key, partial(measure, denoiser, artist, name, seed))
            print(f"{key}: {found[key]}", flush=True)
    print("\n" + table(found))


if __name__ == "__main__":
    main()
