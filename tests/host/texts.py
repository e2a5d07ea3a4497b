"""What the nodes say of themselves, as their translations in locales/ are keyed.

    python tests/host/texts.py      # with a ComfyUI: writes texts.json, which translations are of

Run it once a text of the nodes has changed, or is new, and its translations are written:
test_locales.py tells which those are.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from comfy_server import Server, find_comfyui, running

FILE = Path(__file__).with_name("texts.json")
NODES = (
    *("ESDTrain", "ESDTrainOptions", "ESDLoadErased", "ESDSaveErased", "ESDCompare"),
    "ESDLoadPocket",
)


def declared(server: Server) -> dict[str, str]:
    """Texts by key, dotted: of nodes, and of what goes in and out of them."""
    texts: dict[str, str] = {}
    for name in NODES:
        node = server.get(f"/object_info/{name}")[name]
        texts |= {f"{name}.{key}": node[key] for key in ("display_name", "description")}
        for kind in ("required", "optional"):
            for key, spec in node["input"].get(kind, {}).items():
                texts[f"{name}.inputs.{key}.tooltip"] = spec[1]["tooltip"]
        for index, tooltip in enumerate(node["output_tooltips"]):
            texts[f"{name}.outputs.{index}.tooltip"] = tooltip
    return texts


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The texts of a translation under dotted keys."""
    found: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def main() -> None:
    comfyui = find_comfyui()
    assert comfyui, "no ComfyUI was found: see CONTRIBUTING.md"
    with tempfile.TemporaryDirectory() as place, running(comfyui, Path(place) / "base") as server:
        FILE.write_text(json.dumps(declared(server), indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
