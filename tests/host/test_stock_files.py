"""What ComfyUI's own nodes save of an erased model is read as the change that it holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import Graph, drawn_with, files
from safetensors.torch import load_file, save_file

from esd_core.files.base import open_base
from esd_core.files.native import read_erasure
from esd_core.files.open import open_source
from esd_core.models.embedded import WEIGHTS

KINDS = {
    "lora": "lora",
    "full": "difference",
    "unet": "unet",
    "checkpoint": "checkpoint",
}


@pytest.fixture(scope="module")
def saved(server):
    """A training of every kind of layer, and what LoraSave, ModelSave and CheckpointSave made."""
    graph = Graph(server)
    model, clip, vae = graph.pocket()
    train = graph.train(model, clip, {}, steps=2, method="esd-all", filename_prefix="esd/for-stock")
    erased = [train, 0]
    difference = [graph.add("ModelMergeSubtract", model1=erased, model2=model, multiplier=1.0), 0]
    for name, kind in (("lora", "standard"), ("full", "full_diff")):
        graph.add(
            "LoraSave",
            model_diff=difference,
            rank=4096,
            lora_type=kind,
            bias_diff=True,
            filename_prefix=f"loras/stock/{name}",
        )
    graph.add("ModelSave", model=erased, filename_prefix="loras/stock/unet")
    graph.add(
        "CheckpointSave",
        model=erased,
        clip=clip,
        vae=vae,
        filename_prefix="loras/stock/checkpoint",
    )
    run = graph.run()
    assert run.ending == "execution_success", run.error
    return {name: files(server, f"loras/stock/{name}_*")[0] for name in KINDS}


@pytest.fixture(scope="module")
def base():
    return open_base(WEIGHTS)


@pytest.fixture(scope="module")
def true_change(server, saved):
    return dict(read_erasure(files(server, "loras/esd/for-stock*")[0]).change())


@pytest.fixture
def read(saved, base, true_change):
    """Reads one of the files: its changes, without those of zero of what was not trained."""

    def read(name):
        source = open_source(saved[name])
        assert source.kind == KINDS[name]
        got = dict(source.erasure(base).delta(base.weights))
        assert all(not got[other].any() for other in got.keys() - true_change.keys())
        return {trained: got[trained] for trained in true_change}

    return read


@pytest.mark.parametrize("name", ["unet", "checkpoint"])
def test_saved_weights_hold_the_change_exactly(base, true_change, read, name):
    for trained, change in read(name).items():
        start = base.weights[trained]
        assert change.equal((start + true_change[trained]) - start), trained


def test_a_full_difference_holds_the_change_as_fp16_can(true_change, read):
    """LoraSave takes the difference of the weights, which are below 2, and fp32 rounds them."""
    for trained, change in read("full").items():
        torch.testing.assert_close(change, true_change[trained], rtol=2**-11, atol=2**-23)


def test_an_extracted_lora_holds_what_extraction_left(saved, base, true_change, read):
    """LoraSave cuts off the largest hundredth of what it has decomposed: some of the change is
    lost in the file, even at full rank. Biases and norms are whole differences."""
    file, found = load_file(saved["lora"]), read("lora")
    assert {change.dim() for change in found.values()} == {1, 2, 4}
    for trained, change in found.items():
        expected, stem = true_change[trained], f"diffusion_model.{trained.rpartition('.')[0]}"
        if change.dim() == 1:
            torch.testing.assert_close(change, expected, rtol=2**-11, atol=2**-23)
            continue
        up, down = (file[f"{stem}.lora_{part}.weight"].double() for part in ("up", "down"))
        product = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view(change.shape)
        torch.testing.assert_close(change.double(), product, rtol=1e-4, atol=1e-7)
        assert (change - expected).norm() < 0.5 * expected.norm()


@pytest.mark.parametrize("name", ["lora", "full"])
def test_changes_draw_the_same_by_the_stock_loader_and_by_ours(saved, server, name):
    file = f"stock/{saved[name].name}"
    stock, _, _ = drawn_with(server, "LoraLoaderModelOnly", lora_name=file, strength_model=1.0)
    ours, _, _ = drawn_with(server, "ESDLoadErased", file=file, strength=1.0)
    assert np.array_equal(stock, ours)


@pytest.mark.parametrize("name", ["unet", "checkpoint"])
def test_saved_weights_draw_as_the_erasure_that_is_in_them(saved, server, name):
    native = f"esd/{files(server, 'loras/esd/for-stock*')[0].name}"
    expected, _, _ = drawn_with(server, "ESDLoadErased", file=native, strength=1.0)
    ours, _, _ = drawn_with(server, "ESDLoadErased", file=f"stock/{saved[name].name}", strength=1.0)
    assert np.array_equal(ours, expected)


def adapters(weight):
    """A small change of a matrix, by kind of adapter: its parts, as LyCORIS names them."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape):
        return torch.randn(shape, generator=generator) / 4

    out, into = weight.shape
    return {
        "LoHa": {
            **{f"hada_w{i}_a": random(out, 4) for i in (1, 2)},
            **{f"hada_w{i}_b": random(4, into) for i in (1, 2)},
        },
        "LoKr": {"lokr_w1": random(4, 4), "lokr_w2": random(out // 4, into // 4)},
        "DoRA": {
            "lora_up.weight": random(out, 4),
            "lora_down.weight": random(4, into),
            "dora_scale": weight.norm(dim=0, keepdim=True),
        },
    }


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
def test_adapters_of_other_kinds_go_through_the_hosts_own_loader(server, saved, base, kind):
    layer = "middle_block.1.transformer_blocks.0.attn2.to_v"
    stem = f"lora_unet_{layer.replace('.', '_')}"
    parts = adapters(base.weights[f"{layer}.weight"])[kind] | {"alpha": torch.tensor(4.0)}
    path = saved["lora"].with_name(f"{kind}.safetensors")
    save_file({f"{stem}.{part}": tensor for part, tensor in parts.items()}, path)
    assert open_source(path).kind == "foreign"
    file = f"stock/{path.name}"
    stock, _, _ = drawn_with(server, "LoraLoaderModelOnly", lora_name=file, strength_model=1.0)
    ours, _, _ = drawn_with(server, "ESDLoadErased", file=file, strength=1.0)
    none, _, _ = drawn_with(server, "ESDLoadErased", file=file, strength=0.0)
    assert np.array_equal(stock, ours) and not np.array_equal(ours, none)


def test_an_adapter_that_only_the_host_reads_is_not_converted(server, saved, base):
    layer = "middle_block.1.transformer_blocks.0.attn2.to_v"
    parts = adapters(base.weights[f"{layer}.weight"])["LoHa"] | {"alpha": torch.tensor(4.0)}
    path = saved["lora"].with_name("unconverted.safetensors")
    stem = f"lora_unet_{layer.replace('.', '_')}"
    save_file({f"{stem}.{part}": tensor for part, tensor in parts.items()}, path)
    graph = Graph(server)
    model, _, _ = graph.pocket()
    loaded = graph.add("ESDLoadErased", model=model, file=f"stock/{path.name}", strength=1.0)
    graph.add("ESDSaveErased", format="LoRA", filename_prefix="out/none", erasure=[loaded, 1])
    assert "an adapter of another kind than LoRA" in graph.run().error
    assert not files(server, "loras/out/none*")
