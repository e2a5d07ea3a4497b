"""Schemas and inputs with what only newer hosts know; older ones leave it out."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

CATEGORY = "ESD"
SEARCHED = [
    *("unlearn", "forget", "remove concept", "delete concept", "erase concept", "ablate"),
    *("nudity", "NSFW", "style removal", "LECO", "machine unlearning"),
]
"""What people look for who do not know the method's name."""


def schema(**given: Any) -> io.Schema:
    """io.Schema without the properties that this host has no field for.

    Outputs have their ids for names: of one without a name, the host shows the type.
    """
    for output in given["outputs"]:
        output.display_name = output.id
    known = {field.name for field in fields(io.Schema)}
    own = {"category": CATEGORY, "search_aliases": SEARCHED} | given
    return io.Schema(**{name: value for name, value in own.items() if name in known})


def advanced(is_advanced: bool) -> dict[str, Any]:
    """An input's arguments that hide it until a person asks for more, where the host can."""
    knows = "advanced" in inspect.signature(io.Int.Input.__init__).parameters
    return {"advanced": True} if knows and is_advanced else {}
