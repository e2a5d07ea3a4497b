"""The tools that make pocket: `python -m esd_core.pocket.build`. They are not shipped."""
