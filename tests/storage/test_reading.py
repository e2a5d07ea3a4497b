"""Safetensors files: round trips against safetensors itself, and files that are broken."""

import errno
import json
import os
import pickle
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch

from esd_core.errors import FileError
from esd_core.storage.lazy import LazyTensors, Spec
from esd_core.storage.reading import mapped_tensors, read_header, read_tensors, tensor_names
from esd_core.storage.writing import MAX_HEADER, write_safetensors


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


def test_what_we_write_safetensors_reads(written):
    assert_same_tensors(safetensors.torch.load_file(written), some_tensors())
    with safetensors.safe_open(written, "pt") as file:
        assert file.metadata() == {"alpha": "first", "zeta": "last"}


def test_what_safetensors_writes_we_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    safetensors.torch.save_file(tensors, path, {"key": "value"})
    assert_same_tensors(read_tensors(path), tensors)
    assert read_header(path).metadata == {"key": "value"}


def test_the_header_tells_dtypes_and_shapes_without_the_tensors(written):
    header = read_header(written)
    assert header.tensors == {
        name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in some_tensors().items()
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


def test_a_tensor_read_is_our_own_memory(written):
    before = written.read_bytes()
    read_tensors(written)["full"].zero_()
    assert written.read_bytes() == before


def test_the_same_content_gives_the_same_bytes(tmp_path, written):
    again = tmp_path / "again.safetensors"
    backwards = dict(reversed(some_tensors().items()))
    write_safetensors(again, backwards, {"alpha": "first", "zeta": "last"})
    assert again.read_bytes() == written.read_bytes()


def test_a_file_without_tensors(tmp_path):
    path = tmp_path / "deep" / "er" / "empty.safetensors"
    write_safetensors(path, {}, {"only": "metadata"})
    assert read_tensors(path) == {}
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
        write_safetensors(path, LazyTensors(specs, tensor), {}, force=True)
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


def test_long_metadata_is_read_as_the_format_allows_it(tmp_path):
    path, metadata = tmp_path / "out.safetensors", {"cover": "x" * 60_000_000}
    write_safetensors(path, {}, metadata)
    assert read_header(path).metadata == metadata


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
HUGE = (10**15).to_bytes(8, "little")
BROKEN = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\0" * 7, "not a safetensors file"),
    "text": (b"just some words, no tensors", "not a safetensors file"),
    "pickle": (pickle.dumps({"a": [1.0] * 99}), "serialized Python objects"),
    "header beyond the file": (encoded({"a": entry()})[:20], "cut short"),
    "huge header": (HUGE + b"{" + b" " * 99, "header too large"),
    "length alone": (encoded({"a": entry()})[:8], "not a safetensors file"),
    "longest header": (b"<\0\0\0\0" + b"\xff" * 3 + ENTRY_TEXT, "header too large"),
    "not json": (encoded(b"{what?}  "), "invalid JSON"),
    "not text": (encoded(b'{"\xff": ' + ENTRY_TEXT + b"}", b"0000"), "damaged"),
    "deep": (encoded(b'{"a":' * 200_000), "recursion limit"),
    "duplicate names": (
        encoded(b'{"a": ' + ENTRY_TEXT + b', "a": ' + ENTRY_TEXT + b"}", b"0000"),
        "comes twice",
    ),
    "duplicate metadata": (encoded(b'{"__metadata__": {"a": "1", "a": "2"}}'), "damaged"),
    "metadata of numbers": (encoded({"__metadata__": {"a": 1}}), "expected a string"),
    "unknown dtype": (encoded({"a": entry(dtype="F31")}, b"0000"), "F31"),
    "a dtype of parts of bytes": (encoded({"a": entry("F4", [8])}, b"0000"), "F4 numbers"),
    "many dimensions": (encoded({"a": entry(shape=[1] * 1000)}, b"0000"), "shape"),
    "overflowing shape": (encoded({"a": entry(shape=[2, 2**64 - 2])}, b"0000"), "overflow"),
    "overflowing bytes": (encoded({"a": entry(shape=[2, 2**63 - 1])}, b"0000"), "overflow"),
    "overflowing empty": (
        encoded({"a": entry(shape=[0, 2**40, 2**40], offsets=(0, 0))}),
        "shape",
    ),
    "wrong product": (encoded({"a": entry(shape=[2])}, b"0000"), "damaged"),
    "overlap": (encoded({"a": entry(), "b": entry(offsets=(2, 6))}, b"000000"), "damaged"),
    "gap": (encoded({"a": entry(), "b": entry(offsets=(8, 12))}, b"0" * 12), "damaged"),
    "data missing": (encoded({"a": entry()}, b"000"), "cut short"),
    "data left over": (encoded({"a": entry()}, b"00000"), "damaged"),
    "many in one place": (encoded({str(i): entry() for i in range(10_000)}, b"0000"), "damaged"),
}
UNUSUAL = {
    "no dimensions": (encoded({"a": entry(shape=[])}, b"\0" * 4), {"a": torch.zeros(())}),
    "nothing in it": (
        encoded({"a": entry(shape=[2, 0], offsets=[0, 0])}),
        {"a": torch.zeros(2, 0)},
    ),
    "padded behind": (encoded(b"{}\r \t\n"), {}),
    "padded before": (encoded(b"\t\n{}\r "), {}),
}
"""As the vectors of `safetensors` have them, and most of BROKEN."""


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_file_is_read(tmp_path, name):
    content, tensors = UNUSUAL[name]
    path = tmp_path / "unusual.safetensors"
    path.write_bytes(content)
    assert tensor_names(path) == list(tensors)
    for found in (read_tensors(path), mapped_tensors(read_header(path))):
        assert_same_tensors(found, tensors)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, name):
    content, words = BROKEN[name]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=words) as caught:
        read_header(path)
    message = str(caught.value)
    assert str(path) in message and not message.endswith(".") and "\n" not in message
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
    names = ("absent", "", "pipe", "nul\0", "x" * 5000)
    for path in (tmp_path / name for name in names):
        with pytest.raises(FileError):
            read_header(path)


def test_a_loop_of_links_is_refused(tmp_path, written):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(FileError, match=r"loop cannot be read"):
        read_header(loop)
    with pytest.raises(FileError, match="exists already"):
        write_safetensors(loop, some_tensors(), {})
    with pytest.raises(FileError, match="cannot be written"):
        write_safetensors(loop / "out.safetensors", some_tensors(), {})
    assert files_in(tmp_path) == ["loop", written.name]


def test_cut_anywhere_it_is_refused(tmp_path, written):
    whole = written.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            read_tensors(path)
