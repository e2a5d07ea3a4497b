"""For scripts that run in ComfyUI's own interpreter and modules, without its server."""

import importlib.util
import sys


def enter(comfyui, pack):
    """Makes this process a ComfyUI on the CPU, with the pack under the name esd_pack."""
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    # First, as in main.py: ComfyUI puts comfy/ on the path later, which has a utils of its own.
    import utils.extra_config  # noqa: F401

    spec = importlib.util.spec_from_file_location("esd_pack", pack / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["esd_pack"] = module
    spec.loader.exec_module(module)
