"""What the person who runs this can set right.

Every error that has its cause in an input, a file or the machine is an ESDError whose text is
one sentence: it names the thing and the way out. Hosts show that sentence as it stands; anything
else that is raised is a bug of ours and keeps its traceback.

ComfyUI puts module and class before it, and the modules of a custom node are named by their folder:
a short name keeps the sentence in sight.
"""

_SHORT = "esd"


class ESDError(Exception):
    """A sentence for the person who gave the input."""

    __module__ = _SHORT


class ConfigError(ESDError):
    """A setting is out of bounds, unknown, or does not fit the others."""

    __module__ = _SHORT


class FileError(ESDError):
    """A file is missing, foreign, damaged, or would be overwritten."""

    __module__ = _SHORT


def counted(count: int, noun: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first_line(error: BaseException) -> str:
    """Of what it says: the rest is for who debugs it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
