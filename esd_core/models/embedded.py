"""The embedded models, by name. Torch-free, so that the command line's help can name them."""

from pathlib import Path

POCKET, POCKET_DIT = "pocket", "pocket-dit"
"""What they are asked for by, and their presets."""
EMBEDDED = (POCKET, POCKET_DIT)
WEIGHTS = Path(__file__).parents[1] / "pocket" / "weights"
"""pocket as a diffusers pipeline folder. Beside it the oracle, and pocket-dit's transformer, whose
text encoders and autoencoder are pocket's."""
FLOW_SCALE = 4.0
"""By how much pocket-dit's latents are louder than pocket's: their deviation is 1."""
