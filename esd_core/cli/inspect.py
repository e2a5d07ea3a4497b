"""`esd inspect`: what a file of an erasure is, says of itself, and changes."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from math import hypot, prod
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..files.formats import FOREIGN, FORMATS
from ..files.metadata import Key
from . import erased
from . import model as models
from .console import say

if TYPE_CHECKING:
    from torch import Tensor

    from ..files.open import Source

_JSON_VALUES = {Key.CONCEPTS, Key.ANCHORS, Key.CONTEXTS, Key.PRESERVED}
_JSON_VALUES |= {Key.PROBES, Key.WORDS, Key.UNET_CONFIG}
_LONG = {Key.CONFIG, Key.FINGERPRINT, Key.LORA_KEPT_BY_LAYER, "esd.losses"}
_LONG |= {Key.UNET_CONFIG, Key.COVERS}
"""Not shown, unless by --config and --json."""

_KINDS = {
    **dict.fromkeys((".txt.attn.", ".context.block.attn."), "attention of text"),
    **dict.fromkeys((".img.attn.", ".x.block.attn"), "attention of pictures"),
    **dict.fromkeys(("modulation.", ".mod.lin."), "modulations"),
    "single.blocks.": "single blocks",
    ".attn2.": "cross-attention",
    ".attn1.": "self-attention",
    **dict.fromkeys((".ff.", ".mlp.", ".img.mlp.", ".txt.mlp."), "feed-forward"),
    ".proj.": "transformer projections",
    "emb": "embeddings",
}
_UNET = (
    *("input.blocks.", "middle.block.", "output.blocks.", "out."),
    *("down.blocks.", "mid.block.", "up.blocks.", "conv."),
)
_UNETS_OTHER, _OTHER = "convolutions", "other layers"


def add_arguments(parser: ArgumentParser) -> None:
    erased.add_file(parser)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"The base to hold it against, to tell how much changes: {models.FORMS}.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print it all as JSON.")
    form.add_argument(
        "--config", action="store_true", help="Print the settings, as `esd erase --config` takes."
    )


def run(arguments: Namespace) -> int:
    from ..files.open import open_source

    source = open_source(arguments.file)
    if arguments.config:
        if Key.CONFIG not in source.metadata:
            raise FileError(f"{arguments.file} does not say with what settings it was made")
        say(source.metadata[Key.CONFIG].removesuffix("\n"))
        return 0
    found = _layers_of(source, arguments.model)
    if arguments.json:
        report = {
            "file": str(arguments.file),
            "kind": source.kind,
            "is": FORMATS[source.kind].title,
            "architecture": source.architecture,
            "metadata": {key: _decoded(key, text) for key, text in source.metadata.items()},
            "layers": found,
        }
        print(json.dumps(report, indent=2))
    else:
        say(_described(source, found))
    return 0


def _layers_of(source: Source, model: str | None) -> dict[str, dict[str, Any]]:
    from ..files.erasure import Erasure

    if model:
        base = models.base(model)
        return layers(erased.fitted_to(source, base).change(), base.weights)
    if source.needs_base or source.kind == FOREIGN:
        return layers(source.tensors, has_norms=False)
    return layers(Erasure(source.tensors, source.metadata).change())


def layers(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None, has_norms: bool = True
) -> dict[str, dict[str, Any]]:
    """By the kind of layer: how many tensors and values change, and how much.

    norm: the L2 norm of the change; part: that of the norm of the base's same tensors. They are
    left out where they are not known.
    """
    from ..storage.lazy import spec_of

    kinds: dict[str, list[str]] = {}
    for name in tensors:
        kinds.setdefault(_kind(name), []).append(name)
    found: dict[str, dict[str, Any]] = {}
    for kind, names in kinds.items():
        values = sum(prod(spec_of(tensors, name).shape) for name in names)
        found[kind] = {"tensors": len(names), "values": values}
        if has_norms:
            found[kind]["norm"] = norm = _norm(tensors, names)
            if base is not None and (own := _norm(base, names)):
                found[kind]["part"] = norm / own
    return found


def _norm(tensors: Mapping[str, Tensor], names: Iterable[str]) -> float:
    return hypot(*(float(tensors[name].detach().double().norm()) for name in names))


def _kind(name: str) -> str:
    """Of a tensor by any of its names: LDM's, diffusers' or kohya's."""
    dotted = name.replace("_", ".")
    other = _UNETS_OTHER if any(part in dotted for part in _UNET) else _OTHER
    return next((kind for part, kind in _KINDS.items() if part in dotted), other)


def _decoded(key: str, text: str) -> Any:
    if key not in _JSON_VALUES:
        return text
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return text


def _one_line(text: str) -> str:
    """A name or value of the file must not look like a line of ours."""
    return text.replace("\n", "\\n")


def _described(source: Source, found: Mapping[str, Mapping[str, Any]]) -> str:
    from ..models.architectures import title

    metadata = sorted(source.metadata.items())
    shown = {_one_line(k): _one_line(text) for k, text in metadata if k not in _LONG}
    width = max(map(len, shown), default=0)
    lines = [
        _one_line(source.path.name),
        f"{FORMATS[source.kind].title}, for {title(source.architecture)}",
    ]
    lines += [f"  {key:{width}}  {text}" for key, text in shown.items()]
    lines.append(f"{'change':24} {'tensors':>8} {'values':>13} {'||dW||':>10} {'||dW||/||W||':>13}")
    for kind, of_kind in found.items():
        numbers = f"{of_kind['tensors']:8} {of_kind['values']:13,}"
        norm = f"{of_kind['norm']:10.4g}" if "norm" in of_kind else f"{'?':>10}"
        part = f"{of_kind['part']:13.3%}" if "part" in of_kind else f"{'?':>13}"
        lines.append(f"  {kind:22} {numbers} {norm} {part}")
    if not all("part" in of_kind for of_kind in found.values()):
        lines.append("--model MODEL tells how much of that base it changes.")
    if Key.CONFIG in source.metadata:
        lines.append("--config prints the settings that make it again.")
    return "\n".join(lines)
