"""Prompts for the tests: what is not given has the default that the server declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from comfy_server import Prompt, Run, Server
from PIL import Image

Link = list[Any]

SMALL_TRAINING = {
    "concepts": "Van Gogh",
    "steps": 4,
    "learning_rate": 1e-3,
    "width": 64,
    "height": 64,
}
SMALL_OPTIONS = {
    "trajectory_steps": 4,
    "trajectory_count": 2,
    "trajectory_guidance": 3.0,
    "batch_size": 4,
    "save_dtype": "fp32",
    "preview_every": 0,
    "until": 0.0,
    "schedule": "constant",
}
PROMPT = "a house in the style of Van Gogh"
AGAIN = " "
"""Behind a prompt: the same tokens, but not the same to the server's cache."""


class Graph:
    """A prompt in the making."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.prompt: Prompt = {}
        self.samplers: dict[str, str] = {}

    def add(self, kind: str, **inputs: Any) -> str:
        """Adds a node; its id."""
        declared = self._server.get(f"/object_info/{kind}")[kind]["input"]["required"]
        defaults = {name: _default(spec) for name, spec in declared.items()}
        values = {name: v for name, v in {**defaults, **inputs}.items() if v is not None}
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": values}
        return node

    def pocket(self, network: str | None = None) -> tuple[Link, Link, Link]:
        """MODEL, CLIP and VAE; without a network as workflows have it that know of one alone."""
        node = self.add("ESDLoadPocket", network=network)
        return [node, 0], [node, 1], [node, 2]

    def train(self, model: Link, clip: Link, options: dict[str, Any], **inputs: Any) -> str:
        """A small training; `options` and inputs lie over SMALL_OPTIONS and SMALL_TRAINING."""
        further = self.add("ESDTrainOptions", **{**SMALL_OPTIONS, **options})
        given = {**SMALL_TRAINING, **inputs}
        return self.add("ESDTrain", model=model, clip=clip, options=[further, 0], **given)

    def picture(
        self, model: Link, clip: Link, vae: Link, prompt: str = PROMPT, seed: int = 1
    ) -> str:
        """A picture by stock nodes, saved; the node that saves it, whose KSampler is in
        `samplers`. The server does not sample again what it has sampled: see AGAIN."""
        size = {"width": 128, "height": 128, "batch_size": 1}
        latent = self.add("EmptyLatentImage", **size)
        positive = self.add("CLIPTextEncode", text=prompt, clip=clip)
        negative = self.add("CLIPTextEncode", text="", clip=clip)
        sampled = self.add(
            "KSampler",
            model=model,
            seed=seed,
            steps=6,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            positive=[positive, 0],
            negative=[negative, 0],
            latent_image=[latent, 0],
        )
        decoded = self.add("VAEDecode", samples=[sampled, 0], vae=vae)
        saved = self.add("SaveImage", images=[decoded, 0], filename_prefix="test")
        self.samplers[saved] = sampled
        return saved

    def run(self, **listening: Any) -> Run:
        return self._server.run(self.prompt, **listening)


def _default(spec: list[Any]) -> Any:
    """Of a widget; None for a link."""
    kind, *options = spec
    declared = options[0] if options else {}
    if "default" in declared:
        return declared["default"]
    choices = kind if isinstance(kind, list) else declared.get("options", [])
    return choices[0] if choices else None


def pictures(server: Server, run: Run, node: str, key: str = "images") -> list[np.ndarray]:
    """What a node has saved or shown, uint8 [H, W, 3]."""
    return [
        np.asarray(Image.open(_path(server, image)).convert("RGB"))
        for image in run.output(node)[key]
    ]


def _path(server: Server, image: dict[str, str]) -> Path:
    return server.base / image["type"] / image["subfolder"] / image["filename"]


def files(server: Server, pattern: str) -> list[Path]:
    """Files in the output folder, in order."""
    return sorted((server.base / "output").glob(pattern))


def drawn_with(server: Server, loader: str, **inputs: Any) -> tuple[np.ndarray, Run, str]:
    """A picture of pocket behind a node that lays a file over it; the run, and that node."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    node = graph.add(loader, model=model, **inputs)
    saved = graph.picture([node, 0], clip, vae)
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return pictures(server, run, saved)[0], run, node


def small_erasure(server: Server) -> Path:
    """The file of a small erasure of pocket's, which is made once."""
    if not files(server, "loras/esd/small*"):
        graph = Graph(server)
        model, clip, _ = graph.pocket()
        graph.train(model, clip, {}, filename_prefix="esd/small")
        assert graph.run().ending == "execution_success"
    return files(server, "loras/esd/small*")[0]
