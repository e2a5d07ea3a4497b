"""Running out of memory, on whatever device, as a sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ESDError

_WORDS = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE
)
TRAINING = (
    "take gradient checkpointing, the optimizer adafactor, the method esd-x-strict, a rank, or a "
    "smaller size"
)


@contextmanager
def oom_as_error(way_out: str = TRAINING) -> Iterator[None]:
    """ESDError when memory, of an accelerator or of the CPU, runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _WORDS.search(str(error)):
            raise
        lines = str(error).strip().splitlines()
        raise ESDError(
            f"out of memory ({lines[0] if lines else 'no more is known'}): {way_out}"
        ) from error
