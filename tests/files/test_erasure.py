"""The erasure: what is written is read again, applied, and refused where it does not fit."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainers import dense

from esd_core.config.settings import ErasureConfig
from esd_core.errors import ESDError, FileError
from esd_core.files.apply import applied, check_fits, fingerprint, merged
from esd_core.files.erasure import Erasure
from esd_core.files.native import read_erasure, write_erasure
from esd_core.method.probes import ProbeReport
from esd_core.training.making import make_erasure
from esd_core.training.run import make_student

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROBES = ProbeReport({"Van Gogh": -0.5}, {"Van Gogh": "Van Gogh"}, {"Van Gogh": 0.5}, {"": 0.01})
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREFIX = "diffusion_model."


def trained(denoiser, config, seed=0):
    """A student that something has moved, without a training run."""
    student, noise = make_student(denoiser, config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for master in student.masters.values():
            master += 0.01 * torch.randn(master.shape, generator=noise)
    return student


def erasure_of(denoiser, config, seed=0):
    return make_erasure(trained(denoiser, config, seed), denoiser, config, 5, PROBES)


@pytest.fixture(scope="module")
def erasure(denoiser, settings):
    return erasure_of(denoiser, settings())


@pytest.fixture
def written(erasure, tmp_path):
    path = tmp_path / "van-gogh.safetensors"
    write_erasure(path, erasure)
    return path


# -- the file --------------------------------------------------------------------------------

KINDS = {
    "full": {"method": "esd-x"},
    "with convolutions": {"method": "esd-u"},
    "low rank": {"method": "esd-x", "training.rank": 4, "training.alpha": 2.0},
    # rank 48 is more than many a layer of pocket has, and 3x3 kernels are among them
    "low-rank convolutions": {"method": "esd-u", "training.rank": 48},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_is_read_back_bit_for_bit(denoiser, settings, tmp_path, kind, dtype):
    made = erasure_of(denoiser, settings({**KINDS[kind], "training.save_dtype": dtype}))
    path = tmp_path / "a.safetensors"
    write_erasure(path, made)
    read = read_erasure(path)
    assert read.tensors.keys() == made.tensors.keys()
    for key, tensor in made.tensors.items():
        assert read.tensors[key].dtype == tensor.dtype
        assert torch.equal(read.tensors[key], tensor), key
    assert read.metadata == made.metadata
    assert (read.path, read.name) == (path, "a.safetensors")
    weights = {t.dtype for k, t in read.tensors.items() if not k.endswith(".alpha")}
    assert weights == {DTYPES[dtype]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_the_students(denoiser, settings, tmp_path, kind):
    """Through the file, in fp32, and multiplied out again."""
    config = settings({**KINDS[kind], "training.save_dtype": "fp32"})
    student, path = trained(denoiser, config), tmp_path / "a.safetensors"
    write_erasure(path, make_erasure(student, denoiser, config, 5, None))
    got, expected = read_erasure(path).change(), student.change()
    assert got.keys() == expected.keys()
    for name, change in expected.items():
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name].view(change.shape), change, rtol=1e-5, atol=1e-7)
    tensors = merged(denoiser, [(read_erasure(path), 1.0)])
    for name, tensor in dense(student).items():
        torch.testing.assert_close(tensors[name], tensor.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("alpha", [1.0, 100.3])
def test_half_precision_does_not_bend_the_scale_of_a_low_rank_change(
    denoiser, settings, dtype, alpha
):
    """alpha / rank multiplies the whole change, so 100.3 is not to be rounded to 100.5."""
    low = {"training.rank": 3, "training.alpha": alpha, "training.save_dtype": dtype}
    made = erasure_of(denoiser, settings(low))
    scales = [float(t) for k, t in made.tensors.items() if k.endswith(".alpha")]
    assert scales == [pytest.approx(alpha, rel=1e-6)] * len(scales)
    assert scales


def test_keys_are_those_of_comfyui(denoiser, settings, tmp_path):
    """Read with safetensors itself: weights as .diff, biases as .diff_b."""
    path = tmp_path / "a.safetensors"
    write_erasure(path, erasure_of(denoiser, settings({"method": "esd-u"})))
    file, base = load_file(path), denoiser.parameters()
    kinds = {"diff": "weight", "diff_b": "bias"}
    for key, tensor in file.items():
        path, _, kind = key.removeprefix(PREFIX).rpartition(".")
        assert key.startswith(PREFIX)
        assert tensor.shape == base[f"{path}.{kinds[kind]}"].shape
    assert f"{PREFIX}input_blocks.1.0.in_layers.2.diff_b" in file


def test_low_rank_keys_are_those_of_lora(denoiser, settings, tmp_path):
    """A convolution's down has its kernel, its up is 1x1; alpha is divided by the rows of down.

    That is what loaders do: up @ down * alpha / rank.
    """
    config = settings({"method": "esd-u", "training.rank": 48, "training.alpha": 12.0})
    student, path = trained(denoiser, config), tmp_path / "a.safetensors"
    write_erasure(path, make_erasure(student, denoiser, config, 5, None))
    file, changes = load_file(path), student.change()
    ranks = set()
    for name, change in changes.items():
        stem = f"{PREFIX}{name.removesuffix('.weight')}"
        up, down, alpha = (
            file.pop(f"{stem}.{part}") for part in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        assert up.dim() == down.dim() == change.dim()
        if change.dim() == 4:
            assert up.shape[2:] == (1, 1) and down.shape[1:] == change.shape[1:]
        product = (up.flatten(1) @ down.flatten(1)).view(change.shape)
        torch.testing.assert_close(product * alpha / len(down), change, rtol=1e-5, atol=1e-6)
        ranks.add(len(down))
    assert not file
    assert ranks == {32, 48}


def test_metadata(denoiser, settings, tmp_path):
    """All that a result has to tell of itself."""
    lines = ["Van Gogh -> painting", "cowboy hat <- cowboy", "Monet"]
    config = settings({"concepts": lines, "negative_guidance": 1.5, "method": "esd-x-strict"})
    path = tmp_path / "a.safetensors"
    write_erasure(path, erasure_of(denoiser, config))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    names = ["Van Gogh", "cowboy hat", "Monet"]
    assert metadata["format"] == "pt"
    assert metadata["esd.format"] == "esd-erasure-1"
    assert json.loads(metadata["esd.concepts"]) == names
    anchors = {"Van Gogh": "painting", "cowboy hat": "cowboy", "Monet": ""}
    assert json.loads(metadata["esd.anchors"]) == anchors
    assert metadata["esd.method"] == "esd-x-strict"
    assert json.loads(metadata["esd.contexts"]) == []
    assert json.loads(metadata["esd.preserved"]) == [*config.preserve, "(the empty prompt)"]
    assert float(metadata["esd.negative_guidance"]) == 1.5
    assert "paper" in metadata["esd.negative_guidance_convention"]
    assert metadata["esd.steps"] == "5"
    assert ErasureConfig.from_mapping(tomllib.loads(metadata["esd.config"])) == config
    assert metadata["esd.config_digest"] == config.digest()
    assert metadata["esd.base_architecture"] == "sdxl"
    assert metadata["esd.base_fingerprint"] == fingerprint(denoiser.parameters())
    assert json.loads(metadata["esd.probes"])["share"] == {"Van Gogh": -0.5}
    assert metadata["esd.version"]
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.sai_model_spec"].startswith("1.")
    assert all(name in metadata["modelspec.title"] for name in names)
    assert metadata["ss_base_model_version"].startswith("sdxl_base")
    assert json.loads(metadata["trained_words"]) == names


def test_the_same_run_makes_the_same_bytes(denoiser, settings, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for path in (first, second):
        write_erasure(path, erasure_of(denoiser, settings()))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_exists_stays_unless_forced(erasure, written):
    before = written.read_bytes()
    with pytest.raises(FileError, match="van-gogh"):
        write_erasure(written, Erasure({"x.diff": torch.ones(1)}, {}))
    assert written.read_bytes() == before
    write_erasure(written, erasure, force=True)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


# -- applying --------------------------------------------------------------------------------


def test_strength_0_is_the_model_and_1_the_student(denoiser, settings):
    config = settings({"training.save_dtype": "fp32"})
    student = trained(denoiser, config)
    made = make_erasure(student, denoiser, config, 5, None)
    base = denoiser.parameters()
    for name, tensor in merged(denoiser, [(made, 0.0)]).items():
        assert torch.equal(tensor, base[name])
    for name, tensor in merged(denoiser, [(made, 1.0)]).items():
        torch.testing.assert_close(tensor, student.masters[name].detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, -2.0)])
def test_a_stack_is_the_sum(denoiser, settings, strengths):
    """Of two that overlap in part: base + s1 * change1 + s2 * change2."""
    stack = [
        erasure_of(denoiser, settings({"method": method, "training.save_dtype": "fp32"}), seed)
        for seed, method in enumerate(("esd-x", "esd-all"))
    ]
    tensors, base = (
        merged(denoiser, list(zip(stack, strengths, strict=True))),
        denoiser.parameters(),
    )
    changes = [made.change() for made in stack]
    assert tensors.keys() == changes[0].keys() | changes[1].keys()
    assert changes[0].keys() < changes[1].keys()
    for name, tensor in tensors.items():
        parts = [s * c[name] for s, c in zip(strengths, changes, strict=True) if name in c]
        torch.testing.assert_close(tensor, base[name] + sum(parts), rtol=1e-6, atol=1e-6)


def test_low_rank_and_full_stack(denoiser, settings):
    exact = {"training.save_dtype": "fp32", "method": "esd-u"}
    full = erasure_of(denoiser, settings(exact))
    low = erasure_of(denoiser, settings({**exact, "training.rank": 2}), 1)
    base, name = denoiser.parameters(), "input_blocks.1.0.in_layers.2.weight"
    tensor = merged(denoiser, [(full, 1.0), (low, 2.0)])[name]
    expected = base[name] + full.change()[name] + 2 * low.change()[name].view(base[name].shape)
    torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)


def test_sums_are_rounded_once(make_denoiser, settings):
    """Two changes of a third of a bf16 step each: neither would move the weight by itself."""
    denoiser = make_denoiser(torch.bfloat16)
    name = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    denoiser.parameters()[name].data.fill_(1.0)
    third = Erasure(
        {name.replace(".weight", ".diff"): torch.full((96, 96), 2**-7 / 3)},
        {"esd.base_architecture": "sdxl"},
    )
    assert merged(denoiser, [(third, 1.0)])[name].unique().tolist() == [1.0]
    twice = merged(denoiser, [(third, 1.0), (third, 1.0)])[name]
    assert twice.dtype == torch.bfloat16
    assert twice.unique().tolist() == [1.0 + 2**-7]


def test_applied_is_inside_only(denoiser, erasure):
    name = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    attention = denoiser.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    teacher = attention.to_v.weight
    with applied(denoiser, [(erasure, 1.0)]):
        torch.testing.assert_close(
            attention.to_v.weight, teacher + erasure.change()[name], rtol=1e-6, atol=1e-7
        )
        assert not attention.to_v.weight.requires_grad
    assert attention.to_v.weight is teacher


# -- what fits -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_the_same_weights_fit_silently_in_every_format(make_denoiser, erasure, dtype):
    assert check_fits(erasure, make_denoiser(dtype)) == ""


def test_other_weights_are_warned_of(make_denoiser, erasure):
    """How far they are apart is told: all weights 1.2 times as large."""
    other = make_denoiser()
    for parameter in other.parameters().values():
        parameter.data.mul_(1.2)
    assert "20%" in check_fits(erasure, other)


def test_a_file_that_says_nothing_of_its_base_is_taken(denoiser, erasure):
    assert check_fits(Erasure(erasure.tensors, {}), denoiser) == ""


def test_another_architecture_is_refused(denoiser, erasure):
    other = Erasure(erasure.tensors, {**erasure.metadata, "esd.base_architecture": "sd1"})
    for refuse in (lambda: check_fits(other, denoiser), lambda: merged(denoiser, [(other, 1.0)])):
        with pytest.raises(FileError, match=r"made for SD 1.x.*is SDXL"):
            refuse()


def replaced(erasure, tensor, suffix="attn2.to_v.diff"):
    """The erasure with one of its tensors in another form; and the key."""
    key = next(k for k in erasure.tensors if k.endswith(suffix))
    return Erasure({**erasure.tensors, key: tensor(erasure.tensors[key])}, erasure.metadata), key


@pytest.mark.parametrize(
    "bend",
    [
        lambda t: t[:-1],
        lambda t: t[:, :-1],
        lambda t: t.t().contiguous(),  # [out, in] of cross-attention: never square at the first
        lambda t: t.flatten(),
        lambda t: t.sum(),
    ],
)
def test_other_shapes_are_refused(denoiser, erasure, bend):
    other, key = replaced(erasure, bend, "input_blocks.3.1.transformer_blocks.0.attn2.to_v.diff")
    name = key.replace(".diff", ".weight")
    with pytest.raises(FileError, match=name.replace(".", r"\.")):
        check_fits(other, denoiser)
    with pytest.raises(FileError):
        merged(denoiser, [(other, 1.0)])


def test_a_linear_layer_and_a_1x1_convolution_are_the_same(denoiser, erasure):
    """SD 1.x has its projections as convolutions, SD 2.x and SDXL as linear layers."""
    other, _ = replaced(erasure, lambda t: t[:, :, None, None])
    assert check_fits(other, denoiser) == ""
    merged(denoiser, [(other, 1.0)])


def test_tensors_that_the_model_lacks_are_refused(denoiser, erasure):
    other = Erasure({**erasure.tensors, "far.away.diff": torch.ones(2)}, erasure.metadata)
    with pytest.raises(FileError, match=r"far\.away\.weight"):
        check_fits(other, denoiser)


# -- what is not an erasure -------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileError, match="nowhere"):
        read_erasure(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 200, 100_000, -1])
def test_a_file_that_is_cut_short_is_refused(written, keep):
    written.write_bytes(written.read_bytes()[:keep])
    with pytest.raises(FileError, match="van-gogh"):
        read_erasure(written)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_values_that_are_none_are_refused(tmp_path, value, dtype):
    path = tmp_path / "a.safetensors"
    bad = torch.ones(3, 2, dtype=dtype)
    bad[1, 1] = value
    save_file({f"{PREFIX}a.diff": bad, f"{PREFIX}b.diff": torch.ones(1)}, path)
    with pytest.raises(FileError, match=r"a\.diff .*not finite"):
        read_erasure(path)


def test_a_result_that_is_not_finite_is_not_made(denoiser, settings, tmp_path):
    """A change that float16 cannot hold, too."""
    config = settings({"training.save_dtype": "fp16"})
    student = make_student(denoiser, config)
    next(iter(student.masters.values())).data.fill_(1e6)
    with pytest.raises(ESDError, match=r"save_dtype|not finite"):
        write_erasure(tmp_path / "a", make_erasure(student, denoiser, config, 5, None))


def lora(out=4, rank=2, into=3):
    return {
        f"{PREFIX}a.lora_up.weight": torch.ones(out, rank),
        f"{PREFIX}a.lora_down.weight": torch.ones(rank, into),
        f"{PREFIX}a.alpha": torch.tensor(1.0),
    }


def without(tensors, part):
    return {key: tensor for key, tensor in tensors.items() if part not in key}


OTHER_FILES = {
    "empty": {},
    "a checkpoint": {"model.diffusion_model.a.weight": torch.ones(2)},
    "weights": {f"{PREFIX}a.weight": torch.ones(2)},
    "another's LoRA": {f"{PREFIX}a.diff": torch.ones(2), "lora_unet_a.alpha": torch.ones(1)},
    "no up": without(lora(), "up"),
    "no down": without(lora(), "down"),
    "no alpha": without(lora(), "alpha"),
    "two ranks": lora() | {f"{PREFIX}a.lora_down.weight": torch.ones(5, 3)},
    "two alphas": lora() | {f"{PREFIX}a.alpha": torch.ones(2)},
    "rank 0": lora(rank=0),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_refused(tmp_path, kind):
    """One sentence each, when the file is read or when its change is asked for."""
    path = tmp_path / "a.safetensors"
    save_file(OTHER_FILES[kind], path)
    with pytest.raises(FileError, match=r"a\.safetensors"):
        read_erasure(path).change()


@pytest.mark.parametrize(
    ("key", "value"), [("esd.concepts", "[oh"), ("esd.base_fingerprint", "1 2 x")]
)
def test_broken_metadata_is_refused(denoiser, erasure, tmp_path, key, value):
    path = tmp_path / "a.safetensors"
    write_erasure(path, Erasure(erasure.tensors, {**erasure.metadata, key: value}))

    def use():
        read = read_erasure(path)
        check_fits(read, denoiser)
        return read.concepts

    with pytest.raises(FileError, match=r"a\.safetensors"):
        use()


# -- fingerprints ----------------------------------------------------------------------------


def test_a_fingerprint_is_short_and_of_values(denoiser):
    """It fits into metadata, and what it holds are weights of the model, to four digits."""
    numbers = [float(word) for word in fingerprint(denoiser.parameters()).split()]
    assert 100 <= len(numbers) <= 1000
    weights = torch.cat([p.detach().flatten() for p in denoiser.parameters().values()])
    weights = weights.double().sort().values
    for number in numbers[:: len(numbers) // 20]:
        nearest = (weights - number).abs().min()
        assert nearest <= 5e-4 * abs(number)


def test_a_fingerprint_does_not_hang_on_the_order(denoiser):
    backwards = dict(reversed(list(denoiser.parameters().items())))
    assert fingerprint(backwards) == fingerprint(denoiser.parameters())
