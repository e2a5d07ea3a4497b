"""Runs the workflow pocket_demo in a real ComfyUI, as a person does: python demo.py FOLDER.

The grid goes to FOLDER/comfyui.png. Where there is no ComfyUI it says so, and that is all.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from comfy_cli.workflow_to_api import convert_ui_to_api
from comfy_server import PACK, VARIABLE, Run, Server, find_comfyui, running


def main(folder: Path) -> int:
    comfyui = find_comfyui()
    if comfyui is None:
        print(f"no ComfyUI was found, so the nodes were not run: `make host`, or set {VARIABLE}")
        return 0
    print(f"running workflows/pocket_demo.json in {comfyui}, which takes about a minute")
    with tempfile.TemporaryDirectory() as place, running(comfyui, Path(place) / "base") as server:
        return _show(server, folder)


def _show(server: Server, folder: Path) -> int:
    workflow = json.loads((PACK / "workflows" / "pocket_demo.json").read_text(encoding="ascii"))
    prompt = convert_ui_to_api(workflow, server.get("/object_info"))
    run = server.run(prompt)
    if run.ending != "execution_success":
        print(run.error, file=sys.stderr)
        return 1
    for node, content in prompt.items():
        if content["class_type"] in ("ESDTrain", "PreviewAny"):
            print(f"\n{run.text(node)}")
    (grid,) = _images(run, prompt, "ESDCompare")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "comfyui.png"
    shutil.copy(server.base / grid["type"] / grid["subfolder"] / grid["filename"], target)
    print(f"\nthe grid is in {target}")
    return 0


def _images(run: Run, prompt: dict[str, dict[str, str]], kind: str) -> list[dict[str, str]]:
    (node,) = [node for node, content in prompt.items() if content["class_type"] == kind]
    images: list[dict[str, str]] = run.output(node)["images"]
    return images


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
