"""The embedded model: a real SDXL in miniature, and the drawn world that it knows."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""A diffusers pipeline folder; the oracle lies beside it."""
