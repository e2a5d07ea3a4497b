"""`esd inspect`: what an erasure file says of itself, and what it changes."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError

if TYPE_CHECKING:
    from ..erasure import Erasure

CONFIG = "esd.config"
_JSON_VALUES = {"esd.concepts", "esd.anchors", "esd.probes", "trained_words"}
_LONG = {CONFIG, "esd.base_fingerprint"}
"""Not shown, unless by --config and --json."""

_KINDS = {
    ".attn2.": "cross-attention",
    ".attn1.": "self-attention",
    ".ff.": "feed-forward",
    ".proj_": "transformer projections",
    "emb": "embeddings",
}
_OTHER_KIND = "convolutions"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="An erasure file.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print it all as JSON.")
    form.add_argument(
        "--config", action="store_true", help="Print the settings, as `esd erase --config` takes."
    )


def run(arguments: Namespace) -> int:
    from ..erasure import read_erasure

    erasure = read_erasure(arguments.file)
    if arguments.config:
        if CONFIG not in erasure.metadata:
            raise FileError(f"{arguments.file} does not say with what settings it was made")
        print(erasure.metadata[CONFIG], end="")
    elif arguments.json:
        metadata = {key: _decoded(key, text) for key, text in erasure.metadata.items()}
        report = {"file": str(arguments.file), "metadata": metadata, "layers": layers(erasure)}
        print(json.dumps(report, indent=2))
    else:
        print(_described(erasure))
    return 0


def layers(erasure: Erasure) -> dict[str, dict[str, Any]]:
    """By the kind of layer: how many tensors and values change, and the change's L2 norm."""
    squares: dict[str, list[tuple[int, float]]] = {}
    for name, change in erasure.change().items():
        square = float(change.double().square().sum())
        squares.setdefault(_kind(name), []).append((change.numel(), square))
    return {
        kind: {
            "tensors": len(parts),
            "values": sum(size for size, _ in parts),
            "norm": sum(square for _, square in parts) ** 0.5,
        }
        for kind, parts in squares.items()
    }


def _kind(name: str) -> str:
    return next((kind for part, kind in _KINDS.items() if part in name), _OTHER_KIND)


def _decoded(key: str, text: str) -> Any:
    if key not in _JSON_VALUES:
        return text
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        return text


def _described(erasure: Erasure) -> str:
    shown = {k: text for k, text in sorted(erasure.metadata.items()) if k not in _LONG}
    width = max(map(len, shown), default=0)
    lines = [erasure.name, *(f"  {key:{width}}  {text}" for key, text in shown.items())]
    lines.append(f"{'change':24} {'tensors':>8} {'values':>12} {'norm':>10}")
    for kind, of_kind in layers(erasure).items():
        numbers = f"{of_kind['tensors']:8} {of_kind['values']:12,} {of_kind['norm']:10.4g}"
        lines.append(f"  {kind:22} {numbers}")
    if CONFIG in erasure.metadata:
        lines.append("--config prints the settings that make it again.")
    return "\n".join(lines)
