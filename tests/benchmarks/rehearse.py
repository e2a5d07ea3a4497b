"""The whole way at full size, with random weights: `make rehearse`.

    python -m benchmarks.rehearse FOLDER [--small] [--device cuda]

In a ComfyUI on the CPU: a checkpoint of SDXL's shape is loaded, trained on, saved in every
format, loaded again by our node and by stock ones, and sampled with; and the same headless. Time
and peak of memory of every part are printed, and kept in FOLDER/parts.json: what is there is not
done again, so that a rehearsal that broke off goes on. It takes some 22 GB; --small takes the
embedded model. With --device ComfyUI runs on that, trains at 1024x1024, and tells its memory too;
headless is then `benchmarks.gpu`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

    def take(self, name: str, work: Callable[[], Any], *used: Callable[[], int]) -> None:
        """Does it unless it is done, and prints what it took: of time, and by each of `used`."""
        if name not in self.done:
            started = time.monotonic()
            with highest(*used) as peaks:
                result = work()
            took = {"seconds": round(time.monotonic() - started, 1)}
            self.done[name] = {**took, "peaks": [peak / 1e9 for peak in peaks], "result": result}
            self._file.write_text(json.dumps(self.done, indent=2))
        part = self.done[name]
        peaks = " | ".join(f"{peak:.1f} GB" for peak in part["peaks"])
        print(f"| {name} | {part['seconds']:.0f} s | {peaks} |", flush=True)


def resident(process: psutil.Process) -> Callable[[], int]:
    """Memory of a process and its children."""

    def used() -> int:
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)

    return used


def on_device(server: Any) -> int:
    """Memory of ComfyUI's device that is taken, by whomever."""
    (device, *_) = server.get("/system_stats")["devices"]
    return int(device["vram_total"] - device["vram_free"])


@contextmanager
def highest(*used: Callable[[], int]) -> Iterator[list[int]]:
    """Inside, the largest memory that each tells is noted, ten times a second."""
    peaks, over = [0] * len(used), threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            with suppress(psutil.NoSuchProcess, OSError):
                peaks[:] = map(max, peaks, [one() for one in used])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def main() -> None:
    parser = ArgumentParser(description="Rehearses the whole way at full size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="With the embedded model.")
    parser.add_argument("--device", help="Where ComfyUI computes: cuda, or sim, which pretends.")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parts, own = Parts(folder / "parts.json"), resident(psutil.Process())
    device: str | None = arguments.device
    heads = ["part", "time", "peak of memory", *(["of the device"] if device else [])]
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    if not arguments.small:
        file = folder / CHECKPOINT
        parts.take("write the checkpoint", lambda: answer("rehearse_part", "write", str(file)), own)
    in_comfyui(parts, folder, arguments.small, device)
    if device:
        return
    size = "pocket" if arguments.small else "sdxl"
    headless = folder / "headless"
    headless.mkdir(exist_ok=True)
    work = lambda: answer("rehearse_part", "headless", str(headless), size)  # noqa: E731
    parts.take("headless: train, export in every form, load", work, own)


# -- in ComfyUI --------------------------------------------------------------------------------


def in_comfyui(parts: Parts, folder: Path, small: bool, device: str | None) -> None:
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
    how: dict[str, Any] = {"flags": FLAGS} if device is None else {"is_cpu": False}
    if device == "sim":
        import simdev

        how["world"] = simdev.as_npu()
    with running(comfyui, base, threads=threads, **how) as server:
        server.patience = 3600  # between two messages: probes at full size take a quarter of it
        used = [resident(psutil.Process(server.pid))]
        if device:
            used.append(lambda: on_device(server))
        large = {} if small or device is None else {"width": 1024, "height": 1024}
        for name, work in Way(server, small, {**TRAINING, **large}).parts():
            parts.take(f"ComfyUI: {name}", work, *used)


class Way:
    """Prompts to one server, which keeps the checkpoint between them."""

    def __init__(self, server: Any, small: bool, training: dict[str, Any]) -> None:
        from graphs import Graph

        self.server, self.small, self.training = server, small, training
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
            filename_prefix="rehearsal", **self.training,
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
