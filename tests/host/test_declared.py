"""What the server says of the nodes, before anything is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from comfy_server import PACK, PACK_NAME, PYTHON_VARIABLE

from esd_core.config.rules import choices, described, kind_of
from esd_core.config.settings import fields

NODES = (
    *("ESDTrain", "ESDTrainOptions", "ESDLoadErased", "ESDSaveErased", "ESDCompare"),
    "ESDLoadPocket",
)
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def declared(server):
    return {name: server.get(f"/object_info/{name}")[name] for name in NODES}


def inputs(node):
    return [
        (name, spec[0], spec[1] if len(spec) > 1 else {})
        for kind in ("required", "optional")
        for name, spec in node["input"].get(kind, {}).items()
    ]


def test_the_nodes_are_tried_with_nothing_but_what_comfyui_requires():
    """The command line's packages would hide an import that a stranger's ComfyUI cannot follow."""
    code = "from importlib.util import find_spec\n"
    code += "print(*filter(find_spec, ('torch', 'diffusers', 'accelerate', 'peft')))"
    python = os.environ.get(PYTHON_VARIABLE, sys.executable)
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["torch"]


@pytest.mark.parametrize("name", NODES)
def test_a_node_and_all_that_goes_in_or_out_is_described(declared, name):
    node = declared[name]
    assert node["category"] == "ESD"
    assert node["description"] and node["display_name"]
    assert all(options.get("tooltip") for _, _, options in inputs(node))
    assert all(node["output_tooltips"])


@pytest.mark.parametrize("name", NODES)
def test_a_number_has_bounds(declared, name):
    for key, kind, options in inputs(declared[name]):
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], key


def test_training_has_no_more_than_ten_widgets(declared):
    kinds = [kind for _, kind, _ in inputs(declared["ESDTrain"])]
    assert sum(kind in WIDGETS or isinstance(kind, list) for kind in kinds) <= 10


def test_every_setting_has_a_widget_with_its_own_words_and_default(declared):
    widgets = {
        name: options
        for node in ("ESDTrain", "ESDTrainOptions")
        for name, _, options in inputs(declared[node])
    }
    for name, field in fields().items():
        table, _, key = name.rpartition(".")
        options = widgets[f"trajectory_{key}" if table == "trajectory" else key]
        assert options["tooltip"].startswith(described(field))
        if name in BY_MODEL:
            assert options["default"] == "auto" and "auto:" in options["tooltip"]
            assert not choices(field) or set(options["options"]) == {"auto", *choices(field)}
        elif kind_of(field) is tuple:
            assert options["default"] == "\n".join(field.default)
        elif name not in WATCHED and options["default"] != "auto":
            assert options["default"] == field.default
    assert widgets["contexts"]["default"] == "auto"


BY_MODEL = {
    *("width", "height", "negative_guidance", "trajectory.steps", "trajectory.guidance"),
    *("training.steps", "training.learning_rate", "training.batch_size", "training.save_dtype"),
}
"""Those that a person would look for; presets may name more."""
WATCHED = {"training.preview_every"}
"""On in a node, which a person watches."""


def test_a_run_shows_previews_without_options(declared):
    widgets = {name: options for name, _, options in inputs(declared["ESDTrainOptions"])}
    assert widgets["preview_every"]["default"] > 0


@pytest.mark.parametrize("name", NODES)
def test_a_box_says_what_it_is_for_while_it_is_empty(declared, name):
    """The older renderer gives it no other name."""
    boxes = [(key, o) for key, _, o in inputs(declared[name]) if o.get("multiline")]
    for key, options in boxes:
        word = {"prompts": "DRAW", "concepts": "ERASE"}.get(key, key.upper())
        assert word in options["placeholder"]


@pytest.mark.parametrize("word", ["unlearn", "forget", "remove", "nudity", "NSFW", "LECO"])
def test_search_finds_a_node(declared, word):
    """By aliases on newer hosts, by descriptions on all."""
    described_by = [name for name, node in declared.items() if word in node["description"]]
    assert described_by
    aliases = [node["search_aliases"] for node in declared.values() if "search_aliases" in node]
    assert all(any(word in alias for alias in found) for found in aliases if found)


def test_rare_options_are_hidden_where_the_host_can(declared):
    marks = {n: o.get("advanced", False) for n, _, o in inputs(declared["ESDTrainOptions"])}
    if any(marks.values()):
        assert marks["warmup"] and marks["alpha"]
        assert not (marks["until"] or marks["rank"] or marks["contexts"])


def test_a_seed_does_not_change_by_itself(declared):
    seeds = {n: dict((k, o) for k, _, o in inputs(declared[n])) for n in ("ESDTrain", "ESDCompare")}
    assert all(node["seed"]["control_after_generate"] is False for node in seeds.values())


@pytest.mark.parametrize("name", NODES)
def test_a_help_page_tells_of_all_that_goes_in_or_out(server, declared, name):
    page = server.text(f"/extensions/{PACK_NAME}/docs/{name}.md")
    assert len(page) > 400
    assert all(re.search(rf"\b{key}\b", page) for key, _, _ in inputs(declared[name])), page
    assert all(re.search(rf"\b{key}\b", page) for key in declared[name]["output_name"])
    pictures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert pictures and all((PACK / "nodes" / "web" / "docs" / name).is_file() for name in pictures)
