"""Generic English words for contexts: what prompts name, and the looks they name it in."""

from pathlib import Path

FOLDER = Path(__file__).parent


def _read(name: str) -> tuple[str, ...]:
    return tuple((FOLDER / f"{name}.txt").read_text(encoding="ascii").splitlines())


OBJECTS = _read("objects")
STYLES = _read("styles")
