"""What files can be: one table, which the commands, the nodes and the reader share."""

from dataclasses import dataclass

ERASURE, LORA, DIFFERENCE, FOREIGN = "erasure", "lora", "difference", "foreign"
OFFICIAL, UNET, CHECKPOINT, DIFFUSERS = "official", "unet", "checkpoint", "diffusers"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        title: what such a file is.
        label: as the node lists it; "" for a kind that is only read.
        purpose: what is written, and what it opens in.
        folder: below the host's output folder.
        has_weights: it holds weights, so reading a change from it, or writing it, takes a base.
        is_whole: it is written with all weights of a model, and needs no erasure for that.
        is_folder: it is a folder.
    """

    title: str
    label: str = ""
    purpose: str = ""
    folder: str = "loras"
    has_weights: bool = False
    is_whole: bool = False
    is_folder: bool = False


_WHOLE: dict[str, bool] = {"has_weights": True, "is_whole": True}

FORMATS = {
    ERASURE: Format(
        "an erasure of this pack",
        "erasure",
        "the change alone, exactly, for ComfyUI's LoRA loaders",
    ),
    LORA: Format(
        "a LoRA",
        "LoRA",
        "the change at a low rank, small, for other programs' loaders too",
    ),
    UNET: Format(
        "a whole UNet", "UNet", "all weights, for UNETLoader", folder="diffusion_models", **_WHOLE
    ),
    DIFFUSERS: Format(
        "a whole UNet under diffusers' names",
        "diffusers",
        "a folder for UNet2DConditionModel.from_pretrained",
        folder="diffusers",
        is_folder=True,
        **_WHOLE,
    ),
    OFFICIAL: Format(
        "erased weights under diffusers' names, as the official code writes",
        "official",
        "the erased weights alone, for the official code",
        has_weights=True,
    ),
    DIFFERENCE: Format("full differences of weights"),
    FOREIGN: Format("an adapter of another kind than LoRA"),
    CHECKPOINT: Format("a whole checkpoint", has_weights=True),
}
WRITTEN = {form.label: name for name, form in FORMATS.items() if form.label}
"""The formats that can be written, by the node's label, in the order of its list."""
