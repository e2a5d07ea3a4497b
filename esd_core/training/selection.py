"""Which weights a method trains.

The rules are those of the official code (github.com/rohitgandikota/erasing, `esd_sd.py` and
`esd_sdxl.py`), carried over to canonical names: weights and biases of linear and convolution
layers, norms never. On SDXL the official code leaves the input and output convolutions and all
embedding layers (time, label, and the time projection in every residual block) alone; on
SD 1.x and 2.x it does not.
"""

from collections.abc import Callable, Iterable

from ..errors import ConfigError, ESDError
from ..models.keys import model_order

ARCHITECTURES = ("sdxl", "sd1", "sd2")

_RULES: dict[str, Callable[[str], bool]] = {
    "esd-x": lambda name: ".attn2." in name,
    "esd-x-strict": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "esd-u": lambda name: ".attn2." not in name,
    "esd-all": lambda name: True,
    "selfattn": lambda name: ".attn1." in name,
}


def select(method: str, parameters: Iterable[str], architecture: str) -> tuple[str, ...]:
    """The canonical names among `parameters` that `method` trains, in model order.

    parameters: a model's canonical names, or a mapping by them (the values are not looked at).
    Raises ConfigError for an unknown method or architecture, ESDError if nothing is selected.
    """
    if method not in _RULES:
        raise ConfigError(f"Unknown method {method!r}: choose one of {', '.join(_RULES)}.")
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"Unknown architecture {architecture!r}: known are {', '.join(ARCHITECTURES)}."
        )
    rule = _RULES[method]
    trainable = _is_inner_layer if architecture == "sdxl" else _is_layer
    names = [name for name in parameters if rule(name) and trainable(name)]
    if not names:
        raise ESDError(f"The method {method} finds none of its layers in this model: try another.")
    return tuple(sorted(names, key=model_order))


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
