"""The terminal: progress bars, warnings, Ctrl-C, and other libraries' chatter."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import warnings
from contextlib import suppress
from types import FrameType

from tqdm import tqdm

from ..method.shares import ALONE, Alone

_STDERR = 2
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # category Cc, but for \n
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}{postfix}, {remaining} left"


def note(text: str) -> None:
    """Something to know, which is neither a result nor an error."""
    tqdm.write(printable(text), file=sys.stderr)


def say(text: str) -> None:
    """A result, on stdout."""
    print(printable(text))


def printable(text: str) -> str:
    """The text with control characters but line ends escaped: files of others may hold them, and
    a terminal would obey."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def progress_bar(total: int, unit: str, is_shown: bool = True) -> tqdm:
    """A bar on stderr, drawn every 15 seconds only where that is not a terminal."""
    interval = 0.1 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=total,
        unit=unit,
        bar_format=_BAR,
        mininterval=interval,
        maxinterval=interval,
        smoothing=0,  # a round of sampling comes between steps: only the mean tells the time left
        dynamic_ncols=True,
        disable=not is_shown,
    )


class StopRequest:
    """Ctrl-C as a request to stop at the next good moment; the second one interrupts at once."""

    def __init__(self, ranks: Alone = ALONE) -> None:
        self._asked, self._ranks = False, ranks

    def should_stop(self) -> bool:
        return self._asked

    def should_finish(self) -> bool:
        return False

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        if self._ranks.count > 1:  # so a launcher ends ranks, also those that are saving just then
            signal.signal(signal.SIGTERM, self._on_end)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before or signal.SIG_DFL)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if not self._ranks.is_first:
            return
        # Not through sys.stderr, which may be in the middle of a write.
        with suppress(OSError):
            os.write(_STDERR, b"\nstopping after this step; Ctrl-C again stops at once, unsaved\n")

    def _on_end(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


def hush() -> None:
    """Silence diffusers, transformers and bitsandbytes, but for errors."""
    # On CPUs with bf16 it misses a kernel for weights in 4 bits, which are not read here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers)\.")
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()  # before diffusers, whose import makes it talk
    of_transformers.disable_progress_bar()
    from diffusers.utils import logging as of_diffusers

    of_diffusers.set_verbosity_error()
    of_diffusers.disable_progress_bar()
