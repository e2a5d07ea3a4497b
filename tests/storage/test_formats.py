"""Files: round trips against safetensors and diffusers themselves, and files that are broken."""

import errno
import json
import os
import pickle
import random
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from unets import CONFIGS

from esd_core.errors import FileError
from esd_core.files.base import Base, open_base
from esd_core.files.diffusers import write_official, write_unet_folder
from esd_core.files.open import open_source
from esd_core.files.unet import PREFIX, unet_names, write_unet
from esd_core.models.architectures import SDXL
from esd_core.models.keys import diffusers_to_canonical
from esd_core.storage.header import MAX_HEADER, Spec, read_header
from esd_core.storage.safetensors_file import (
    file_tensors,
    iterate_tensors,
    mapped_tensors,
    read_tensor,
    stream_safetensors,
    write_safetensors,
)
from esd_core.training.selection import select

CONFIG = CONFIGS["small-sdxl"]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 5, generator=generator)
    return {
        "wide": noise.double(),
        "full": noise,
        "transposed": noise.t(),
        "half": noise.half(),
        "brain": noise.bfloat16(),
        "eighth": noise.to(torch.float8_e4m3fn),
        "bytes": (noise * 10).to(torch.uint8),
        "flags": noise > 0,
        "count": torch.tensor(7),
        "nothing": torch.empty(0, 4),
        "nested.name / \u00e9": torch.arange(4, dtype=torch.int32),
    }


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "some.safetensors"
    write_safetensors(path, some_tensors(), {"zeta": "last", "alpha": "first"})
    return path


def assert_same_tensors(got, expected):
    got, expected = dict(got), dict(expected)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name].float(), tensor.float()), name


def files_in(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Reading and writing


def test_what_we_write_safetensors_reads(written):
    assert_same_tensors(safetensors.torch.load_file(written), some_tensors())
    with safetensors.safe_open(written, "pt") as file:
        assert file.metadata() == {"alpha": "first", "zeta": "last"}


def test_what_safetensors_writes_we_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    safetensors.torch.save_file(tensors, path, {"key": "value"})
    assert_same_tensors(iterate_tensors(path), tensors)
    assert read_header(path).metadata == {"key": "value"}


def test_the_header_tells_dtypes_and_shapes_without_the_tensors(written):
    header = read_header(written)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in some_tensors().items()
    }


@pytest.mark.parametrize("padding", [0, 1])
def test_mapped_tensors_are_the_files_and_do_not_write_into_it(written, tmp_path, padding):
    """Also where the file does not align them: a header may end anywhere."""
    whole = written.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length] + b" " * padding
    path = tmp_path / "padded.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    before = path.read_bytes()
    tensors = mapped_tensors(read_header(path))
    assert_same_tensors(tensors, some_tensors())
    tensors["half"].zero_()
    assert path.read_bytes() == before


def test_chosen_tensors_only(written):
    assert [name for name, _ in iterate_tensors(written, {"half", "absent"})] == ["half"]


def test_a_tensor_read_is_our_own_memory(written):
    before = written.read_bytes()
    read_tensor(read_header(written), "full").zero_()
    assert written.read_bytes() == before


def test_the_same_content_gives_the_same_bytes(tmp_path, written):
    again = tmp_path / "again.safetensors"
    backwards = dict(reversed(some_tensors().items()))
    write_safetensors(again, backwards, {"alpha": "first", "zeta": "last"})
    assert again.read_bytes() == written.read_bytes()


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "deep" / "er" / "empty.safetensors"
    write_safetensors(path, {}, {"only": "metadata"})
    assert list(iterate_tensors(path)) == []
    assert read_header(path).metadata == {"only": "metadata"}


def test_an_existing_file_is_kept_unless_forced(written):
    before = written.read_bytes()
    with pytest.raises(FileError, match="exists already"):
        write_safetensors(written, {}, {})
    assert written.read_bytes() == before
    write_safetensors(written, {}, {}, force=True)
    assert written.read_bytes() != before
    assert files_in(written.parent) == [written.name]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FileError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=["disk full", "interrupted", "bug"],
)
def test_a_write_that_fails_leaves_all_as_it_was(tmp_path, raised, expected, existing):
    path = tmp_path / "out.safetensors"
    if existing:
        path.write_bytes(b"precious")

    def tensor(name):
        if name == "b":
            raise raised
        return torch.zeros(1000)

    specs = {"a": Spec(torch.float32, (1000,)), "b": Spec(torch.float32, (1_000_000,))}
    with pytest.raises(expected) as caught:
        stream_safetensors(path, specs, tensor, {}, force=True)
    assert files_in(tmp_path) == ["out.safetensors"] * existing
    assert not existing or path.read_bytes() == b"precious"
    if expected is FileError:
        assert str(path) in str(caught.value) and "4.0 MB needed" in str(caught.value)


@pytest.mark.parametrize("place", ["a-file/out.safetensors", "a-folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, place):
    (tmp_path / "a-file").write_bytes(b"")
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        write_safetensors(tmp_path / place, some_tensors(), {}, force=True)
    assert files_in(tmp_path) == ["a-file", "a-folder"]


def test_metadata_nobody_could_read_again_is_not_written(tmp_path):
    with pytest.raises(FileError, match="too long"):
        write_safetensors(tmp_path / "out.safetensors", {}, {"cover": "x" * MAX_HEADER})
    assert files_in(tmp_path) == []


# Broken files


def encoded(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


ENTRY_TEXT = json.dumps(entry()).encode()
BROKEN = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\0" * 7, "not a safetensors file"),
    "text": (b"just some words, no tensors", "not a safetensors file"),
    "pickle": (pickle.dumps({"a": [1.0] * 99}), "serialized Python objects"),
    "header beyond the file": (encoded({"a": entry()})[:20], "cut short"),
    "huge header": ((10**15).to_bytes(8, "little") + b"{" + b" " * 99, "claims a header"),
    "header of one byte": ((1).to_bytes(8, "little") + b"{}", "header"),
    "not json": (encoded(b"{what?}  "), "not valid"),
    "not utf-8": (encoded(b'{"\xff\xfe": 1}'), "not valid"),
    "half a surrogate": (encoded(b'{"\\ud800": ' + ENTRY_TEXT + b"}", b"0000"), "not valid"),
    "more than one value": (encoded(b"{}{}"), "not valid"),
    "deep": (encoded(b'{"a":' * 200_000), "not valid"),
    "not a number": (encoded(b'{"a": NaN}'), "not valid"),
    "endless number": (encoded(b'{"a": ' + b"9" * 10**6 + b"}"), "too many digits"),
    "duplicate names": (
        encoded(b'{"a": ' + ENTRY_TEXT + b', "a": ' + ENTRY_TEXT + b"}", b"0000"),
        "comes twice",
    ),
    "metadata of numbers": (encoded({"__metadata__": {"a": 1}}), "metadata"),
    "metadata of nothing": (encoded({"__metadata__": None}), "metadata"),
    "entry is a list": (encoded({"a": []}), "not just"),
    "field missing": (encoded({"a": {"dtype": "F32", "shape": [1]}}, b"0000"), "not just"),
    "field too many": (encoded({"a": entry(more=1)}, b"0000"), "not just"),
    "unknown dtype": (encoded({"a": entry(dtype="F31")}, b"0000"), "'F31'"),
    "dtype is a list": (encoded({"a": entry(dtype=["F32"])}, b"0000"), "dtype"),
    "shape of texts": (encoded({"a": entry(shape="1")}, b"0000"), "shape"),
    "shape of booleans": (encoded({"a": entry(shape=[True])}, b"0000"), "shape"),
    "negative shape": (encoded({"a": entry(shape=[-1, -1])}, b"0000"), "shape"),
    "fractional shape": (encoded({"a": entry(shape=[1.0])}, b"0000"), "not valid"),
    "many dimensions": (encoded({"a": entry(shape=[1] * 1000)}, b"0000"), "shape"),
    "overflowing empty": (
        encoded({"a": entry(shape=[0, 2**40, 2**40], offsets=(0, 0))}),
        "shape",
    ),
    "huge shape": (encoded({"a": entry(shape=[2**50])}, b"0000"), "4 bytes where"),
    "huge tensor": (encoded({"a": entry(shape=[2**50], offsets=(0, 2**52))}, b"0000"), "cut short"),
    "wrong product": (encoded({"a": entry(shape=[2])}, b"0000"), "needs 8"),
    "reversed offsets": (encoded({"a": entry(offsets=(4, 0))}, b"0000"), "offsets"),
    "three offsets": (encoded({"a": entry(offsets=(0, 4, 8))}, b"0000"), "offsets"),
    "overlap": (encoded({"a": entry(), "b": entry(offsets=(2, 6))}, b"000000"), "overlaps"),
    "same bytes": (encoded({"a": entry(), "b": entry()}, b"0000"), "overlaps"),
    "gap": (encoded({"a": entry(), "b": entry(offsets=(8, 12))}, b"0" * 12), "gap"),
    "late start": (encoded({"a": entry(offsets=(4, 8))}, b"0" * 8), "gap"),
    "data missing": (encoded({"a": entry()}, b"000"), "cut short"),
    "data left over": (encoded({"a": entry()}, b"00000"), "follow"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, name):
    content, words = BROKEN[name]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=words) as caught:
        read_header(path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".") and "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_pytorchs_own_files_are_refused(tmp_path):
    zipped, pickled, archive = tmp_path / "a.ckpt", tmp_path / "b.pt", tmp_path / "c.safetensors"
    torch.save(some_tensors(), zipped)
    torch.save({"a": torch.zeros(3)}, pickled, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data", b"0" * 100)
    for path, kind in ((zipped, "zip"), (pickled, "serialized"), (archive, "zip")):
        with pytest.raises(FileError, match=kind):
            read_header(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe", tmp_path / "nul\0", "x" * 5000):
        with pytest.raises(FileError):
            read_header(path)


def test_cut_anywhere_it_is_refused(tmp_path, written):
    whole = written.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            list(iterate_tensors(path))


def mutated(content: bytes, header: int, rng: random.Random) -> bytes:
    """A few bytes of the header flipped, removed, doubled or swapped for telling ones."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(header)
        change = rng.randrange(4)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.choice(b'0189-"{}[],:e. \x00\xff')
        elif change == 2:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_header_is_refused_or_reads_as_safetensors_reads_it(tmp_path, written, seed):
    rng = random.Random(seed)
    whole, header = written.read_bytes(), read_header(written).data_start
    path = tmp_path / "damaged.safetensors"
    for _ in range(250):
        path.write_bytes(mutated(whole, header, rng))
        try:
            tensors = dict(iterate_tensors(path))
        except FileError:
            continue
        with safetensors.safe_open(path, "pt") as file:
            assert set(file.keys()) == set(tensors)
            for name, tensor in tensors.items():
                theirs = file.get_tensor(name)
                assert theirs.dtype == tensor.dtype and theirs.shape == tensor.shape


# UNets


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(1)
    return UNet2DConditionModel.from_config(CONFIG)


@pytest.fixture(scope="module")
def base(unet):
    names = diffusers_to_canonical(unet.config)
    return {names[name]: tensor for name, tensor in unet.state_dict().items()}


@pytest.fixture(scope="module")
def delta(base):
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(base[name].shape, generator=generator) * 0.01
        for name in select("esd-x", base, SDXL)
    }


def unet_of(path):
    return unet_names(file_tensors(read_header(path))).items()


def erased(base, delta, dtype=torch.float32):
    return {
        name: (tensor + delta[name] if name in delta else tensor).to(dtype)
        for name, tensor in base.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_full_unet_is_base_plus_delta(tmp_path, base, delta, dtype):
    path = tmp_path / "unet.safetensors"
    write_unet(path, base, delta, dtype, {"modelspec.title": "erased"})
    raw = safetensors.torch.load_file(path)
    assert all(name.startswith(PREFIX) for name in raw)
    assert_same_tensors(unet_of(path), erased(base, delta, dtype))
    assert read_header(path).metadata == {"modelspec.title": "erased"}


def test_a_half_precision_base_is_summed_in_float32(tmp_path, base, delta):
    path = tmp_path / "unet.safetensors"
    half = {name: tensor.half() for name, tensor in base.items()}
    write_unet(path, half, delta, torch.float32)
    in_full = {name: tensor.float() for name, tensor in half.items()}
    assert_same_tensors(unet_of(path), erased(in_full, delta))


def test_prediction_marks_are_kept_for_both_loaders(tmp_path, base, delta):
    path = tmp_path / "unet.safetensors"
    write_unet(path, base, delta, torch.float16, marks=("v_pred", "ztsnr"))
    raw = safetensors.torch.load_file(path)
    for mark in ("v_pred", "ztsnr"):
        assert raw[mark].shape == raw[PREFIX + mark].shape == (0,)
    assert_same_tensors(unet_of(path), erased(base, delta, torch.float16))


def test_a_file_without_a_unet_is_refused(written):
    with pytest.raises(FileError, match="no UNet"):
        open_base(written)


@pytest.mark.parametrize(
    "foreign", [{"input_blocks.99.0.op.weight": torch.zeros(1)}, {"out.2.bias": torch.zeros(5)}]
)
def test_a_delta_that_does_not_fit_is_refused(tmp_path, base, foreign):
    (name,) = foreign
    writers = (
        lambda path: write_unet(path, base, foreign, torch.float16),
        lambda path: write_unet_folder(path, CONFIG, base, foreign, torch.float16),
        lambda path: write_official(path, CONFIG, base, foreign, torch.float16),
    )
    for write in writers:
        with pytest.raises(FileError, match=name):
            write(tmp_path / "out")
    assert files_in(tmp_path) == []


def loaded(folder) -> UNet2DConditionModel:
    model, info = UNet2DConditionModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("shard_size", [5_000_000_000, 1_000_000], ids=["one file", "sharded"])
def test_diffusers_loads_the_folder(tmp_path, unet, base, delta, shard_size):
    folder = tmp_path / "model" / "unet"
    write_unet_folder(folder, unet.config, base, delta, torch.float32, shard_size=shard_size)
    model = loaded(folder)
    names = diffusers_to_canonical(CONFIG)
    got = {names[name]: tensor for name, tensor in model.state_dict().items()}
    assert_same_tensors(got, erased(base, delta))
    saved = {key: value for key, value in model.config.items() if not key.startswith("_")}
    assert saved == {key: v for key, v in unet.config.items() if not key.startswith("_")}
    assert files_in(tmp_path / "model") == ["unet"]


def test_the_sharded_folder_looks_like_diffusers_own(tmp_path, unet, base):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_unet_folder(ours, unet.config, base, {}, torch.float32, shard_size=1_000_000)
    unet.save_pretrained(theirs, max_shard_size="1MB")
    index = "diffusion_pytorch_model.safetensors.index.json"
    our_index, their_index = (json.loads((f / index).read_text()) for f in (ours, theirs))
    assert our_index["weight_map"].keys() == their_index["weight_map"].keys()
    assert our_index["metadata"]["total_size"] == their_index["metadata"]["total_size"]
    assert set(our_index["weight_map"].values()) == set(files_in(ours)) - {index, "config.json"}
    largest = max(tensor.nbytes for tensor in base.values())
    for file in ours.glob("*.safetensors"):
        assert file.stat().st_size < max(largest, 1_000_000) + 10_000


def test_a_folder_is_replaced_only_if_forced_and_only_if_it_is_a_unet(tmp_path, base, delta):
    folder = tmp_path / "unet"
    arguments = (folder, CONFIG, base, delta, torch.float16)
    write_unet_folder(*arguments, shard_size=1_000_000)
    before = files_in(folder)
    with pytest.raises(FileError, match="exists already"):
        write_unet_folder(*arguments)
    assert files_in(folder) == before
    write_unet_folder(*arguments, force=True)
    assert files_in(folder) == ["config.json", "diffusion_pytorch_model.safetensors"]
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(FileError, match="thesis.txt"):
        write_unet_folder(*arguments, force=True)
    assert (folder / "thesis.txt").read_text() == "precious"
    assert files_in(tmp_path) == ["unet"]


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_a_folder_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch, base, delta, raised):
    folder = tmp_path / "unet"
    write_unet_folder(folder, CONFIG, base, {}, torch.float16)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(descriptor):
        raise raised

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((FileError, KeyboardInterrupt)) as caught:
        write_unet_folder(folder, CONFIG, base, delta, torch.float16, force=True)
    assert isinstance(caught.value, KeyboardInterrupt) or "full" in str(caught.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert files_in(tmp_path) == ["unet"]


def test_a_config_of_another_model_is_refused(tmp_path, base, delta):
    with pytest.raises(FileError, match="config does not fit"):
        write_unet_folder(tmp_path / "unet", CONFIGS["sd1"], base, delta, torch.float16)


# The official code's files


def test_the_official_code_loads_the_official_file(tmp_path, base, delta):
    path = tmp_path / "esd-hat-from-hat-esdx.safetensors"
    write_official(path, CONFIG, base, delta, torch.float32)
    model = UNet2DConditionModel.from_config(CONFIG)
    tensors = safetensors.torch.load_file(path)
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys and len(tensors) == len(delta)
    state, names = model.state_dict(), diffusers_to_canonical(CONFIG)
    changed = {names[name]: state[name] for name in tensors}
    whole = erased(base, delta)
    assert_same_tensors(changed, {name: whole[name] for name in delta})


def read_back(path, config, base, architecture=SDXL):
    """The change that the file makes of the base."""
    return open_source(path).erasure(Base(architecture, config, base)).delta(base)


def test_an_official_file_read_gives_the_delta(tmp_path, base, delta):
    path = tmp_path / "official.safetensors"
    write_official(path, CONFIG, base, delta, torch.float32)
    got = read_back(path, CONFIG, base)
    assert got.keys() == delta.keys()
    for name, tensor in delta.items():
        # The sum was rounded once, and so was the weight it is taken from.
        bound = (base[name].abs() + tensor.abs()) * 2**-23
        assert ((got[name] - tensor).abs() <= bound).all()


def test_what_was_read_writes_the_same_official_file_again(tmp_path, base, delta):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_official(first, CONFIG, base, delta, torch.float16)
    write_official(second, CONFIG, base, read_back(first, CONFIG, base), torch.float16)
    assert first.read_bytes() == second.read_bytes()


def test_an_official_file_for_another_model_is_refused(tmp_path, base, delta, written):
    path = tmp_path / "official.safetensors"
    write_official(path, CONFIG, base, delta, torch.float16)
    sd1 = dict.fromkeys(diffusers_to_canonical(CONFIGS["sd1"]).values(), torch.zeros(1))
    with pytest.raises(FileError, match="another model"):
        read_back(path, CONFIGS["sd1"], sd1)
    with pytest.raises(FileError, match="no erasure file"):
        open_source(written)
