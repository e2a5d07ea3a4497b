"""The map between diffusers' UNet parameter names and canonical ones.

Canonical names are those of the LDM code and of ComfyUI, without the `diffusion_model.` prefix:
`input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight`. The map follows from the structure in
a UNet2DConditionModel's config, so that no module has to be built for it. Tensors have the same
shape under both names (proj_in and proj_out are 1x1 convolutions in SD 1.x and linear layers
from SD 2 on, on either side).

Layouts: diffusers `models/unets/unet_2d_condition.py`; CompVis latent-diffusion,
`ldm/modules/diffusionmodules/openaimodel.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..errors import ESDError
from .levels import Level, levels, middle, refuse_foreign_parts

PREFIX = "diffusion_model."
"""Before canonical names in ComfyUI, and in its files of changes."""

# Module paths that do not depend on the structure.
STEM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
TRANSFORMER = ("norm", "proj_in", "proj_out")
TRANSFORMER_BLOCK = (
    *("norm1", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *("norm2", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    *("norm3", "ff.net.0.proj", "ff.net.2"),
)
WITHOUT_BIAS = ("to_q", "to_k", "to_v")

# The words of canonical names in the order in which a forward pass meets them.
FORWARD_ORDER = (
    *("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out"),
    *("in_layers", "emb_layers", "out_layers", "skip_connection", "op", "conv"),
    *("norm", "proj_in", "transformer_blocks", "proj_out"),
    *("norm1", "attn1", "norm2", "attn2", "norm3", "ff"),
    *("to_q", "to_k", "to_v", "to_out", "net", "weight", "bias"),
)
_RANK = {word: rank for rank, word in enumerate(FORWARD_ORDER)}

DIFFUSERS_PARTS = (
    *("conv_in.", "conv_norm_out.", "conv_out.", "time_embedding.", "add_embedding."),
    *("class_embedding.", "down_blocks.", "mid_block.", "up_blocks."),
)
"""What diffusers' names of a UNet's parameters begin with."""


def diffusers_to_canonical(config: Mapping[str, Any]) -> dict[str, str]:
    """Every parameter name of the UNet2DConditionModel with this config -> its canonical name.

    One to one, in model order. Keys that the config lacks have diffusers' defaults.
    Raises ESDError when the structure has parts without a canonical name.
    """
    refuse_foreign_parts(config)
    modules = STEM | _label_modules(config)
    modules.update(_down_modules(levels(config, "down")))
    modules.update(_mid_modules(middle(config)))
    modules.update(_up_modules(levels(config, "up")))
    in_order = sorted(modules.items(), key=lambda pair: model_order(pair[1]))
    return {
        f"{path}.{kind}": f"{canonical}.{kind}"
        for path, canonical in in_order
        for kind in _parameter_kinds(canonical)
    }


def canonical_to_diffusers(config: Mapping[str, Any]) -> dict[str, str]:
    """The inverse of `diffusers_to_canonical`, in model order too."""
    return {canonical: name for name, canonical in diffusers_to_canonical(config).items()}


def model_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts canonical names into the order of the forward pass.

    Numbers compare as numbers; words LDM does not have come last, by the alphabet.
    """
    return tuple(map(_word_order, name.split(".")))


@lru_cache(maxsize=1024)
def _word_order(word: str) -> tuple[int, int, str]:
    return (0, int(word), "") if word.isdecimal() else (1, _RANK.get(word, len(_RANK)), word)


def _parameter_kinds(canonical: str) -> tuple[str, ...]:
    last = canonical.rpartition(".")[2]
    return ("weight",) if last in (*WITHOUT_BIAS, "label_emb") else ("weight", "bias")


def _label_modules(config: Mapping[str, Any]) -> dict[str, str]:
    has_addition = config.get("addition_embed_type") is not None
    has_class = config.get("class_embed_type") is not None
    has_table = not has_class and config.get("num_class_embeds") is not None
    if has_addition and (has_class or has_table):
        raise ESDError(
            "this UNet has class and additional embeddings at once, which share one name in LDM "
            "and ComfyUI: only plain SD 1.x, SD 2.x and SDXL UNets can be used"
        )
    if has_table:
        return {"class_embedding": "label_emb"}
    if not (has_addition or has_class):
        return {}
    path = "add_embedding" if has_addition else "class_embedding"
    return {f"{path}.linear_1": "label_emb.0.0", f"{path}.linear_2": "label_emb.0.2"}


def _resnet(path: str, canonical: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for theirs, ours in RESNET.items():
        yield f"{path}.{theirs}", f"{canonical}.{ours}"
    if shortcut:
        yield f"{path}.conv_shortcut", f"{canonical}.skip_connection"


def _transformer(path: str, canonical: str, depth: int) -> Iterator[tuple[str, str]]:
    layers = [
        *TRANSFORMER,
        *(f"transformer_blocks.{i}.{layer}" for i in range(depth) for layer in TRANSFORMER_BLOCK),
    ]
    for layer in layers:
        yield f"{path}.{layer}", f"{canonical}.{layer}"


def _down_modules(levels: Sequence[Level]) -> Iterator[tuple[str, str]]:
    block, width = 1, levels[0].channels  # input block 0 is conv_in
    for i, level in enumerate(levels):
        for j, depth in enumerate(level.depths):
            theirs, ours = f"down_blocks.{i}", f"input_blocks.{block}"
            yield from _resnet(f"{theirs}.resnets.{j}", f"{ours}.0", width != level.channels)
            if depth is not None:
                yield from _transformer(f"{theirs}.attentions.{j}", f"{ours}.1", depth)
            block, width = block + 1, level.channels
        if i < len(levels) - 1:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
            block += 1


def _mid_modules(level: Level | None) -> Iterator[tuple[str, str]]:
    if level is None:
        return
    (depth,) = level.depths
    yield from _resnet("mid_block.resnets.0", "middle_block.0", shortcut=False)
    if depth is not None:
        yield from _transformer("mid_block.attentions.0", "middle_block.1", depth)
        yield from _resnet("mid_block.resnets.1", "middle_block.2", shortcut=False)


def _up_modules(levels: Sequence[Level]) -> Iterator[tuple[str, str]]:
    block = 0
    for i, level in enumerate(levels):
        for j, depth in enumerate(level.depths):
            theirs, ours = f"up_blocks.{i}", f"output_blocks.{block}"
            # A skip is concatenated to the input, so the width always changes.
            yield from _resnet(f"{theirs}.resnets.{j}", f"{ours}.0", shortcut=True)
            if depth is not None:
                yield from _transformer(f"{theirs}.attentions.{j}", f"{ours}.1", depth)
            if j == len(level.depths) - 1 and i < len(levels) - 1:
                index = 1 if depth is None else 2
                yield f"{theirs}.upsamplers.0.conv", f"{ours}.{index}.conv"
            block += 1
