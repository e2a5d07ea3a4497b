"""Thousands of broken files, from a seed: each is one sentence or loads as what it is.

Damage goes into real files of every kind: cut, with bits flipped in header and body, sizes and
offsets changed, names doubled, numbers that are none, other dtypes, other programs' containers.
"""

import io
import json
import pickle
import random
import resource
import time
import zipfile

import pytest
import torch
from safetensors.torch import load, save
from unets import CONFIGS

from esd_core.errors import ESDError
from esd_core.files.apply import check_fits
from esd_core.files.base import Base
from esd_core.files.erasure import Erasure
from esd_core.files.export import export
from esd_core.files.formats import LORA, OFFICIAL, UNET
from esd_core.files.open import open_source
from esd_core.models.architectures import SDXL
from esd_core.models.structure import unet_config

COUNTS = {"erasure": 900, LORA: 700, OFFICIAL: 700, UNET: 200}
SMALL = {**CONFIGS["small-sdxl"], "block_out_channels": [32, 32, 32], "attention_head_dim": 1}
SMALL["transformer_layers_per_block"] = 1


@pytest.fixture(scope="module")
def base():
    from diffusers import UNet2DConditionModel

    from esd_core.models.keys import diffusers_to_canonical

    torch.manual_seed(0)
    unet, names = UNet2DConditionModel.from_config(SMALL), diffusers_to_canonical(SMALL)
    weights = {names[n]: t.detach() for n, t in unet.state_dict().items()}
    assert unet_config({n: tuple(t.shape) for n, t in weights.items()})
    return Base(SDXL, SMALL, weights)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """Bytes of a good file by kind."""
    folder = tmp_path_factory.mktemp("whole")
    layers = [n for n in base.weights if n.endswith("attn2.to_k.weight")]
    tensors = {n.replace(".weight", ".diff"): torch.randn(base.weights[n].shape) for n in layers}
    erasure = Erasure(tensors, {"esd.format": "esd-erasure-1", "esd.concepts": '["hat"]'})
    for form in (LORA, OFFICIAL, UNET):
        export(form, folder / form, erasure, base, rank=2)
    files = {form: (folder / form).read_bytes() for form in (LORA, OFFICIAL, UNET)}
    named = {f"diffusion_model.{key}": value for key, value in tensors.items()}
    files["erasure"] = save(named, dict(erasure.metadata))
    return files


def header_of(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def flip_header(content, rng):
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(header_of(content))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_body(content, rng):
    data = bytearray(content)
    for _ in range(rng.choice((1, 4, 64))):
        data[rng.randrange(header_of(content), len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def huge_header(content, rng):
    return rng.choice((2**63, 2**40, 2**32, len(content) + 1)).to_bytes(8, "little") + content[8:]


def rewritten(content, change) -> bytes:
    """With another header: `change` gets its fields."""
    start = header_of(content)
    fields = json.loads(content[8:start])
    text = change(fields)
    if text is None:
        text = json.dumps(fields)
    data = text.encode()
    return len(data).to_bytes(8, "little") + data + content[start:]


def of_an_entry(content, rng, change) -> bytes:
    def inner(fields):
        name = rng.choice([n for n in fields if n != "__metadata__"])
        change(fields[name])

    return rewritten(content, inner)


def huge_sizes(content, rng):
    size = rng.choice((2**31, 2**40, 2**62, 2**63, -1, 10**30, 1.5))

    def change(entry):
        entry["shape"][rng.randrange(len(entry["shape"]))] = size
        if rng.random() < 0.5:
            entry["data_offsets"][1] = entry["data_offsets"][0] + size * 4

    return of_an_entry(content, rng, lambda e: change(e) if e["shape"] else None)


def moved_offsets(content, rng):
    def change(entry):
        entry["data_offsets"] = [o + rng.choice((-8, -2, 2, 4096)) for o in entry["data_offsets"]]

    return of_an_entry(content, rng, change)


def other_dtype(content, rng):
    def change(entry):
        entry["dtype"] = rng.choice(("I32", "I16", "U8", "BOOL", "F64", "BF16", "F8_E4M3", "X", 7))

    return of_an_entry(content, rng, change)


def other_shape(content, rng):
    return of_an_entry(content, rng, lambda entry: entry["shape"].append(1))


def doubled_name(content, rng):
    def change(fields):
        name = rng.choice([n for n in fields if n != "__metadata__"])
        return json.dumps(fields)[:-1] + f", {json.dumps(name)}: {json.dumps(fields[name])}}}"

    return rewritten(content, change)


def other_name(content, rng):
    def change(fields):
        name = rng.choice([n for n in fields if n != "__metadata__"])
        odd = rng.choice(("", "x", name[1:], name + ".x", "a" * 10_000, "../../etc", "\u2603.diff"))
        fields[odd] = fields.pop(name)

    return rewritten(content, change)


def other_metadata(content, rng):
    odd = rng.choice(("[", "{}", "[[1]]", "1 2 nan", "\0", "null", "7"))
    key = rng.choice(
        ("esd.concepts", "esd.base_fingerprint", "esd.base_architecture", "esd.format")
    )

    def change(fields):
        fields["__metadata__"] = {**fields.get("__metadata__", {}), f"esd.{key}": odd}

    return rewritten(content, change)


def no_number(content, rng):
    tensors = {name: tensor.clone() for name, tensor in load(content).items()}
    name = rng.choice([n for n, t in tensors.items() if t.numel()])
    flat = tensors[name].reshape(-1)
    flat[rng.randrange(len(flat))] = rng.choice((float("nan"), float("inf"), -float("inf")))
    tensors[name] = flat.reshape(tensors[name].shape)
    return save(tensors)


def left_out(content, rng):
    tensors = load(content)
    tensors.pop(rng.choice(list(tensors)))
    return save(tensors)


def container(content, rng):
    kind = rng.randrange(4)
    if kind == 0:
        return b""
    if kind == 1:
        return pickle.dumps({"a": content[:1000]}, protocol=rng.randrange(6))
    if kind == 2:
        return rng.randbytes(rng.randrange(1, 2000))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", content[:1000])
    return buffer.getvalue()


DAMAGES = (
    *(cut, flip_header, flip_body, huge_header, huge_sizes, moved_offsets, other_dtype),
    *(other_shape, doubled_name, other_name, other_metadata, no_number, left_out, container),
)


def peak() -> int:
    """The most memory that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", COUNTS)
def test_each_ends_in_a_sentence_or_in_a_load(base, whole, tmp_path, kind):
    rng, path, before = random.Random(kind), tmp_path / "broken.safetensors", peak()
    own = {name: tensor.clone() for name, tensor in base.weights.items()}
    refused, slowest = 0, 0.0
    for number in range(COUNTS[kind]):
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(damage(whole[kind], rng))
        start = time.monotonic()
        try:
            loads(path, base)
        except ESDError as error:
            refused += 1
            message = str(error)
            assert message and "\n" not in message and len(message) < len(str(path)) + 400, damage
        slowest = max(slowest, time.monotonic() - start)
    assert refused > COUNTS[kind] // 2
    assert slowest < 5 and peak() - before < 500e6
    assert all(torch.equal(base.weights[name], tensor) for name, tensor in own.items())


def loads(path, base) -> None:
    """As ESDLoadErased and the commands do; what comes must be a change of this base."""
    erasure = open_source(path).erasure(base)
    check_fits(erasure, base)
    for name, change in erasure.delta(base.weights).items():
        assert change.shape == base.weights[name].shape and change.dtype == torch.float32
        assert torch.isfinite(change).all()
