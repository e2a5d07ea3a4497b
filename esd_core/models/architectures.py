"""What is known of each kind of model: one record each, and nowhere else.

Which layers a method trains is as in the official code (github.com/rohitgandikota/erasing,
`esd_sd.py` and `esd_sdxl.py`), carried over to canonical names: weights and biases of linear and
convolution layers, never norms. On SDXL the official code leaves the input and output convolutions
and all embedding layers (time, label, and the time projection in every residual block) alone; on
SD 1.x and 2.x it does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.settings import METHODS


@dataclass(frozen=True, eq=False)
class Architecture:
    """A kind of model.

    Attributes:
        name: in the metadata of files and in reports. title: for people.
        context_width: width of the text states that the network attends to.
        latent_channels: of its latents. latent_factor: pixels along an edge of one latent.
        takes_sizes: whether pooled text and picture sizes go with every prompt.
        heads: attention heads of every level; None where every head is 64 wide.
        label_config: what diffusers' config calls the embedding that the shapes show as a label's.
        layers: by method, whether a parameter of that canonical name is trained.
        presets: the settings that serve a method, by the name of a file in config/presets.
        modelspec: the model's name in the metadata of files. ss_version: kohya's name for it.
        is_v2: as kohya's scripts sort models. has_ldm_lora_names: else diffusers' names are used.
        is_marked_v: whether ComfyUI tells a v-model by an empty tensor in its file.
    """

    name: str
    title: str
    context_width: int
    latent_channels: int = 4
    latent_factor: int = 8
    takes_sizes: bool = False
    heads: int | None = None
    label_config: Mapping[str, Any] = field(
        default_factory=lambda: {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    )
    layers: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)
    modelspec: str = ""
    ss_version: str = ""
    is_v2: bool = False
    has_ldm_lora_names: bool = False
    is_marked_v: bool = False

    def preset_for(self, method: object) -> str:
        """The preset for that method; one of them too for a word that is not a method's."""
        return self.presets.get(str(method), next(iter(self.presets.values())))


def _is_layer(name: str) -> bool:
    """A linear or convolution layer's parameter, as against a norm's or a label table's."""
    path = name.rpartition(".")[0]
    last = path.rpartition(".")[2]
    is_norm = (
        last.startswith("norm") or path.endswith(("in_layers.0", "out_layers.0")) or path == "out.0"
    )
    return bool(path) and not is_norm and path != "label_emb"


def _is_inner_layer(name: str) -> bool:
    """A layer within the blocks, and no embedding.

    input_blocks.0.0, diffusers' conv_in, is the one name with "block" that is not in a block.
    """
    inside = "block" in name and not name.startswith("input_blocks.0.0.")
    return inside and "emb" not in name and _is_layer(name)


def _unet_layers(is_trainable: Callable[[str], bool]) -> dict[str, Callable[[str], bool]]:
    """The layers of a UNet by method, among those that `is_trainable` allows."""
    return {
        "esd-x": lambda name: ".attn2." in name and is_trainable(name),
        "esd-x-strict": lambda name: (
            (".attn2.to_k." in name or ".attn2.to_v." in name) and is_trainable(name)
        ),
        "esd-u": lambda name: ".attn2." not in name and is_trainable(name),
        "esd-all": is_trainable,
        "selfattn": lambda name: ".attn1." in name and is_trainable(name),
    }


SDXL = Architecture(
    name="sdxl",
    title="SDXL",
    context_width=2048,
    takes_sizes=True,
    layers=_unet_layers(_is_inner_layer),
    presets={
        **dict.fromkeys(METHODS, "sdxl-esd-u"),
        **dict.fromkeys(("esd-x", "esd-x-strict"), "sdxl"),
    },
    modelspec="stable-diffusion-xl-v1-base",
    ss_version="sdxl_base_v1-0",
    has_ldm_lora_names=True,
    is_marked_v=True,
)
REFINER = Architecture(
    name="refiner", title="the SDXL refiner", context_width=1280, takes_sizes=True
)
SD2 = Architecture(
    name="sd2",
    title="SD 2.x",
    context_width=1024,
    label_config={"class_embed_type": "projection"},
    layers=_unet_layers(_is_layer),
    presets=dict.fromkeys(METHODS, "sd"),
    modelspec="stable-diffusion-v2-768-v",
    ss_version="sd_v2",
    is_v2=True,
)
SD1 = Architecture(
    name="sd1",
    title="SD 1.x",
    context_width=768,
    heads=8,
    layers=_unet_layers(_is_layer),
    presets=dict.fromkeys(METHODS, "sd"),
    modelspec="stable-diffusion-v1",
    ss_version="sd_v1",
)

ARCHITECTURES = {known.name: known for known in (SDXL, REFINER, SD2, SD1)}
"""By name."""


def by_width(context_width: int) -> Architecture | None:
    """The one with text states of that width."""
    return next((a for a in ARCHITECTURES.values() if a.context_width == context_width), None)


def like(context_width: int, takes_sizes: bool) -> Architecture:
    """The one with text states of that width, or the first of its family for a UNet that has
    other sizes than the published ones."""
    family = [a for a in ARCHITECTURES.values() if a.takes_sizes == takes_sizes]
    return next((a for a in family if a.context_width == context_width), family[0])


def title(name: str) -> str:
    """A name for people, of what a file says that it was made for."""
    known = ARCHITECTURES.get(name)
    return known.title if known else name or "an unknown architecture"
