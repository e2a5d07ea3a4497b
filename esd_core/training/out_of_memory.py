"""Running out of memory, on whatever device, as a sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ESDError, first_line

# What CUDA's libraries say where a workspace could not be had, or no algorithm fits what is left.
_LIBRARIES = r"ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED|unable to find (an engine|a valid cudnn)"
_WORDS = re.compile(
    rf"out of memory|can't allocate memory|not enough memory|{_LIBRARIES}", re.IGNORECASE
)
TRAINING = (
    "take gradient checkpointing, the optimizer adafactor, the method esd-x-strict, a rank, or a "
    "smaller size"
)


def is_oom(error: BaseException) -> bool:
    """Whether it is an out-of-memory error, on any device."""
    is_said = isinstance(error, RuntimeError) and bool(_WORDS.search(str(error)))
    return is_said or isinstance(error, MemoryError)


@contextmanager
def oom_as_error(way_out: str = TRAINING) -> Iterator[None]:
    """ESDError when memory, of an accelerator or of the CPU, runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_oom(error):
            raise
        raise ESDError(f"out of memory ({first_line(error)}): {way_out}") from error
