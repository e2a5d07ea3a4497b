"""Entry for ComfyUI, which loads this folder as a custom node. Elsewhere there is nothing here."""

from importlib.util import find_spec

WEB_DIRECTORY = "./nodes/web"

if find_spec("comfy_api"):
    from .nodes import comfy_entrypoint as comfy_entrypoint
