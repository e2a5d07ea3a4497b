"""What other ways to erase do on pocket: ESD as published, LECO, UCE and ours, in one table.

    make bench NAME=rivals [JSON=OUT.json] [PAIRS=SEEDS]
        [ARGS="--only CONCEPT --rival NAME --per-pair N --no-search"]

Every rival has a row with its own published settings, and one with the best of six cells that hold
for all concepts alike (`Rival.grid`, the published ones among them):

    esd-x    learning rate 2e-4, 1e-3, 3e-3 x eta 0, 1
    esd-u    learning rate 1e-5, 1e-4, 1e-3 x eta 0, 1
    leco     learning rate 1e-4, 1e-3, 3e-3 x eta 1, 3
    uce      as published; expanded prompts and all generic words preserved, with the last word's
             state or all from there on, lambda 0.5, 5 and 50, and erasing weighted 10 times
    ours     learning rate 5e-4, 1e-3, 2e-3 x preserving weight 1, 3; the preset stands first

The best has the highest mean of UA, IRA and CRA over the concepts in `--search-on`, at the tuning
split: templates captions.HELD_OUT_*, 8 steps, seeds of its own, three pictures of every pair. There
esd-x and esd-u draw their samples from whole trajectories, which cost a twentieth of the published
schedule. Rows of the table are of efficacy.py's split, and of other training seeds. ESD's published
runs are those of the scripts without what our presets add: nothing is preserved, one sample a
step, gradients not clipped. All train at pocket's size and in float32, and pictures are drawn in
bfloat16 where the CPU computes it.

UA is the share of pictures that no longer show the concept; IRA and CRA are what the other concepts
of its kind and of the other kind keep of theirs (Zhang et al., UnlearnCanvas, arXiv 2402.11846).
OUT.json keeps every run, so that an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from esd_core.config.mappings import override
from esd_core.config.presets import load_preset
from esd_core.config.settings import ErasureConfig
from esd_core.files.apply import applied
from esd_core.files.erasure import Erasure
from esd_core.models.denoiser import Denoiser
from esd_core.models.headless import Headless
from esd_core.pocket.captions import held_out_prompt
from esd_core.pocket.world import OBJECTS, SIZE, STYLES
from esd_core.training.run import finish
from esd_core.training.trainer import Trainer

from . import pocket, uce
from .efficacy import JUDGED, Split, readings, shares
from .kept import Kept
from .official import official

CONCEPTS = ("house", "boat", "Van Gogh", "Seurat")
SEARCHED_ON = ("house", "Van Gogh")
TUNING = Split(held_out_prompt, 600_000, 8, 3)
SEARCH_SEED = 1000

Setting = dict[str, Any]
Make = Callable[[Headless, str, Setting], tuple[Erasure, int]]
"""From a model, a concept and settings to an erasure, and the evaluations that it took."""


@dataclass(frozen=True)
class Rival:
    """A way to erase a concept that is given by its name.

    Attributes:
        grid: the cells of its search, the published settings first.
        search: how its cells are made, where that differs from `make`.
    """

    title: str
    make: Make
    grid: tuple[Setting, ...]
    search: Make | None = None


def trained(
    preset: str, start: Callable[[Denoiser, ErasureConfig], Trainer] = pocket.trainer, **fixed: Any
) -> Make:
    """By one of our presets, at pocket's size; dots in settings are written as two underscores."""

    def make(denoiser: Headless, concept: str, setting: Setting) -> tuple[Erasure, int]:
        host = pocket.Silent()
        trainer = start(denoiser, config_of(preset, concept, {**fixed, **setting}))
        result = finish(trainer, trainer.run(host, host))
        return result.erasure, result.report["teacher_evaluations"]

    return make


def config_of(preset: str, concept: str, setting: Setting) -> ErasureConfig:
    given = {name.replace("__", "."): value for name, value in setting.items()}
    size = {"width": SIZE, "height": SIZE, "training.save_dtype": "fp32"}
    is_robust = bool(setting.get("training__robust"))
    settings = {"concepts": [concept], **load_preset(preset, is_robust)}
    return ErasureConfig.from_mapping(override(override(settings, size), given))


def grid(**choices: Sequence[Any]) -> tuple[Setting, ...]:
    """Every combination, the first of each first."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


AS_PUBLISHED = {"preserve_empty": False, "training__batch_size": 1, "training__max_grad_norm": 0.0}
WHOLE = {"trajectory__count": 8, "trajectory__steps": 25}
"""200 states, as many as the scripts train on, of eight trajectories."""


def _official(title: str, preset: str, rates: Sequence[float]) -> Rival:
    cells = grid(training__learning_rate=rates, negative_guidance=(0.0, 1.0))
    make = trained(preset, official, **AS_PUBLISHED)
    return Rival(title, make, cells, trained(preset, **AS_PUBLISHED, **WHOLE))


RIVALS = {
    "esd-x": _official("ESD, official SDXL script, esd-x", "official-sdxl", (2e-4, 1e-3, 3e-3)),
    "esd-u": _official("the same, esd-u", "official-sdxl-esd-u", (1e-5, 1e-4, 1e-3)),
    "leco": Rival(
        "LECO",
        trained("leco-sdxl", training__max_grad_norm=0.0),
        grid(training__learning_rate=(1e-4, 1e-3, 3e-3), negative_guidance=(1.0, 3.0)),
    ),
    "uce": Rival(
        "UCE",
        uce.make,
        (
            {},
            {"expand": True, "preserve": True},
            {"expand": True, "preserve": True, "all_states": True},
            {"expand": True, "preserve": True, "all_states": True, "lamb": 5.0},
            {"expand": True, "preserve": True, "all_states": True, "lamb": 50.0},
            {"expand": True, "preserve": True, "all_states": True, "erase_scale": 10.0},
        ),
    ),
    "ours": Rival(
        "ours, preset pocket",
        trained("pocket"),
        grid(training__learning_rate=(1e-3, 5e-4, 2e-3), preserve_weight=(3.0, 1.0)),
    ),
    "robust": Rival(
        "ours, robust",
        trained("pocket", training__robust=True),
        grid(training__learning_rate=(5e-4, 7e-4, 1e-3), preserve_weight=(9.0, 6.0)),
    ),
}


# -- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The model, what draws its pictures, what is kept, and the split that rows are judged by."""

    denoiser: Headless
    artist: Headless
    kept: Kept
    judged: Split = JUDGED

    def before(self, split: Split) -> dict[str, Any]:
        key = f"before, {_name(split)}"
        return self.kept.get(key, lambda: {"seen": readings(self.artist, split)})

    def run(self, name: str, concept: str, setting: Setting, seed: int) -> dict[str, Any]:
        """One that a row is of."""
        make = RIVALS[name].make
        return self._run(f"{name}", make, concept, {**setting, "seed": seed}, self.judged)

    def try_out(self, name: str, concept: str, setting: Setting) -> dict[str, Any]:
        """One of a search."""
        make = RIVALS[name].search or RIVALS[name].make
        given = {**setting, "seed": SEARCH_SEED}
        return self._run(f"search, {name}", make, concept, given, TUNING)

    def _run(
        self, name: str, make: Make, concept: str, setting: Setting, split: Split
    ) -> dict[str, Any]:
        key = f"{name}, {concept}, {json.dumps(setting)}, {_name(split)}"
        return self.kept.get(key, lambda: self._measure(make, concept, setting, split))

    def _measure(self, make: Make, concept: str, setting: Setting, split: Split) -> dict[str, Any]:
        started = time.process_time()
        erasure, evaluations = make(self.denoiser, concept, setting)
        cpu = time.process_time() - started
        with applied(self.artist, [(erasure, 1.0)]):
            seen = readings(self.artist, split)
        return {
            "lines": [concept],
            "cpu_seconds": round(cpu, 1),
            "evaluations": evaluations,
            "seen": seen,
            "wordings": {},
        }


def _name(split: Split) -> str:
    return f"{split.per_pair} a pair from seed {split.first_seed}"


def search(bench: Bench, name: str, concepts: Sequence[str]) -> tuple[Setting, float]:
    """The best cell of a rival's grid, and its score; of equals the first."""
    before = bench.before(TUNING)
    scores = []
    for setting in RIVALS[name].grid:
        runs = [bench.try_out(name, concept, setting) for concept in concepts]
        scores.append(statistics.mean(score(run, before) for run in runs))
        print(f"search, {name}: {told(setting)}: {scores[-1]:.3f}", flush=True)
    best = max(range(len(scores)), key=scores.__getitem__)
    return RIVALS[name].grid[best], scores[best]


def score(run: dict[str, Any], before: dict[str, Any]) -> float:
    """The mean of UA, IRA and CRA."""
    found = shares(run, before)
    return statistics.mean([1 - max(found["left"].values()), found["IRA"], found["CRA"]])


# -- the table ---------------------------------------------------------------------------------

HEAD = (
    "| way | settings | UA | IRA | CRA | worst drop | CPU s | evaluations | still shown |\n"
    + "| --- " * 9
    + "|"
)


def row(title: str, settings: str, runs: Sequence[dict[str, Any]], before: dict[str, Any]) -> str:
    """Means over concepts and seeds; the worst drop is of one name in one run."""
    found = [shares(run, before) for run in runs]
    left = [max(f["left"].values()) for f in found]
    worst, name = min(f["worst"] for f in found)
    lines = [run["lines"][0] for run in runs]
    each = {
        c: statistics.mean(v for line, v in zip(lines, left, strict=True) if line == c)
        for c in dict.fromkeys(lines)
    }
    cells = [
        title,
        settings,
        f"{1 - statistics.mean(left):.1%}",
        *(f"{statistics.mean(f[key] for f in found):.1%}" for key in ("IRA", "CRA")),
        f"{max(0.0, 1 - worst):.1%} {name}",
        f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}",
        f"{statistics.mean(run['evaluations'] for run in runs):.0f}",
        ", ".join(f"{c} {share:.0%}" for c, share in each.items()),
    ]
    return f"| {' | '.join(cells)} |"


def told(setting: Setting) -> str:
    """Settings in a table, without the tables that they are of."""
    pairs = [(name.rpartition("__")[2], value) for name, value in setting.items()]
    shown = [k if v is True else f"{k} {v:g}" for k, v in pairs]
    return ", ".join(shown).replace("_", " ") or "as published"


def rows(
    bench: Bench, name: str, concepts: Sequence[str], seeds: int, searched_on: Sequence[str]
) -> Iterable[str]:
    """The row as published, and unless searched_on is empty that of the best found."""
    rival, before = RIVALS[name], bench.before(bench.judged)
    asked = {"published": rival.grid[0]}
    if searched_on:
        asked["best found"], _ = search(bench, name, searched_on)
    for which, setting in asked.items():
        runs = [bench.run(name, c, setting, seed) for c in concepts for seed in range(seeds)]
        yield row(rival.title, f"{which}: {told(setting)}", runs, before)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks rivals", description=__doc__)
    names = (*OBJECTS, *STYLES)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", action="append", choices=names, metavar="CONCEPT")
    parser.add_argument("--search-on", action="append", choices=names, metavar="CONCEPT")
    parser.add_argument("--rival", action="append", choices=[*RIVALS], metavar="NAME")
    parser.add_argument("--per-pair", type=int, default=JUDGED.per_pair)
    parser.add_argument("--no-search", action="store_true")
    asked = parser.parse_args(argv)
    judged = replace(JUDGED, per_pair=asked.per_pair)
    bench = Bench(pocket.load(), pocket.load_artist(), Kept(asked.out), judged)
    searched_on = () if asked.no_search else asked.search_on or SEARCHED_ON
    lines = [HEAD]
    for name in asked.rival or RIVALS:
        for line in rows(bench, name, asked.only or CONCEPTS, asked.seeds, searched_on):
            lines.append(line)
            print(line, flush=True)
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
