"""Erasures in every kind of file: what they are taken for, and that conversions lose nothing."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from unets import CONFIGS, SD1, SD2

from esd_core.errors import FileError
from esd_core.files.apply import check_fits, fingerprint
from esd_core.files.base import Base, open_base
from esd_core.files.erasure import Erasure
from esd_core.files.export import export, official_name
from esd_core.files.formats import DIFFUSERS, ERASURE, LORA, OFFICIAL, UNET
from esd_core.files.native import write_erasure
from esd_core.files.open import open_source
from esd_core.models.architectures import ARCHITECTURES
from esd_core.models.keys import canonical_to_diffusers, diffusers_to_canonical
from esd_core.models.structure import unet_config
from esd_core.storage.reading import read_header

_SMALL = {"block_out_channels": [32, 32, 32, 32]}
SHAPES = {
    "sdxl": {
        **CONFIGS["small-sdxl"],
        "block_out_channels": [32, 64, 64],
        "attention_head_dim": 2,
        "cross_attention_dim": 2048,
    },
    "sd1": {**SD1, **_SMALL},
    "sd2": {**SD2, **_SMALL, "attention_head_dim": 1},
}
EXACT = (ERASURE, UNET, DIFFUSERS, OFFICIAL)


@dataclass
class Model:
    """A base of one shape, and what was erased from it: both of fp16's values, held in fp32, so
    that their difference is exact."""

    base: Base
    delta: dict[str, torch.Tensor]

    def erasure(self) -> Erasure:
        ends = {"weight": "diff", "bias": "diff_b"}
        tensors = {
            f"{name.rpartition('.')[0]}.{ends[name.rpartition('.')[2]]}": change
            for name, change in self.delta.items()
        }
        metadata = {
            "esd.format": "esd-erasure-1",
            "esd.base_architecture": self.base.architecture.name,
            "esd.base_fingerprint": fingerprint(self.base.weights),
            "esd.anchors": json.dumps({"cowboy hat": "cowboy"}),
            "esd.method": "esd-x-strict",
        }
        return Erasure(tensors, metadata)


def trained_in(name: str) -> bool:
    """Attention, a few convolutions with their biases, and the norms of the middle."""
    return ".attn2." in name or name.startswith(("middle_block.0", "input_blocks.1.0", "out."))


@pytest.fixture(scope="module", params=SHAPES)
def model(request) -> Model:
    torch.manual_seed(3)
    config = SHAPES[request.param]
    unet, names = UNet2DConditionModel.from_config(config), diffusers_to_canonical(config)
    weights = {names[n]: t.detach().half().float() for n, t in unet.state_dict().items()}
    delta = {
        name: (tensor + 0.02 * torch.randn(tensor.shape)).half().float() - tensor
        for name, tensor in weights.items()
        if trained_in(name)
    }
    assert {t.dim() for t in delta.values()} == {1, 2, 4}
    return Model(Base(ARCHITECTURES[request.param], dict(unet.config), weights), delta)


def written(model: Model, form: str, erasure: Erasure, path: Path) -> Path:
    export(form, path, erasure, model.base, dtype=torch.float32)
    return path


def assert_same(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


# -- conversions -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", EXACT)
def test_every_pair_of_formats_gives_the_same_tensors_again(model, tmp_path, first):
    one = written(model, first, model.erasure(), tmp_path / first)
    source = open_source(one)
    kinds = {ERASURE: "difference"}  # written again, and marked as not an erasure
    assert source.kind in (first, kinds.get(first)), source.kind
    for second in EXACT:
        two = written(model, second, source.erasure(model.base), tmp_path / f"{first}-{second}")
        assert_same(open_source(two).erasure(model.base).delta(model.base.weights), model.delta)


@pytest.mark.parametrize("form", [UNET, DIFFUSERS])
def test_what_was_written_whole_is_a_base_again(model, tmp_path, form):
    base = open_base(written(model, form, Erasure({}, {}), tmp_path / "base"))
    assert base.architecture == model.base.architecture
    assert_same(base.weights, model.base.weights)
    assert diffusers_to_canonical(base.config) == diffusers_to_canonical(model.base.config)
    official = written(model, OFFICIAL, model.erasure(), tmp_path / "official")
    assert_same(open_source(official).erasure(base).delta(base.weights), model.delta)


def test_marks_of_the_prediction_are_kept(model, tmp_path):
    marked = Base(model.base.architecture, model.base.config, model.base.weights, ("v_pred",))
    path = tmp_path / "unet.safetensors"
    export(UNET, path, Erasure({}, {}), marked, dtype=torch.float32)
    assert open_base(path).prediction_markers == ("v_pred",)


def test_a_lora_of_full_rank_holds_all_but_biases_and_norms(model, tmp_path):
    path = tmp_path / "lora"
    told = export(LORA, path, model.erasure(), model.base, dtype=torch.float32)
    source = open_source(path)
    assert source.kind == "lora" and "keeps" in told
    change = source.erasure(model.base).delta(model.base.weights)
    assert set(change) == {name for name, tensor in model.delta.items() if tensor.dim() > 1}
    for name, tensor in change.items():
        torch.testing.assert_close(tensor, model.delta[name], rtol=1e-4, atol=1e-6)


def test_the_same_export_gives_the_same_bytes(model, tmp_path):
    for form in (ERASURE, UNET, OFFICIAL, LORA):
        one, two = (
            written(model, form, model.erasure(), tmp_path / f"{form}{i}").read_bytes()
            for i in (1, 2)
        )
        assert one == two


def test_the_official_name_says_what_went_from_what(model):
    name = official_name(model.erasure().metadata)
    assert name == "esd-cowboy_hat-from-cowboy-esdxstrict.safetensors"
    assert official_name({}) == "esd-erased-from-erased-esd.safetensors"
    assert "/" not in official_name({"esd.anchors": '{"../../a": ""}'})


@pytest.mark.parametrize("strength", [0.5, -2.0])
def test_strength_goes_into_every_form(model, tmp_path, strength):
    for form in EXACT:
        path = tmp_path / f"{form}"
        export(form, path, model.erasure(), model.base, strength, torch.float32)
        got = open_source(path).erasure(model.base).delta(model.base.weights)
        for name, change in model.delta.items():
            torch.testing.assert_close(got[name], strength * change, rtol=1e-3, atol=1e-6)


# -- what others write -------------------------------------------------------------------------


def names_by(model: Model, layer: str) -> dict[str, str]:
    """What programs call a layer: way -> the name in front of the parts."""
    theirs = canonical_to_diffusers(model.base.config)[f"{layer}.weight"].removesuffix(".weight")
    return {
        "kohya": "lora_unet_" + theirs.replace(".", "_"),
        "kohya sgm": "lora_unet_" + layer.replace(".", "_"),
        "peft": "unet." + theirs,
        "bare": theirs,
        "processor": "unet." + theirs.replace(".to_", ".processor.to_").removesuffix(".0"),
        "LoraSave": "diffusion_model." + layer,
        "lycoris": "lycoris_" + theirs.replace(".", "_"),
    }


PARTS = {
    "kohya": ("lora_up.weight", "lora_down.weight", "alpha"),
    "kohya sgm": ("lora_up.weight", "lora_down.weight", "alpha"),
    "peft": ("lora_B.weight", "lora_A.weight"),
    "bare": ("lora.up.weight", "lora.down.weight"),
    "processor": ("_lora.up.weight", "_lora.down.weight"),
    "LoraSave": ("lora_up.weight", "lora_down.weight"),
    "lycoris": ("lora_up.weight", "lora_down.weight", "alpha"),
}


def lora_of(model: Model, way: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A LoRA of the attention as that program writes it, and the change that it makes."""
    up_part, down_part, *alpha_part = PARTS[way]
    file, change = {}, {}
    for name in (n for n in model.delta if ".attn2." in n and n.endswith(".weight")):
        layer = name.removesuffix(".weight")
        stem, dot = names_by(model, layer)[way], "" if way == "processor" else "."
        out, into = model.delta[name].shape
        up, down = torch.randn(out, 4), torch.randn(4, into)
        file[f"{stem}{dot}{up_part}"], file[f"{stem}{dot}{down_part}"] = up, down
        if alpha_part:
            file[f"{stem}{dot}alpha"] = torch.tensor(2.0)
        change[name] = (0.5 if alpha_part else 1.0) * (up @ down)
    return file, change


@pytest.mark.parametrize("way", PARTS)
def test_loras_of_every_naming_are_read(model, tmp_path, way):
    file, change = lora_of(model, way)
    save_file(file, tmp_path / "a.bin")
    source = open_source(tmp_path / "a.bin")
    assert source.kind == "lora" and source.architecture == model.base.architecture.name
    got = source.erasure(model.base).delta(model.base.weights)
    assert got.keys() == change.keys()
    for name, tensor in change.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-5)


def test_lycoris_full_differences_are_read_with_norms_and_text_skipped(model, tmp_path):
    file = {"lora_te_text_model_encoder_layers_0_mlp_fc1.diff": torch.ones(3, 3)}
    ends = {"weight": "diff", "bias": "diff_b"}
    for name, change in model.delta.items():
        layer, _, leaf = name.rpartition(".")
        is_norm = change.dim() == 1 and "0.weight" in name
        end = {"weight": "w_norm", "bias": "b_norm"}[leaf] if is_norm else ends[leaf]
        if f"{layer}.weight" in model.base.weights:
            file[f"{names_by(model, layer)['kohya']}.{end}"] = change
    save_file(file, tmp_path / "a")
    source = open_source(tmp_path / "a")
    assert source.kind == "difference" and source.skipped == 1
    assert_same(source.erasure(model.base).delta(model.base.weights), model.delta)


def test_a_checkpoint_and_bare_weights_are_whole_unets(model, tmp_path):
    sums = {n: t + model.delta.get(n, 0) for n, t in model.base.weights.items()}
    others = {"first_stage_model.encoder.conv_in.weight": torch.ones(4)}
    for kind, file in {
        "checkpoint": {f"model.diffusion_model.{n}": t for n, t in sums.items()} | others,
        "unet": {f"diffusion_model.{n}": t for n, t in sums.items()},
        "unet ": sums,
        "diffusers": {canonical_to_diffusers(model.base.config)[n]: t for n, t in sums.items()},
    }.items():
        save_file({n: t.contiguous() for n, t in file.items()}, tmp_path / kind)
        source = open_source(tmp_path / kind)
        assert source.kind == kind.strip()
        assert_same(source.erasure(model.base).delta(model.base.weights), model.delta)


def test_a_whole_unet_in_half_precision_has_changed_only_where_it_was_erased(model, tmp_path):
    path = tmp_path / "unet"
    export(UNET, path, model.erasure(), model.base, dtype=torch.float16)
    got = open_source(path).erasure(model.base).delta(model.base.weights)
    assert_same(got, model.delta)  # all its values are fp16's


# -- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*EXACT, LORA])
def test_another_architecture_is_refused_by_name(model, tmp_path, form):
    path = written(model, form, Erasure(model.erasure().tensors, {}), tmp_path / "a")
    for name in set(SHAPES) - {model.base.architecture.name}:
        other = ARCHITECTURES[name]
        base = Base(other, SHAPES[name], {})
        said = f"made for {model.base.architecture.title}, and this model is {other.title}"
        with pytest.raises(FileError, match=said):
            open_source(path).erasure(base)


def test_other_weights_of_the_same_architecture_are_warned_about(model):
    tuned = {name: tensor * 1.1 for name, tensor in model.base.weights.items()}
    other = Base(model.base.architecture, model.base.config, tuned)
    assert "other weights" in check_fits(model.erasure(), other)
    assert check_fits(model.erasure(), model.base) == ""


REFUSED = {
    "LoHa": ({"lora_unet_a.hada_w1_a": torch.ones(2, 2)}, "another kind than LoRA"),
    "LoKr": ({"lora_unet_a.lokr_w1": torch.ones(2, 2)}, "another kind than LoRA"),
    "DoRA": ({"lora_unet_a.dora_scale": torch.ones(2)}, "another kind than LoRA"),
    "another model's": ({"lora_unet_elsewhere.diff": torch.ones(2)}, "elsewhere"),
    "text alone": ({"lora_te_a.diff": torch.ones(2)}, "not an erasure file"),
    "an optimizer": ({"exp_avg": torch.ones(2)}, "not an erasure file"),
    "whole numbers": ({"down_blocks.0.a.weight": torch.ones(2).int()}, "no place"),
    "not finite": ({"lora_unet_a.diff": torch.tensor([float("nan")])}, "not finite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_sentence(model, tmp_path, kind):
    tensors, said = REFUSED[kind]
    save_file(tensors, tmp_path / "a")
    with pytest.raises(FileError, match=said):
        open_source(tmp_path / "a").erasure(model.base)


def test_absolute_weights_that_are_not_finite_are_refused(model, tmp_path):
    path = written(model, OFFICIAL, model.erasure(), tmp_path / "a")
    tensors = load_file(path)
    tensors[min(tensors)][0] = float("inf")
    save_file(tensors, path)
    with pytest.raises(FileError, match="not finite"):
        open_source(path).erasure(model.base)


@pytest.mark.parametrize(
    ("form", "alpha"),
    [*((form, 1e38) for form in (*EXACT, LORA)), *((f, 3e4) for f in (UNET, DIFFUSERS, OFFICIAL))],
)
def test_what_would_not_be_finite_is_not_written(model, tmp_path, form, alpha):
    """A LoRA's damaged alpha: at 1e38 the change overflows, at 3e4 only its sum as fp16."""
    file, _ = lora_of(model, "kohya")
    file |= {name: torch.tensor(alpha) for name in file if name.endswith(".alpha")}
    save_file(file, tmp_path / "lora")
    erasure = open_source(tmp_path / "lora").erasure(model.base)
    with pytest.raises(FileError, match="not be finite as float"):
        export(form, tmp_path / "out", erasure, model.base)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_the_foreign_tensor_is_named(model, tmp_path):
    file, _ = lora_of(model, "kohya")
    save_file({**file, "zzz.step": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(FileError, match=r'holds "zzz\.step"'):
        open_source(tmp_path / "a")


BAD_METADATA = {
    "esd.concepts": ['[{"a": 1}]', "[[1]]", '"hat"', "null", "7", "{}", "[" * 100_000],
    "esd.base_fingerprint": ["1 2 x", "1 nan", "inf"],
}


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key, texts in BAD_METADATA.items() for text in texts]
)
def test_metadata_of_another_shape_is_refused_as_soon_as_a_file_is_opened(tmp_path, key, text):
    save_file({"diffusion_model.out.2.diff": torch.ones(2)}, tmp_path / "a", {key: text})
    with pytest.raises(FileError, match="its metadata cannot be read"):
        open_source(tmp_path / "a")


HUGE = 1_000_000_000


@pytest.mark.parametrize(
    "entry",
    [
        {"layers_per_block": HUGE},
        {"layers_per_block": [2, 2, HUGE]},
        {"transformer_layers_per_block": HUGE},
        {"transformer_layers_per_block": [1, [1, HUGE], 1]},
        {"layers_per_block": -HUGE},
    ],
    ids=str,
)
def test_a_config_of_absurd_size_is_refused_at_once(tmp_path, entry):
    config = {**CONFIGS["small-sdxl"], **entry}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(FileError, match=r"config\.json .*and 100 is the most"):
        open_base(tmp_path)


# -- structure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "sd2-upscaler"])
def test_the_structure_is_read_off_the_shapes(name):
    """As diffusers' own modules show it, at full size."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(CONFIGS[name])
        names = diffusers_to_canonical(CONFIGS[name])
        shapes = {names[n]: tuple(t.shape) for n, t in unet.state_dict().items()}
        again = UNet2DConditionModel.from_config(unet_config(shapes))
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in unet.state_dict().items()
    }


def test_a_part_of_a_unet_is_no_base(model, tmp_path):
    path = tmp_path / "part"
    write_erasure(path, model.erasure())
    with pytest.raises(FileError, match="base for an erasure"):
        open_base(path)
    part = {f"model.diffusion_model.{n}": model.base.weights[n] for n in model.delta}
    save_file(part, tmp_path / "half")
    with pytest.raises(FileError, match="base for an erasure"):
        open_base(tmp_path / "half")
    assert read_header(path).metadata["esd.method"] == "esd-x-strict"
