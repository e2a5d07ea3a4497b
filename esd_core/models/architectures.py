"""What is known of each kind of model: one record each, and nowhere else.

Which layers a method trains is as in the official code (github.com/rohitgandikota/erasing,
`esd_sd.py` and `esd_sdxl.py`), carried over to canonical names: weights and biases of linear and
convolution layers, never norms. On SDXL the official code leaves the input and output convolutions
and all embedding layers (time, label, and the time projection in every residual block) alone; on
SD 1.x and 2.x it does not.

Of transformers, esd-x trains what text enters attention through. Where a block has weights of its
own for text (FLUX, SD3, Qwen-Image), those of its attention; where pictures and text share all
weights (Z-Image, Lumina 2, Krea 2), the layers that text passes before it meets the picture; where
there is cross-attention (Wan, Anima), that. The official code (at 2ff19a1) trains more for
FLUX: the picture's attention too. esd-u is the rest of the layers within the blocks. The
layer for pooled text (SD3's y_embedder) stays as it is: with it, styles came apart on pocket-dit
(BENCHMARKS.md).

HiDream has blocks of the first kind and of the second, and text comes anew to each through a layer
of its own: esd-x trains those layers too, which the public closed form for it edits alone
(rohitgandikota/unified-concept-editing, `uce_hidream_edit.py` at ea9644f). Its routers stay as they
are, as where LoRAs are trained on it (ostris/ai-toolkit): a choice of experts has no gradient.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Architecture:
    """A kind of model.

    Attributes:
        name: in the metadata of files and in reports. title: for people.
        context_width: width of the text states that a UNet attends to. latent_channels: of its
            latents.
        takes_sizes: whether pooled text and picture sizes go with every prompt.
        heads: attention heads of every level; None where every head is 64 wide.
        label_config: what diffusers' config calls the embedding that the shapes show as a label's.
        layers: by method, whether a parameter of that canonical name is trained.
        preset: the settings that serve its methods, by the name of a file in config/presets.
        presets: by method, those that serve it instead.
        unguided_preset: instead of them, for models that lack the guidance which others of the kind
            take as an input.
        cfg: what its pictures are drawn with, for those that take no guidance as an input: of
            transformers as in the templates that come with ComfyUI 0.33.0 (for AuraFlow, which has
            none there, as its preset samples).
        modelspec: the model's name in the metadata of files. ss_version: kohya's name for it.
        is_v2: as kohya's scripts sort models. has_ldm_lora_names: else diffusers' names are used.
        is_marked_v: whether ComfyUI tells a v-model by an empty tensor in its file.
        hosts: ComfyUI's names for it, of the config in supported_models and of the class in
            model_base; none for UNets, which are told by their sizes.
        text_numbers: in the text states of a prompt, as ComfyUI pads it; of models whose it does
            not pad, of a sentence.
        text_input: a transformer's layer that takes text, with as many columns as that is wide; ""
            where more than one does.
    """

    name: str
    title: str
    context_width: int = 0
    latent_channels: int = 4
    takes_sizes: bool = False
    heads: int | None = None
    label_config: Mapping[str, Any] = field(
        default_factory=lambda: {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    )
    layers: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)
    preset: str = ""
    presets: Mapping[str, str] = field(default_factory=dict)
    unguided_preset: str = ""
    cfg: float = 7.0
    modelspec: str = ""
    ss_version: str = ""
    is_v2: bool = False
    has_ldm_lora_names: bool = False
    is_marked_v: bool = False
    hosts: tuple[tuple[str, str], ...] = ()
    text_numbers: int = 77 * 2048
    text_input: str = ""

    @property
    def is_unet(self) -> bool:
        return not self.hosts

    def preset_for(self, method: object, is_guided: bool = True) -> str:
        """The preset for that method; one too for a word that is not a method's.

        is_guided: whether guidance is an input of the network.
        """
        if self.unguided_preset and not is_guided:
            return self.unguided_preset
        return self.presets.get(str(method), self.preset)


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
    preset="sdxl",
    presets=dict.fromkeys(("esd-u", "esd-all", "selfattn"), "sdxl-esd-u"),
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
    preset="sd",
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
    preset="sd",
    modelspec="stable-diffusion-v1",
    ss_version="sd_v1",
)


def _transformer_layers(blocks: str, text: str, strict: str) -> dict[str, Callable[[str], bool]]:
    """The layers of a transformer by method, from regular expressions for their paths.

    blocks: all that can be trained. text: what of it text enters attention through. strict: its
    keys and values.
    """

    def matching(pattern: str) -> Callable[[str], bool]:
        expression = re.compile(rf"(?:{pattern})\.(?:weight|bias)")
        return lambda name: bool(expression.fullmatch(name)) and not _NORM.search(name)

    is_block, is_text = matching(blocks), matching(text)
    return {
        "esd-x": is_text,
        "esd-x-strict": matching(strict),
        "esd-u": lambda name: is_block(name) and not is_text(name),
        "esd-all": lambda name: is_block(name) or is_text(name),
    }


def _transformer(
    name: str, blocks: str, text: str, strict: str, preset: str = "transformer", **known: Any
) -> Architecture:
    """One that files call by its own name, but for what `known` has.

    blocks, text, strict: as for `_transformer_layers`.
    """
    names = {"modelspec": name, "ss_version": name.replace("-", "_"), **known}
    layers = _transformer_layers(blocks, text, strict)
    return Architecture(name=name, layers=layers, preset=preset, has_ldm_lora_names=True, **names)


_NORM = re.compile(r"norm|\bln_|scale$")


SD3 = _transformer(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    blocks=r"joint_blocks\.\d+\..+",
    text=r"joint_blocks\.\d+\.context_block\.attn\.(qkv|proj)",
    strict=r"joint_blocks\.\d+\.context_block\.attn\.qkv",
    preset="sd3",
    cfg=4.0,
    modelspec="stable-diffusion-v3.5-medium",
    hosts=(("SD3", "SD3"),),
    text_numbers=154 * 4096,
    text_input="context_embedder",
)
_FLUX_LAYERS = {
    "blocks": r"(double|single)_blocks\.\d+\..+",
    "text": r"double_blocks\.\d+\.txt_attn\.(qkv|proj)",
    "strict": r"double_blocks\.\d+\.txt_attn\.qkv",
}
FLUX = _transformer(
    name="flux",
    title="FLUX.1",
    **_FLUX_LAYERS,
    preset="flux",
    cfg=1.0,
    unguided_preset="flux-schnell",
    modelspec="flux-1-dev",
    ss_version="flux1",
    hosts=(("Flux", "Flux"), ("FluxSchnell", "Flux")),
    text_numbers=256 * 4096,
    text_input="txt_in",
)
FLUX2 = _transformer(
    name="flux2",
    title="FLUX.2",
    **_FLUX_LAYERS,
    preset="flux2",
    cfg=5.0,
    modelspec="flux-2-dev",
    hosts=(("Flux2", "Flux2"),),
    text_numbers=512 * 15360,
    text_input="txt_in",
)
CHROMA = _transformer(
    name="chroma",
    title="Chroma",
    **_FLUX_LAYERS,
    cfg=3.5,
    hosts=(("Chroma", "Chroma"),),
    text_input="txt_in",
)
QWEN_IMAGE = _transformer(
    name="qwen-image",
    title="Qwen-Image",
    blocks=r"transformer_blocks\.\d+\..+",
    text=r"transformer_blocks\.\d+\.attn\.(add_[qkv]_proj|to_add_out)",
    strict=r"transformer_blocks\.\d+\.attn\.add_[kv]_proj",
    cfg=4.0,
    hosts=(("QwenImage", "QwenImage"),),
    text_input="txt_in",
)
_LUMINA_LAYERS = {
    "blocks": r"(layers|noise_refiner|context_refiner)\.\d+\..+|cap_embedder\.1",
    "text": r"context_refiner\.\d+\..+|cap_embedder\.1",
    "strict": r"context_refiner\.\d+\.attention\.qkv",
}
Z_IMAGE = _transformer(
    name="z-image",
    title="Z-Image",
    **_LUMINA_LAYERS,
    preset="transformer-turbo",
    cfg=1.0,
    ss_version="zimage",
    hosts=(("ZImage", "Lumina2"),),
    text_input="cap_embedder.1",
)
LUMINA2 = _transformer(
    name="lumina2",
    title="Lumina 2",
    **_LUMINA_LAYERS,
    cfg=4.0,
    modelspec="lumina-2",
    hosts=(("Lumina2", "Lumina2"),),
    text_input="cap_embedder.1",
)
AURA_FLOW = _transformer(
    name="auraflow",
    title="AuraFlow",
    blocks=r"(double|single)_layers\.\d+\..+",
    text=r"double_layers\.\d+\.attn\.w1[qkvo]",
    strict=r"double_layers\.\d+\.attn\.w1[kv]",
    cfg=4.0,
    hosts=(("AuraFlow", "AuraFlow"),),
    text_input="cond_seq_linear",
)
WAN = _transformer(
    name="wan",
    title="Wan 2.x",
    blocks=r"blocks\.\d+\..+",
    text=r"blocks\.\d+\.cross_attn\.[qkvo]",
    strict=r"blocks\.\d+\.cross_attn\.[kv]",
    cfg=5.0,
    modelspec="wan-2.1",
    hosts=(("WAN21_T2V", "WAN21"), ("WAN22_T2V", "WAN22")),
    text_numbers=512 * 4096,
    text_input="text_embedding.0",
)
KREA2 = _transformer(
    name="krea2",
    title="Krea 2",
    blocks=r"blocks\.\d+\..+|txtfusion\..+|txtmlp\.\d+",
    text=r"txtfusion\..+|txtmlp\.\d+",
    strict=r"txtfusion\.(layerwise|refiner)_blocks\.\d+\.attn\.w[kv]",
    preset="transformer-turbo",
    cfg=1.0,
    modelspec="krea-2",
    hosts=(("Krea2", "Krea2"),),
    text_numbers=64 * 12 * 2560,
)
ANIMA = _transformer(
    name="anima",
    title="Anima",
    blocks=r"blocks\.\d+\..+",
    text=r"blocks\.\d+\.cross_attn\.([qkv]|output)_proj",
    strict=r"blocks\.\d+\.cross_attn\.[kv]_proj",
    cfg=4.0,
    hosts=(("Anima", "Anima"),),
    text_numbers=512 * 1024,
    text_input="llm_adapter.blocks.0.cross_attn.k_proj",
)
_HIDREAM_TEXT = r"double_stream_blocks\.\d+\.block\.attn1"
HIDREAM = _transformer(
    name="hidream",
    title="HiDream-I1",
    blocks=r"(double|single)_stream_blocks\.\d+\..+(?<!\.gate)",
    text=rf"{_HIDREAM_TEXT}\.to_(q|k|v|out)_t|caption_projection\.\d+\.linear",
    strict=rf"{_HIDREAM_TEXT}\.to_[kv]_t",
    cfg=5.0,
    modelspec="hidream-i1",
    ss_version="hidream_i1",
    hosts=(("HiDream", "HiDream"),),
    text_numbers=(1 + 32) * 128 * 4096,
    text_input="caption_projection.0.linear",
)

_UNETS = (SDXL, REFINER, SD2, SD1)
_TRANSFORMERS = (
    *(SD3, FLUX, FLUX2, CHROMA, QWEN_IMAGE, Z_IMAGE, LUMINA2, AURA_FLOW),
    *(KREA2, ANIMA, WAN, HIDREAM),
)
ARCHITECTURES = {known.name: known for known in (*_UNETS, *_TRANSFORMERS)}
"""By name."""


def by_width(context_width: int) -> Architecture | None:
    """The UNet with text states of that width."""
    return next((a for a in _UNETS if a.context_width == context_width), None)


def by_host(configs: Sequence[str], model: str) -> Architecture | None:
    """The transformer that ComfyUI has under one of these configs' names, the nearest first, and
    that class of model."""
    hosted = {names: known for known in _TRANSFORMERS for names in known.hosts}
    return next((hosted[name, model] for name in configs if (name, model) in hosted), None)


def trained_titles() -> str:
    """Of all that can be trained, for people."""
    *others, last = dict.fromkeys(known.title for known in ARCHITECTURES.values() if known.layers)
    return f"{', '.join(others)} or {last}"


def like(context_width: int, takes_sizes: bool) -> Architecture:
    """The one with text states of that width, or the first of its family for a UNet that has
    other sizes than the published ones."""
    family = [a for a in _UNETS if a.takes_sizes == takes_sizes]
    return next((a for a in family if a.context_width == context_width), family[0])


def title(name: str) -> str:
    """A name for people, of what a file says that it was made for."""
    known = ARCHITECTURES.get(name)
    return known.title if known else name or "an unknown architecture"
