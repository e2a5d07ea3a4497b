"""A picture in an erasure's file, which ComfyUI and others show for it."""

import base64
import io
import json
from dataclasses import replace

from PIL import Image, ImageOps

from .erasure import Erasure
from .metadata import Key

_EDGE, _QUALITY = 256, 85
"""Of the shorter edge, in pixels: less is a blot where a host shows it large."""


def covered(erasure: Erasure, picture: Image.Image | None) -> Erasure:
    """The same, with that picture for a cover; without one as it is.

    A few kilobytes, which follow from the picture alone.
    """
    if picture is None:
        return erasure
    scale = _EDGE / min(picture.size)
    small = ImageOps.scale(picture.convert("RGB"), scale, Image.Resampling.LANCZOS)
    cover = json.dumps([jpeg(small)])
    return replace(erasure, metadata={**erasure.metadata, Key.COVERS: cover})


def jpeg(picture: Image.Image) -> str:
    """The picture as a JPEG, in base64."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")
