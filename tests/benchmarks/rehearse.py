"""The whole way at full size, with random weights: `make rehearse`.

    python -m benchmarks.rehearse FOLDER [--small]

In a ComfyUI on the CPU: a checkpoint of SDXL's shape is loaded, trained on, saved in every
format, loaded again by our node and by stock ones, and sampled with; and the same headless. Time
and peak of memory of every part are printed, and kept in FOLDER/parts.json: what is there is not
done again, so that a rehearsal that broke off goes on. It takes some 22 GB; --small takes the
embedded model.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from .worker import TESTS, answer

sys.path.insert(0, str(TESTS / "host"))

CHECKPOINT = "random_sdxl.safetensors"
# 16-bit weights: what they are multiplied in is float32, which a CPU is quick at.
FLAGS = ("--fp16-unet", "--fp16-text-enc")
TRAINING = {
    "concepts": "Van Gogh",
    "method": "esd-x-strict",
    "steps": 3,
    "width": 256,
    "height": 256,
}
OPTIONS = {
    "trajectory_steps": 2,
    "trajectory_count": 2,
    "gradient_checkpointing": "on",
    "precision": "auto",
    "preview_every": 0,
    "until": 0.0,
}


class Parts:
    """What has been done, with its seconds and gigabytes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def take(self, name: str, work: Callable[[], Any], process: psutil.Process) -> None:
        """Does it unless it is done, and prints what it took of `process` and its children."""
        if name not in self.done:
            started = time.monotonic()
            with highest(process) as peak:
                result = work()
            took = {"seconds": round(time.monotonic() - started, 1), "gigabytes": peak[0] / 1e9}
            self.done[name] = {**took, "result": result}
            self._file.write_text(json.dumps(self.done, indent=2))
        part = self.done[name]
        print(f"| {name} | {part['seconds']:.0f} s | {part['gigabytes']:.1f} GB |", flush=True)


@contextmanager
def highest(process: psutil.Process) -> Iterator[list[int]]:
    """Inside, the largest memory of the process and its children is noted, ten times a second."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            try:
                family = [process, *process.children(recursive=True)]
                peak[0] = max(peak[0], sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def main() -> None:
    parser = ArgumentParser(description="Rehearses the whole way at full size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="With the embedded model.")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parts, own = Parts(folder / "parts.json"), psutil.Process()
    print("| part | time | peak of memory |\n| --- | --- | --- |")
    if not arguments.small:
        file = folder / CHECKPOINT
        parts.take("write the checkpoint", lambda: answer("rehearse_part", "write", str(file)), own)
    in_comfyui(parts, folder, arguments.small)
    size = "pocket" if arguments.small else "sdxl"
    headless = folder / "headless"
    headless.mkdir(exist_ok=True)
    work = lambda: answer("rehearse_part", "headless", str(headless), size)  # noqa: E731
    parts.take("headless: train, export in every form, load", work, own)


# -- in ComfyUI --------------------------------------------------------------------------------


def in_comfyui(parts: Parts, folder: Path, small: bool) -> None:
    from comfy_server import find_comfyui, running

    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("no ComfyUI is here: `make host` installs one, or set COMFYUI_PATH")
    base = folder / "comfyui"
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if not small and not (checkpoints / CHECKPOINT).exists():
        (checkpoints / CHECKPOINT).symlink_to(folder / CHECKPOINT)
    threads = 1 if small else psutil.cpu_count(logical=False) or 1
    with running(comfyui, base, flags=FLAGS, threads=threads) as server:
        server.patience = 3600  # between two messages: probes at full size take a quarter of it
        process = psutil.Process(server.pid)
        for name, work in Way(server, small).parts():
            parts.take(f"ComfyUI: {name}", work, process)


class Way:
    """Prompts to one server, which keeps the checkpoint between them."""

    def __init__(self, server: Any, small: bool) -> None:
        from graphs import Graph

        self.server, self.small = server, small
        self.graph = lambda: Graph(server)

    def parts(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "load, one KSampler step", lambda: self._sampled("")
        yield f"ESDTrain, {TRAINING['steps']} steps", self._trained
        formats = self.server.get("/object_info/ESDSaveErased")["ESDSaveErased"]
        for kind in _choices(formats["input"]["required"]["format"]):
            yield f"ESDSaveErased, {kind}", lambda kind=kind: self._saved(kind)
        for loader in ("ESDLoadErased", "LoraLoaderModelOnly", "UNETLoader"):
            yield f"{loader}, one KSampler step", lambda loader=loader: self._sampled(loader)

    def _loaded(self, graph: Any) -> Any:
        if self.small:
            return graph.pocket()
        node = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        return [node, 0], [node, 1], [node, 2]

    def _trained_node(self, graph: Any) -> str:
        model, clip, _ = self._loaded(graph)
        options = graph.add("ESDTrainOptions", **OPTIONS)
        node: str = graph.add(
            "ESDTrain", model=model, clip=clip, options=[options, 0],
            filename_prefix="rehearsal", **TRAINING,
        )  # fmt: skip
        return node

    def _trained(self) -> str:
        graph = self.graph()
        node = self._trained_node(graph)
        text: str = _successful(graph.run()).text(node)
        return text

    def _saved(self, kind: str) -> None:
        graph = self.graph()
        node = self._trained_node(graph)
        graph.add(
            "ESDSaveErased", format=kind, filename_prefix="saved", model=[node, 0],
            erasure=[node, 1],
        )  # fmt: skip
        _successful(graph.run())

    def _sampled(self, loader: str) -> None:
        graph = self.graph()
        model, clip, _ = self._loaded(graph)
        if loader == "UNETLoader":
            name = _newest(self.server, "diffusion_models/saved*")
            model = [graph.add("UNETLoader", unet_name=name), 0]
        elif loader:
            name = _newest(self.server, "loras/rehearsal*")
            key = "file" if loader == "ESDLoadErased" else "lora_name"
            model = [graph.add(loader, model=model, **{key: name}), 0]
        prompts = [graph.add("CLIPTextEncode", text=text, clip=clip) for text in ("a house", "")]
        latent = graph.add("EmptyLatentImage", width=256, height=256, batch_size=1)
        sampled = graph.add(
            "KSampler", model=model, steps=1, cfg=2.0, sampler_name="euler", scheduler="normal",
            positive=[prompts[0], 0], negative=[prompts[1], 0], latent_image=[latent, 0],
        )  # fmt: skip
        graph.add("SaveLatent", samples=[sampled, 0], filename_prefix=loader or "original")
        _successful(graph.run())


def _choices(spec: list[Any]) -> list[str]:
    kind, *options = spec
    found: list[str] = kind if isinstance(kind, list) else options[0]["options"]
    return found


def _newest(server: Any, pattern: str) -> str:
    files = sorted((server.base / "output").glob(pattern))
    return str(files[-1].relative_to(files[-1].parents[0]))


def _successful(run: Any) -> Any:
    if run.ending != "execution_success":
        sys.exit(f"ComfyUI: {run.error or run.ending}")
    return run


if __name__ == "__main__":
    main()
