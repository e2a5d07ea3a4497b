"""The transformers that are tried in miniature, by the names that miniatures.py has for them."""

from comfy_server import find_comfyui

_BY_VERSION = {
    "": ("sd3", "auraflow", "wan", "hidream"),
    "comfy/ldm/qwen_image/model.py": ("qwen-image",),
    "comfy/ldm/krea2/model.py": (
        *("flux", "flux-schnell", "chroma", "lumina2"),  # older ones: miniatures of other settings
        *("flux2", "z-image", "krea2", "anima"),
    ),
}
"""Which came with which file of ComfyUI's, or are made with what came with it."""


def _families() -> tuple[str, ...]:
    place = find_comfyui()
    there = [names for file, names in _BY_VERSION.items() if place and (place / file).exists()]
    return tuple(name for names in there for name in names)


FAMILIES = _families()


def with_vaes() -> tuple[str, ...]:
    """Those that are drawn with a VAE in miniature: a kind of latents each."""
    is_new = "flux2" in FAMILIES  # older hosts know the video models' VAEs in full size alone
    return ("sd3", "flux", "flux2", "wan", "wan22") if is_new else ("sd3",)
