"""UNets in files: round trips against safetensors and diffusers themselves."""

import errno
import json
import os

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from unets import CONFIGS

from esd_core.errors import FileError
from esd_core.files.apply import check_fits, summed
from esd_core.files.base import Base, open_base
from esd_core.files.diffusers import write_official, write_unet_folder
from esd_core.files.erasure import Erasure
from esd_core.files.open import open_source
from esd_core.files.unet import PREFIX, unet_names, write_unet
from esd_core.models.architectures import SDXL
from esd_core.models.keys import diffusers_to_canonical
from esd_core.storage.reading import (
    file_tensors,
    read_header,
)
from esd_core.training.selection import select

CONFIG = CONFIGS["small-sdxl"]


def assert_same_tensors(got, expected):
    got, expected = dict(got), dict(expected)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name].float(), tensor.float()), name


def files_in(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def other(tmp_path):
    """A file that has nothing to do with UNets."""
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"half": torch.ones(2)}, path)
    return path


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


def erased_alone(base, delta, dtype):
    """The erased tensors alone."""
    return summed({name: base[name] for name in delta}, delta, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_full_unet_is_base_plus_delta(tmp_path, base, delta, dtype):
    path = tmp_path / "unet.safetensors"
    write_unet(path, summed(base, delta, dtype), {"modelspec.title": "erased"})
    raw = safetensors.torch.load_file(path)
    assert all(name.startswith(PREFIX) for name in raw)
    assert_same_tensors(unet_of(path), erased(base, delta, dtype))
    assert read_header(path).metadata == {"modelspec.title": "erased"}


def test_a_half_precision_base_is_summed_in_float32(tmp_path, base, delta):
    path = tmp_path / "unet.safetensors"
    half = {name: tensor.half() for name, tensor in base.items()}
    write_unet(path, summed(half, delta, torch.float32))
    in_full = {name: tensor.float() for name, tensor in half.items()}
    assert_same_tensors(unet_of(path), erased(in_full, delta))


def test_prediction_marks_are_kept_for_both_loaders(tmp_path, base, delta):
    path = tmp_path / "unet.safetensors"
    write_unet(path, summed(base, delta, torch.float16), prediction_markers=("v_pred", "ztsnr"))
    raw = safetensors.torch.load_file(path)
    for mark in ("v_pred", "ztsnr"):
        assert raw[mark].shape == raw[PREFIX + mark].shape == (0,)
    assert_same_tensors(unet_of(path), erased(base, delta, torch.float16))


def test_a_file_without_a_unet_is_refused(other):
    with pytest.raises(FileError, match="no UNet"):
        open_base(other)


@pytest.mark.parametrize(
    "foreign", [{"input_blocks.99.0.op.diff": torch.zeros(1)}, {"out.2.diff_b": torch.zeros(5)}]
)
def test_a_change_that_does_not_fit_is_refused(base, foreign):
    (name,) = Erasure(foreign, {}).change()
    with pytest.raises(FileError, match=name):
        check_fits(Erasure(foreign, {}), Base(SDXL, CONFIG, base))


def loaded(folder) -> UNet2DConditionModel:
    model, info = UNet2DConditionModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("shard_size", [5_000_000_000, 1_000_000], ids=["one file", "sharded"])
def test_diffusers_loads_the_folder(tmp_path, unet, base, delta, shard_size):
    folder = tmp_path / "model" / "unet"
    write_unet_folder(
        folder, unet.config, summed(base, delta, torch.float32), shard_size=shard_size
    )
    model = loaded(folder)
    names = diffusers_to_canonical(CONFIG)
    got = {names[name]: tensor for name, tensor in model.state_dict().items()}
    assert_same_tensors(got, erased(base, delta))
    saved = {key: value for key, value in model.config.items() if not key.startswith("_")}
    assert saved == {key: v for key, v in unet.config.items() if not key.startswith("_")}
    assert files_in(tmp_path / "model") == ["unet"]


def test_the_sharded_folder_looks_like_diffusers_own(tmp_path, unet, base):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_unet_folder(ours, unet.config, summed(base, {}, torch.float32), shard_size=1_000_000)
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
    arguments = (folder, CONFIG, summed(base, delta, torch.float16))
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
    write_unet_folder(folder, CONFIG, summed(base, {}, torch.float16))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(descriptor):
        raise raised

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((FileError, KeyboardInterrupt)) as caught:
        write_unet_folder(folder, CONFIG, summed(base, delta, torch.float16), force=True)
    assert isinstance(caught.value, KeyboardInterrupt) or "full" in str(caught.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert files_in(tmp_path) == ["unet"]


def test_a_config_of_another_model_is_refused(tmp_path, base):
    with pytest.raises(FileError, match="config does not fit"):
        write_unet_folder(tmp_path / "unet", CONFIGS["sd1"], base)


# The official code's files


def test_the_official_code_loads_the_official_file(tmp_path, base, delta):
    path = tmp_path / "esd-hat-from-hat-esdx.safetensors"
    write_official(path, CONFIG, erased_alone(base, delta, torch.float32))
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
    write_official(path, CONFIG, erased_alone(base, delta, torch.float32))
    got = read_back(path, CONFIG, base)
    assert got.keys() == delta.keys()
    for name, tensor in delta.items():
        # The sum was rounded once, and so was the weight it is taken from.
        bound = (base[name].abs() + tensor.abs()) * 2**-23
        assert ((got[name] - tensor).abs() <= bound).all()


def test_what_was_read_writes_the_same_official_file_again(tmp_path, base, delta):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_official(first, CONFIG, erased_alone(base, delta, torch.float16))
    again = read_back(first, CONFIG, base)
    write_official(second, CONFIG, erased_alone(base, again, torch.float16))
    assert first.read_bytes() == second.read_bytes()


def test_an_official_file_for_another_model_is_refused(tmp_path, base, delta, other):
    path = tmp_path / "official.safetensors"
    write_official(path, CONFIG, erased_alone(base, delta, torch.float16))
    sd1 = dict.fromkeys(diffusers_to_canonical(CONFIGS["sd1"]).values(), torch.zeros(1))
    with pytest.raises(FileError, match="another model"):
        read_back(path, CONFIGS["sd1"], sd1)
    with pytest.raises(FileError, match="not an erasure file"):
        open_source(other)
