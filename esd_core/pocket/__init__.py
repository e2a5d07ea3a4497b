"""The embedded model: a real SDXL in miniature, and the drawn world that it knows.

Torch-free here, so that the command line's help can name these defaults.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""A diffusers pipeline folder; the oracle lies beside it."""
GUIDANCE = 3.0
"""At which pocket draws best."""
FIRST_SEED = 1_000_000
"""Of the pictures that are judged: far from the small numbers that a training starts from."""
