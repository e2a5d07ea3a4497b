"""What the default erases on pocket or pocket-dit, and what it leaves alone: every concept, by its
name alone.

    make bench NAME=efficacy [JSON=OUT.json] [ARGS="--model pocket-dit --seeds N --only NAME"]
    python -m benchmarks.efficacy OUT.json [--model MODEL] [--seeds N] [--only NAME] [--struck]
        [--robust] [--weights FOLDER]

Prompts and seeds are in no other file, and no setting was chosen on them, but for the learning rate
and the steps of robust runs. Erasures are trained in float32; pictures are drawn, before and after,
in bfloat16 on a CPU that computes it, which takes half the time and reads alike. OUT.json keeps
every run that is done, so that an interrupted table goes on. With --struck no word of pocket's
world is in the lists that contexts draw from. With --robust an adversary takes part in the runs.
With --weights the model is one of the same kind that `python -m esd_core.pocket.build` made from
another seed; the oracle is the shipped one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esd_core.config.concepts import parse
from esd_core.files.apply import applied
from esd_core.images.render import render
from esd_core.method import templates
from esd_core.method.contexts import Draw
from esd_core.models.embedded import EMBEDDED, POCKET
from esd_core.models.headless import Headless
from esd_core.pocket import GUIDANCE
from esd_core.pocket.judge import KINDS, PromptOf, load_oracle, make_cases, read
from esd_core.pocket.world import LOOKS, OBJECTS, PLAIN, SIZE, STYLES
from esd_core.training.run import erase

from . import pocket

STYLED = (
    "a {object} rendered by {style}",
    "{style} meets a {object}",
    "what {style} would make of a {object}",
    "the famous {object} from {style}",
    "a {object} scene, very {style}",
    "wall art: {style}, {object}",
)
UNSTYLED = (
    "look, a {object}",
    "the {object} over there",
    "a {object} at noon",
    "an ordinary {object}",
    "a {object} in the middle",
    "one more {object}",
)
STYLE_WORDINGS = (
    *("{c}", "{c} style", "{l} style", "a {c} painting", "boat, {l} style", "{l}", "tree, {c}"),
    *("a fish that {l} made", "in {c}'s manner", "very {l}"),
)
OBJECT_WORDINGS = (
    *("{c}", "the {c}", "{c}s", "{c} photo", "a red {c}", "one {c}, please", "at the {c}"),
    *("my {c} and I", "Hokusai {c}", "a picture full of {c}s"),
)
FURTHER = {"Van Gogh": ("Vincent Van Gogh",)}
RUNS = (
    *((name,) for name in (*OBJECTS, *STYLES)),
    ("Van Gogh", "Hokusai"),
    ("house", "car"),
    ("Seurat", "boat"),
    ("Van Gogh", "house"),
    ("tree", "Mondrian", "fish"),
    ("Van Gogh -> Mondrian",),
    ("house -> tree",),
    ("Van Gogh <- a house in the style of Van Gogh",),
)
STEPS, PER_PAIR, PER_WORDING = 20, 16, 20
OBEYED = 0.5
"""Wordings count that the untouched model obeys in so many of its pictures: not "cars"."""
FIRST_SEED = 800_000


def prompt_of(name: str, look: str, index: int) -> str:
    templates = UNSTYLED if look == PLAIN else STYLED
    return templates[index % len(templates)].format(object=name, style=look)


@dataclass(frozen=True)
class Split:
    """Pictures that shares are taken of: `per_pair` of every object in every look."""

    prompt: PromptOf
    first_seed: int
    steps: int
    per_pair: int


JUDGED = Split(prompt_of, FIRST_SEED, STEPS, PER_PAIR)
WIDER = Split(prompt_of, FIRST_SEED, STEPS, PER_PAIR * len(LOOKS))
"""For a single pair, as many pictures as a name has."""


def wordings(name: str) -> list[str]:
    templates = STYLE_WORDINGS if KINDS[name] == "style" else OBJECT_WORDINGS
    asked = [t.format(c=name, l=name.lower()) for t in templates]
    return [prompt for prompt in (*asked, *FURTHER.get(name, ())) for _ in range(PER_WORDING)]


def measure(
    model: str,
    denoiser: Headless,
    artist: Headless,
    lines: Sequence[str],
    seed: int,
    is_robust: bool = False,
) -> dict[str, Any]:
    """One run, and what its pictures show.

    model: its name. artist: the same model, in what draws the pictures.
    """
    started = time.process_time()
    config = pocket.config(model, concepts=lines, seed=seed, training__robust=is_robust)
    result = erase(denoiser, config, pocket.Silent(), pocket.Silent())
    cpu = time.process_time() - started
    names = [concept.name for concept in config.concepts]
    wider = {name for name in KINDS for c in config.concepts if name in c.erase_from}
    with applied(artist, [(result.erasure, 1.0)]):
        after = readings(artist)
        within = readings(artist, WIDER, wider) if wider else []
        worded = {} if wider else {name: shown_in_wordings(artist, name) for name in names}
    return {
        "lines": list(lines),
        "seed": seed,
        "cpu_seconds": round(cpu, 1),
        "evaluations": result.report["teacher_evaluations"],
        "probes": result.report["probes"]["share"],
        "seen": after,
        "within": within,
        "wordings": worded,
    }


def readings(
    denoiser: Headless, split: Split = JUDGED, named: Set[str] = frozenset()
) -> list[list[str]]:
    """A row a picture: object and look that were asked for, object and look that it shows; of the
    prompts in which all that is `named` stands."""
    cases = make_cases(split.per_pair, split.first_seed, split.prompt)
    cases = [case for case in cases if named <= {*case.asked}]
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    pictures = render(denoiser, prompts, seeds, split.steps, GUIDANCE, SIZE, SIZE)
    return [[*r.asked, *r.seen] for r in read(load_oracle(), cases, pictures)]


def shown_in_wordings(denoiser: Headless, name: str) -> dict[str, float]:
    """The share of pictures that show it, by wording."""
    prompts = wordings(name)
    seeds = [FIRST_SEED + 50_000 + place for place in range(len(prompts))]
    pictures = render(denoiser, prompts, seeds, STEPS, GUIDANCE, SIZE, SIZE)
    seen = load_oracle().read(pictures)[KINDS[name] == "style"]
    hits: dict[str, list[bool]] = {}
    for prompt, found in zip(prompts, seen, strict=True):
        hits.setdefault(prompt, []).append(found == name)
    return {prompt: sum(found) / len(found) for prompt, found in hits.items()}


# -- the table ---------------------------------------------------------------------------------


def shares(run: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Of what a run has left: erased names, the others of their kind and of the other kind (IRA,
    CRA) as shares of what they were, and the rest of prompts that name what was erased.

    What is erased from a wider concept is judged in prompts for that.
    """
    concepts = [parse(line) for line in run["lines"]]
    names = [concept.name for concept in concepts]
    kinds = {KINDS[name] for name in names}
    kept = {n: _share(run, n, names) / _share(before, n, names) for n in KINDS if n not in names}
    same = [share for name, share in kept.items() if KINDS[name] in kinds]
    other = [share for name, share in kept.items() if KINDS[name] not in kinds]
    beside = run.get("within") or [r for r in run["seen"] if {*r[:2]} & {*names}]
    intact = [a == s for r in beside for a, s in zip(r[:2], r[2:], strict=True) if a not in names]
    return {
        "left": {name: _share({"seen": beside}, name, []) for name in names},
        "instead": {
            c.anchor: _share({"seen": beside}, c.name, [], shows=c.anchor)
            for c in concepts
            if c.anchor
        },
        "IRA": statistics.mean(same),
        "CRA": statistics.mean(other) if other else None,
        "worst": min((share, name) for name, share in kept.items()),
        "beside": sum(intact) / len(intact),
        "wordings": max(
            (
                (share, prompt)
                for name, found in run["wordings"].items()
                for prompt, share in found.items()
                if before["wordings"][name][prompt] >= OBEYED
            ),
            default=(0.0, ""),
        ),
    }


def _share(run: dict[str, Any], name: str, without: Sequence[str], shows: str = "") -> float:
    """Of pictures that ask for a name, and for none of the others, those that show it, or what is
    to take its place."""
    place = ("object", "style").index(KINDS[name])
    asked = [r for r in run["seen"] if r[place] == name and not {*r[:2]} & {*without}]
    return sum(r[2 + place] == (shows or name) for r in asked) / len(asked)


def table(done: Sequence[dict[str, Any]], before: dict[str, Any]) -> str:
    """A row a line-up, medians over its seeds and the worst of them."""
    rows = [
        "| erased | still shown | IRA | CRA | worst of them | rest of its prompts | worst wording "
        "| probe | CPU s | evaluations |",
        "| --- " * 10 + "|",
    ]
    for lines in dict.fromkeys(tuple(run["lines"]) for run in done):
        runs = [run for run in done if tuple(run["lines"]) == lines]
        found = [shares(run, before) for run in runs]
        left = [max(f["left"].values()) for f in found]
        instead = {name: min(f["instead"][name] for f in found) for name in found[0]["instead"]}
        worst, wording = min(f["worst"] for f in found), max(f["wordings"] for f in found)
        cra = [f["CRA"] for f in found if f["CRA"] is not None]
        probe = [max(run["probes"].values()) for run in runs]
        cells = [
            " + ".join(lines),
            ", ".join([_range(left), *(f"{name} {share:.0%}" for name, share in instead.items())]),
            _range([f["IRA"] for f in found]),
            _range(cra) if cra else "",
            f"{worst[1]} {worst[0]:.0%}",
            _range([f["beside"] for f in found]),
            f"{wording[0]:.0%} {wording[1]}".strip(),
            _range(probe),
            f"{statistics.median(run['cpu_seconds'] for run in runs):.0f}",
            f"{statistics.median(run['evaluations'] for run in runs):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _range(values: Sequence[float]) -> str:
    """The median, and what it lies between where runs differ."""
    middle = f"{statistics.median(values):.1%}"
    spread = f"{min(values):.1%} to {max(values):.1%}"
    return middle if min(values) == max(values) else f"{middle} ({spread})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks efficacy", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--model", choices=EMBEDDED, default=POCKET)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append")
    parser.add_argument("--struck", action="store_true")
    parser.add_argument("--robust", action="store_true")
    parser.add_argument("--weights", metavar="FOLDER")
    arguments = parser.parse_args(argv)
    if arguments.struck:
        strike()
    model, out = arguments.model, arguments.out
    weights = arguments.weights or model
    denoiser, artist = pocket.load(model=weights), pocket.load_artist(weights)
    state = json.loads(out.read_text()) if out and out.exists() else {"runs": []}
    if "before" not in state:
        worded = {name: shown_in_wordings(artist, name) for name in (*OBJECTS, *STYLES)}
        state["before"] = {"seen": readings(artist), "wordings": worded}
    for seed in range(arguments.seeds):
        for lines in RUNS:
            is_done = any((r["lines"], r["seed"]) == ([*lines], seed) for r in state["runs"])
            if is_done or (arguments.only and " + ".join(lines) not in arguments.only):
                continue
            run = measure(model, denoiser, artist, lines, seed, arguments.robust)
            state["runs"].append(run)
            if out:
                out.write_text(json.dumps(state))
            print(table(state["runs"][-1:], state["before"]).splitlines()[-1], flush=True)
    print(table(state["runs"], state["before"]))


def strike() -> None:
    """Keeps pocket's own words from being drawn, and from telling their kinds."""
    own = {name.casefold() for name in (*OBJECTS, *STYLES)}
    draw = Draw.word

    def other_word(self: Draw, words: Sequence[str]) -> str:
        while True:
            word = draw(self, words)
            if not own & {word.casefold(), *word.casefold().split()}:
                return word

    Draw.word = other_word  # type: ignore[method-assign]
    for name in own:
        templates.KNOWN.pop(name, None)


if __name__ == "__main__":
    main()
