"""The command line on pipelines of SD3's and FLUX.1's kind, in miniature."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from pipelines import flux_pipeline, sd3_pipeline
from safetensors.torch import load_file

from esd_core.cli.console import StopRequest
from esd_core.cli.main import main
from esd_core.errors import FileError
from esd_core.files.apply import applied
from esd_core.files.base import Base, open_base
from esd_core.files.native import read_erasure
from esd_core.files.open import open_source
from esd_core.models.loading import load_denoiser

NETWORKS = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}
MAKERS = {"sd3": sd3_pipeline, "flux": flux_pipeline}
STEPS = 12
RATES = {"sd3": 2e-3, "flux": 5e-4}
"""At a higher one FLUX's miniature, whose T5 knows few words, moves more than it learns."""


def esd(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module", params=NETWORKS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as diffusers writes it, and settings for quick runs."""
    folder = tmp_path_factory.mktemp(kind)
    MAKERS[kind]().save_pretrained(folder / "model")
    (folder / "run.toml").write_text(
        f"contexts = []\nwidth = 64\nheight = 64\n[training]\nsteps = {STEPS}\nbatch_size = 2\n"
        f"learning_rate = {RATES[kind]}\n[trajectory]\nsteps = 3\ncount = 1\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def words(folder: Path) -> tuple[object, ...]:
    """Of `esd erase` and `esd plan`."""
    model = ("--model", folder / "model", "--device", "cpu")
    return *model, "--concept", "Van Gogh", "--config", folder / "run.toml"


@pytest.fixture(scope="module")
def file(words: tuple[object, ...], folder: Path) -> Path:
    """An erasure of the defaults, and its report."""
    out = folder / "a.safetensors"
    before = {p: p.read_bytes() for p in (folder / "model").rglob("*") if p.is_file()}
    assert esd("erase", *words, "--out", out, "--report", folder / "report.json") == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    return out


def test_it_learns(file: Path, folder: Path, kind: str) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["architecture"] == kind
    assert report["training"]["final_loss"] > 0
    (share,) = report["training"]["probes"]["share"].values()
    assert share < 1
    changed = read_erasure(file).change()
    text = {"sd3": ".context_block.attn.", "flux": ".txt_attn."}[kind]
    assert changed and all(text in name for name in changed)
    assert all(value.abs().max() > 0 for value in changed.values())


def test_a_resumed_run_is_the_one_that_never_stopped(
    file: Path, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "a.safetensors", count()
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "should_stop", lambda _: next(asked) >= STEPS // 2)
        assert esd("erase", *words, "--out", out) == 130
    assert not out.exists()
    assert esd("erase", *words, "--out", out, "--resume") == 0
    assert out.read_bytes() == file.read_bytes()


def test_a_low_rank_student(words: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    given = ("--method", "esd-all", "--rank", 4, "--steps", 3, "--learning-rate", 1e-2)
    assert esd("erase", *words, *given, "--out", out) == 0
    erasure = read_erasure(out)
    assert any(name.endswith(".lora_up.weight") for name in erasure.tensors)
    assert all(value.abs().max() > 0 for value in erasure.change().values())


def test_plan_compare_and_inspect(
    file: Path, words: tuple[object, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert esd("plan", *words) == 0
    assert "needed beside the weights" in capsys.readouterr().out
    grid = folder / "grid.png"
    given = ("--prompt", "a house by Van Gogh", "--steps", 2, "--width", 64, "--height", 64)
    model = words[:4]
    assert esd("compare", *model, "--erased", file, *given, "--out", grid) == 0
    assert grid.is_file()
    assert esd("inspect", file, "--model", folder / "model") == 0
    assert "attention of text" in capsys.readouterr().out


# -- files -----------------------------------------------------------------------------------


def exported(file: Path, folder: Path, to: str, out: Path, *words: object) -> Path:
    model = ("--model", folder / "model")
    assert esd("export", file, *model, "--to", to, "--dtype", "fp32", *words, "--out", out) == 0
    return out


def test_the_folder_is_the_erased_network(
    file: Path, folder: Path, kind: str, tmp_path: Path
) -> None:
    out = exported(file, folder, "diffusers", tmp_path / "erased")
    loaded = NETWORKS[kind].from_pretrained(out).state_dict()
    denoiser = load_denoiser(str(folder / "model"), "fp32", "cpu")
    with applied(denoiser, [(read_erasure(file), 1.0)]):
        expected = {
            name: module._parameters[leaf] for name, (module, leaf) in denoiser._slots.items()
        }
    assert {*expected} <= {*loaded}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_what_it_is_exported_to_reads_back(file: Path, folder: Path, tmp_path: Path) -> None:
    base = open_base(folder / "model")
    change = read_erasure(file).change()
    forms = {
        "unet": tmp_path / "whole.safetensors",
        "diffusers": tmp_path / "whole",
        "lora": tmp_path / "lora.safetensors",
    }
    for form, out in forms.items():
        exact = ("--energy", 1) if form == "lora" else ()
        found = open_source(exported(file, folder, form, out, *exact)).erasure(base).change()
        weights = [name for name in change if form != "lora" or name.endswith(".weight")]
        assert found.keys() == {*weights}
        for name in weights:
            assert torch.allclose(found[name], change[name], atol=1e-5), (form, name)


def test_a_whole_file_is_a_base_too(file: Path, folder: Path, tmp_path: Path) -> None:
    whole = exported(file, folder, "unet", tmp_path / "whole.safetensors")
    one, other = open_base(whole), open_base(folder / "model")
    known = ("_class_name", "num_layers", "num_attention_heads", "joint_attention_dim")
    assert all(one.config[name] == other.config[name] for name in known)
    assert one.weights.keys() == other.weights.keys() and one.tables.keys() == other.tables.keys()
    assert one.architecture is other.architecture


def test_pipelines_load_the_lora(file: Path, folder: Path, kind: str, tmp_path: Path) -> None:
    """As diffusers names it, or as it converts it."""
    lora = exported(file, folder, "lora", tmp_path / "lora.safetensors", "--energy", 1)
    denoiser = load_denoiser(str(folder / "model"), "fp32", "cpu")
    base = Base(denoiser.architecture, denoiser.config, denoiser.parameters())
    shape = denoiser.latent_shape(64, 64)
    x, sigma = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), torch.ones(1)
    row = denoiser.encode(["a house"], 64, 64)
    with torch.no_grad():
        with applied(denoiser, [(open_source(lora).erasure(base), 1.0)]):
            expected = denoiser.predict(x, sigma, row)
        pipeline = MAKERS[kind]()
        pipeline.load_lora_weights(load_file(lora))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        fused = type(denoiser).of(pipeline)
        got = fused.predict(x, sigma, row)
    assert not torch.allclose(expected, denoiser.predict(x, sigma, row), rtol=1e-3)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_change_of_another_model_is_refused(file: Path, tmp_path: Path, kind: str) -> None:
    other = {"sd3": flux_pipeline, "flux": sd3_pipeline}[kind]()
    other.transformer.save_pretrained(tmp_path / "other")
    with pytest.raises(FileError, match="was made for"):
        open_source(file).erasure(open_base(tmp_path / "other"))
