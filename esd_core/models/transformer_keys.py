"""The map between diffusers' names for the parameters of transformers and canonical ones.

Canonical names are those of the published files and of ComfyUI. Where one linear layer makes
queries, keys and values there (and FLUX's single blocks the first layer of the MLP as well),
diffusers has a layer for each; and of the last norms, it has scale before shift.

Layouts: diffusers `models/transformers/transformer_sd3.py`, `transformer_flux.py`; Stability-AI
sd3.5 `mmditx.py`; black-forest-labs flux `model.py`, `modules/layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ESDError
from .parts import Part

Module = tuple[str, tuple[str, ...], str]
"""Canonical path, diffusers' paths, and which of _KINDS its parameters are."""

_LINEAR, _NORM, _SCALE, _SWAPPED = "linear", "norm", "scale", "swapped"
_LEAVES = {
    _LINEAR: (("weight", "weight"), ("bias", "bias")),
    _SWAPPED: (("weight", "weight"), ("bias", "bias")),
    _NORM: (("weight", "weight"),),
    # FLUX's published files and older hosts say so; newer hosts, which say weight, read both.
    _SCALE: (("scale", "weight"),),
}
POS_EMBED = "pos_embed"
"""SD3's table of positions, which is no parameter, and is in the files of whole models."""


def transformer_parts(config: Mapping[str, Any]) -> dict[str, Part]:
    """Every canonical parameter of the transformer with this config, in model order.

    config: diffusers' own, with `_class_name`.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {
        f"{path}.{ours}": Part(
            {f"{own}.{theirs}": _rows(own, width) for own in paths}, kind == _SWAPPED
        )
        for path, paths, kind in _MODULES[config["_class_name"]](config)
        for ours, theirs in _LEAVES[kind]
    }


def _rows(path: str, width: int) -> int:
    """Of a layer that may be a part of another."""
    return _MLP * width if path.endswith(".proj_mlp") else width


_MLP = 4
"""Times a model's width, within its MLPs."""


def is_transformer(config: Mapping[str, Any]) -> bool:
    """Whether its names are known here."""
    return config.get("_class_name") in _MODULES


def _blocks(config: Mapping[str, Any], key: str) -> range:
    """Their numbers; a damaged config may name any count."""
    if not 0 < config[key] <= _MOST:
        raise ESDError(f"this transformer's config has {key}={config[key]!r}")
    return range(config[key])


_MOST = 1000


def _linear(path: str, *paths: str) -> Module:
    return path, paths, _LINEAR


def _embedder(path: str, names: tuple[str, str], theirs: str) -> Iterator[Module]:
    """Two layers, of a time, a guidance or a text."""
    for ours, own in zip(names, ("linear_1", "linear_2"), strict=True):
        yield _linear(f"{path}.{ours}", f"time_text_embed.{theirs}_embedder.{own}")


def _mlp(path: str, names: tuple[str, str], theirs: str) -> Iterator[Module]:
    yield _linear(f"{path}.{names[0]}", f"{theirs}.net.0.proj")
    yield _linear(f"{path}.{names[1]}", f"{theirs}.net.2")


def _qkv(path: str, attention: str, words: Sequence[str]) -> Module:
    return _linear(path, *(f"{attention}.{word}" for word in words))


_PICTURE, _TEXT = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _sd3(config: Mapping[str, Any]) -> Iterator[Module]:
    yield _linear("x_embedder.proj", "pos_embed.proj")
    yield from _embedder("t_embedder", ("mlp.0", "mlp.2"), "timestep")
    yield from _embedder("y_embedder", ("mlp.0", "mlp.2"), "text")
    yield _linear("context_embedder", "context_embedder")
    for i in _blocks(config, "num_layers"):
        yield from _sd3_block(config, i)
    yield _linear("final_layer.linear", "proj_out")
    yield "final_layer.adaLN_modulation.1", ("norm_out.linear",), _SWAPPED


def _sd3_block(config: Mapping[str, Any], i: int) -> Iterator[Module]:
    theirs, last = f"transformer_blocks.{i}", i == config["num_layers"] - 1
    text, picture = f"joint_blocks.{i}.context_block", f"joint_blocks.{i}.x_block"
    normed = bool(config.get("qk_norm"))
    yield _qkv(f"{text}.attn.qkv", f"{theirs}.attn", _TEXT)
    if normed:
        yield f"{text}.attn.ln_q", (f"{theirs}.attn.norm_added_q",), _NORM
        yield f"{text}.attn.ln_k", (f"{theirs}.attn.norm_added_k",), _NORM
    if not last:
        yield _linear(f"{text}.attn.proj", f"{theirs}.attn.to_add_out")
        yield from _mlp(f"{text}.mlp", ("fc1", "fc2"), f"{theirs}.ff_context")
    # Of the last block only shift and scale are left, in diffusers' class of last norms.
    modulation = f"{text}.adaLN_modulation.1", (f"{theirs}.norm1_context.linear",)
    yield *modulation, _SWAPPED if last else _LINEAR
    yield from _sd3_attention(f"{picture}.attn", f"{theirs}.attn", normed)
    if i in config.get("dual_attention_layers", ()):
        yield from _sd3_attention(f"{picture}.attn2", f"{theirs}.attn2", normed)
    yield from _mlp(f"{picture}.mlp", ("fc1", "fc2"), f"{theirs}.ff")
    yield _linear(f"{picture}.adaLN_modulation.1", f"{theirs}.norm1.linear")


def _sd3_attention(path: str, theirs: str, normed: bool) -> Iterator[Module]:
    yield _qkv(f"{path}.qkv", theirs, _PICTURE)
    if normed:
        yield f"{path}.ln_q", (f"{theirs}.norm_q",), _NORM
        yield f"{path}.ln_k", (f"{theirs}.norm_k",), _NORM
    yield _linear(f"{path}.proj", f"{theirs}.to_out.0")


def _flux(config: Mapping[str, Any]) -> Iterator[Module]:
    layers = ("in_layer", "out_layer")
    yield _linear("img_in", "x_embedder")
    yield from _embedder("time_in", layers, "timestep")
    yield from _embedder("vector_in", layers, "text")
    if config.get("guidance_embeds"):
        yield from _embedder("guidance_in", layers, "guidance")
    yield _linear("txt_in", "context_embedder")
    for i in _blocks(config, "num_layers"):
        ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
        yield from _flux_stream(f"{ours}.img", theirs, ("norm1", "norm_", "to_out.0", "ff"))
        text = ("norm1_context", "norm_added_", "to_add_out", "ff_context")
        yield from _flux_stream(f"{ours}.txt", theirs, text)
    for i in _blocks(config, "num_single_layers"):
        yield from _flux_single(f"single_blocks.{i}", f"single_transformer_blocks.{i}")
    yield _linear("final_layer.linear", "proj_out")
    yield "final_layer.adaLN_modulation.1", ("norm_out.linear",), _SWAPPED


def _flux_stream(path: str, theirs: str, names: tuple[str, str, str, str]) -> Iterator[Module]:
    """names: diffusers' for the modulation, the norms, the output and the MLP."""
    modulation, norm, out, mlp = names
    yield _linear(f"{path}_mod.lin", f"{theirs}.{modulation}.linear")
    words = _PICTURE if out == "to_out.0" else _TEXT
    yield _qkv(f"{path}_attn.qkv", f"{theirs}.attn", words)
    yield from _flux_norms(f"{path}_attn.norm", f"{theirs}.attn.{norm}")
    yield _linear(f"{path}_attn.proj", f"{theirs}.attn.{out}")
    yield from _mlp(f"{path}_mlp", ("0", "2"), f"{theirs}.{mlp}")


def _flux_single(path: str, theirs: str) -> Iterator[Module]:
    queries = (f"{theirs}.attn.{word}" for word in _PICTURE)
    yield _linear(f"{path}.linear1", *queries, f"{theirs}.proj_mlp")
    yield _linear(f"{path}.linear2", f"{theirs}.proj_out")
    yield from _flux_norms(f"{path}.norm", f"{theirs}.attn.norm_")
    yield _linear(f"{path}.modulation.lin", f"{theirs}.norm.linear")


def _flux_norms(path: str, theirs: str) -> Iterator[Module]:
    yield f"{path}.query_norm", (f"{theirs}q",), _SCALE
    yield f"{path}.key_norm", (f"{theirs}k",), _SCALE


_MODULES = {"SD3Transformer2DModel": _sd3, "FluxTransformer2DModel": _flux}
