"""The embedded models: a real SDXL in miniature, the drawn world that it knows, and pocket-dit,
which draws it with a transformer of SD3's kind behind the same text towers and autoencoder.

Torch-free here, so that the command line's help can name these defaults.
"""

GUIDANCE = 3.0
"""At which they draw best."""
FIRST_SEED = 1_000_000
"""Of the pictures that are judged: far from the small numbers that a training starts from."""
