"""What the person who runs this can set right.

Every error that has its cause in an input, a file or the machine is an ESDError whose text is
one sentence: it names the thing and the way out. Hosts show that sentence as it stands; anything
else that is raised is a bug of ours and keeps its traceback.
"""


class ESDError(Exception):
    """A sentence for the person who gave the input."""


class ConfigError(ESDError):
    """A setting is out of bounds, unknown, or does not fit the others."""


class FileError(ESDError):
    """A file is missing, foreign, damaged, or would be overwritten."""
