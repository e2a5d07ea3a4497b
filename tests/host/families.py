"""The transformers that are tried in miniature, by the names that miniatures.py has for them."""

from comfy_server import find_comfyui

_BY_VERSION = {
    "": ("sd3", "flux", "flux-schnell", "auraflow", "chroma", "lumina2", "wan"),
    "comfy/ldm/qwen_image/model.py": ("qwen-image",),
    "comfy/ldm/krea2/model.py": ("flux2", "z-image", "krea2"),
}
"""Which came with which file of ComfyUI's."""


def _families() -> tuple[str, ...]:
    place = find_comfyui()
    there = [names for file, names in _BY_VERSION.items() if place and (place / file).exists()]
    return tuple(name for names in there for name in names)


FAMILIES = _families()
