"""Which weights a method trains."""

from collections.abc import Iterable

from ..errors import ConfigError, ESDError
from ..models.architectures import Architecture
from ..models.keys import model_order


def select(method: str, parameters: Iterable[str], architecture: Architecture) -> tuple[str, ...]:
    """The canonical names among `parameters` that `method` trains, in model order.

    parameters: a model's canonical names, or a mapping by them (the values are not looked at).
    Raises ConfigError for a method that this architecture does not have, ESDError if nothing is
    selected.
    """
    if method not in architecture.layers:
        known = ", ".join(architecture.layers) or "none"
        raise ConfigError(f"unknown method {method!r} for {architecture.title}: it knows {known}")
    names = filter(architecture.layers[method], parameters)
    selected = tuple(sorted(names, key=model_order))
    if not selected:
        raise ESDError(f"the method {method} finds none of its layers in this model: try another")
    return selected
