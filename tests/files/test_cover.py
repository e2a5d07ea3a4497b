"""Covers of erasures: small, the same for the same picture, and kept by every file of weights."""

import base64
import io
import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from esd_core.files.base import open_base
from esd_core.files.cover import covered
from esd_core.files.erasure import Erasure
from esd_core.files.export import export
from esd_core.files.formats import ERASURE, LORA, OFFICIAL, UNET
from esd_core.files.metadata import Key
from esd_core.models.embedded import WEIGHTS

LAYER = "middle_block.1.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def base():
    return open_base(WEIGHTS)


@pytest.fixture(scope="module")
def erasure(base):
    change = torch.randn(base.weights[f"{LAYER}.weight"].shape)
    return Erasure({f"{LAYER}.diff": change}, {"esd.method": "esd-x"})


def quarters(width, height):
    """A picture of four flat colors, which a JPEG keeps all but as they are."""
    four = Image.new("RGB", (2, 2))
    four.putdata(COLORS)
    return four.resize((width, height), Image.Resampling.NEAREST)


COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 200)]


def read(metadata):
    """As ComfyUI does: the bytes, and the picture."""
    (text,) = json.loads(metadata[Key.COVERS])
    data = base64.b64decode(text, validate=True)
    return data, Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 1024), (256, 256)), ((1024, 512), (512, 256)), ((64, 64), (256, 256))],
)
def test_a_cover_is_the_picture_and_256_pixels_or_more(erasure, size, expected):
    made = covered(erasure, quarters(*size))
    data, picture = read(made.metadata)
    assert picture.size == expected and len(data) < 10_000
    for color, (x, y) in zip(COLORS, [(1, 1), (3, 1), (1, 3), (3, 3)], strict=True):
        pixel = picture.getpixel((x * picture.width // 4, y * picture.height // 4))
        assert max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 8
    assert made.tensors is erasure.tensors and Key.COVERS not in erasure.metadata
    again = covered(erasure, quarters(*size).convert("RGBA"))
    assert again.metadata == made.metadata, "the same picture makes the same bytes"


def test_without_a_picture_nothing_changes(erasure):
    assert covered(erasure, None) is erasure


@pytest.mark.parametrize("form", [ERASURE, LORA, UNET, OFFICIAL])
def test_every_file_made_of_an_erasure_keeps_its_cover(base, erasure, tmp_path, form):
    made = covered(erasure, quarters(64, 64))
    out = tmp_path / "out.safetensors"
    export(form, out, made, base, rank=2)
    with safe_open(out, "pt") as file:
        assert file.metadata()[Key.COVERS] == made.metadata[Key.COVERS]
