"""Entry for ComfyUI, which loads this folder as a custom node."""

from typing import Any

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint() -> Any:
    """The nodes, imported when they are asked for: tools read this file without a host."""
    from .nodes import ESDExtension

    return ESDExtension()
