"""What was never measured here, on a machine that has a GPU: `make gpu`.

    python -m benchmarks.gpu FOLDER [--model CHECKPOINT.safetensors] [--device sim]

Runs the tests that are for CUDA, the demo, plans against the peaks of real steps, the rehearsal in
ComfyUI, and, where a checkpoint of SDXL is given, erases a style from it and draws pictures. What
came of each goes into FOLDER/report.md, to paste into an issue; a part that fails is named there,
and the others run. On the pretend accelerator (--device sim) all is small, and shows that it runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

from .worker import TESTS, world

PLANS = {
    "esd-x": ("method=esd-x",),
    "esd-x, checkpointed": ("method=esd-x", "training.gradient_checkpointing=on"),
    "esd-x-strict": ("method=esd-x-strict",),
    "esd-x, rank 16": ("method=esd-x", "training.rank=16"),
    "esd-u, adafactor": ("method=esd-u", "training.optimizer=adafactor"),
}
PART = "benchmarks.gpu_part"


class Report:
    """The file, written anew after every part."""

    def __init__(self, folder: Path) -> None:
        self.failed: list[str] = []
        self._folder, self._text = folder, ""

    def add(self, text: str) -> None:
        self._text += f"{text}\n"
        (self._folder / "report.md").write_text(self._text, encoding="utf-8")
        print(text, flush=True)

    def run(self, name: str, words: Sequence[str]) -> list[str]:
        """What `python WORDS` says on stdout; where it fails, that is said. All is in a log."""
        log = self._folder / f"{name.replace(' ', '-').replace(',', '')}.log"
        started = time.monotonic()
        with log.open("w") as errors:
            done = subprocess.run(
                [sys.executable, *words], env=world(), cwd=TESTS.parent, check=False, text=True,
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        lines = done.stdout.splitlines()
        with log.open("a") as told:
            told.write(f"\n-- stdout\n{done.stdout}")
        if done.returncode:
            self.failed.append(name)
            last = [line for line in log.read_text().splitlines() if line.strip()][-8:]
            self.add(f"**{name} FAILED** (exit code {done.returncode}):\n```")
            self.add("\n".join(last) + "\n```")
        self.add(f"({name}: {time.monotonic() - started:.0f} s)\n")
        return lines


def main() -> None:
    parser = ArgumentParser(description="Measures on a GPU, and writes FOLDER/report.md.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="A checkpoint of SDXL, or a diffusers folder or hub id.")
    parser.add_argument("--device", default="cuda", help="cuda, or sim, which pretends.")
    arguments = parser.parse_args()
    folder, device = arguments.folder.resolve(), arguments.device
    if device == "cuda" and not _has_cuda():
        sys.exit("torch sees no CUDA device here; --device sim tries this on one that pretends")
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder)
    report.add(f"# On {'a GPU' if device == 'cuda' else 'the pretend accelerator'}\n")
    report.add("\n".join(report.run("facts", ["-m", PART, "facts", device])))
    for part in (tests, demo, plans, rehearsal):
        part(report, folder, device)
    if arguments.model:
        pictures(report, folder, device, arguments.model)
    report.add(f"\nFailed: {', '.join(report.failed) or 'nothing'}.")
    print(f"written to {folder / 'report.md'}")
    sys.exit(bool(report.failed))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def tests(report: Report, folder: Path, device: str) -> None:
    report.add("\n## Tests\n")
    which = ["-m", "cuda", "tests"] if device == "cuda" else ["tests/sim", "-k", "resumes and sim"]
    told = report.run("tests", ["-m", "pytest", "-q", "-n", "0", *which])
    report.add("\n".join(line for line in told if " passed" in line or line.startswith("FAILED")))


def demo(report: Report, folder: Path, device: str) -> None:
    """As `make demo`; on the pretend accelerator the erasure alone, since pictures take minutes."""
    report.add("\n## Demo\n")
    words = ["demo", "--out", str(folder / "demo")]
    if device == "sim":
        short = ("--steps", "2", "--count", "1", "--trajectory-steps", "2", "--force")
        words = ["erase", "--model", "pocket", "--concept", "Van Gogh", *short]
        words += ["--out", str(folder / "demo.safetensors")]
    told = report.run("demo", ["-m", PART, "esd", device, *words])
    report.add("\n".join(["```", *told, "```"]))


def plans(report: Report, folder: Path, device: str) -> None:
    size = "SDXL's UNet with random weights, 1024x1024, bf16" if device == "cuda" else "pocket"
    report.add(
        f"\n## Plans against peaks ({size})\n\nBeside the weights; a plan may not be less.\n"
    )
    rows = [_row(report, name, device) for name in PLANS]
    heads = "| settings | planned | peak | planned / peak | seconds a step |"
    report.add("\n".join([heads, "| --- " * 5 + "|", *rows]))


def _row(report: Report, name: str, device: str) -> str:
    """Each in a process of its own, in which torch holds nothing else."""
    told = report.run(f"plan {name}", ["-m", PART, "plan", device, *PLANS[name]])
    return f"| {name} | {told[-1] if told else 'failed | | |'} |"


def rehearsal(report: Report, folder: Path, device: str) -> None:
    size = "SDXL's size with random weights, 1024x1024" if device == "cuda" else "pocket's size"
    report.add(f"\n## In ComfyUI, at {size}\n")
    own = [str(folder / "rehearsal"), "--device", device, *(["--small"] if device == "sim" else [])]
    told = report.run("rehearsal", ["-m", "benchmarks.rehearse", *own])
    report.add("\n".join(line for line in told if line.startswith("|")))


def pictures(report: Report, folder: Path, device: str, model: str) -> None:
    """Of the default erasure of a style."""
    report.add(f"\n## Van Gogh erased from {Path(model).name}\n")
    file, grid = folder / "van-gogh.safetensors", folder / "van-gogh.png"
    for words in _erasing(model, file, grid, small=device == "sim"):
        told = report.run(words[0], ["-m", PART, "esd", device, *words, "--force"])
        report.add("\n".join(["```", *told, "```"]))
    report.add(f"![original and erased; put the file here: {grid}]({grid.name})")


def _erasing(model: str, file: Path, grid: Path, small: bool) -> Iterator[list[str]]:
    short = ["--steps", "2", "--count", "1", "--trajectory-steps", "2"] if small else []
    yield ["erase", "--model", model, "--concept", "Van Gogh", "--out", str(file), *short]
    prompts = ("a house in the style of Van Gogh", "a house", "a portrait of a woman")
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    how = ["--steps", "2"] if small else []
    yield ["compare", "--model", model, "--erased", str(file), *asked, "--out", str(grid), *how]


if __name__ == "__main__":
    main()
