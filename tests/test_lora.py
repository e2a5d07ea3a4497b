"""LoRAs at low rank: against the decomposition itself, and read by diffusers."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from test_keys import CONFIGS

from esd_core.formats.keys import diffusers_to_canonical
from esd_core.formats.lora import low_rank
from esd_core.selection import select

CONFIG = CONFIGS["small-sdxl"]


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(CONFIG)
    names = diffusers_to_canonical(CONFIG)
    return {names[name]: tensor for name, tensor in unet.state_dict().items()}


def change_of(base, method, seed=2):
    generator = torch.Generator().manual_seed(seed)
    names = select(method, base, "sdxl")
    return {n: torch.randn(base[n].shape, generator=generator) * 0.01 for n in names}


def matrices(low, stem):
    up, down = low.tensors[f"{stem}.lora_up.weight"], low.tensors[f"{stem}.lora_down.weight"]
    scale = float(low.tensors[f"{stem}.alpha"]) / len(down)
    return scale * up.flatten(1) @ down.flatten(1)


def test_the_rank_is_kept_to_and_the_part_kept_is_what_the_matrices_show(base):
    delta = change_of(base, "esd-all")
    low = low_rank(delta, CONFIG, rank=4, dtype=torch.float32)
    names = {ours: theirs for theirs, ours in diffusers_to_canonical(CONFIG).items()}
    whole = kept = 0.0
    for name, change in delta.items():
        size = float(change.double().square().sum())
        whole += size
        if change.dim() < 2:
            assert low.layers[name] == 0 and name not in low.ranks
            continue
        is_label = name.startswith("label_emb")
        known = (name if is_label else names[name]).removesuffix(".weight")
        product = matrices(low, "lora_unet_" + known.replace(".", "_"))
        assert torch.linalg.matrix_rank(product) == low.ranks[name] == min(4, *product.shape)
        rest = float((change.flatten(1) - product).double().square().sum())
        kept += size - rest
        assert low.layers[name] == pytest.approx((1 - rest / size) ** 0.5, abs=1e-4)
    assert low.kept == pytest.approx((kept / whole) ** 0.5, abs=1e-4)


def test_energy_chooses_the_smallest_rank_that_keeps_it(base):
    delta = change_of(base, "esd-x-strict")
    low = low_rank(delta, CONFIG, energy=0.8, dtype=torch.float32)
    assert set(low.ranks) == set(delta)
    for name, rank in low.ranks.items():
        squares = torch.linalg.svdvals(delta[name]).double().square()
        assert squares[:rank].sum() >= 0.8 * squares.sum() > squares[: rank - 1].sum()


def test_a_change_of_low_rank_is_kept_whole(base):
    name = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    out, into = base[name].shape
    delta = {name: torch.randn(out, 3) @ torch.randn(3, into) * 1e-3}
    low = low_rank(delta, CONFIG, energy=0.9999999, dtype=torch.float32)
    assert low.ranks[name] == 3 and low.kept == pytest.approx(1, abs=1e-6)
    (stem,) = {key.partition(".")[0] for key in low.tensors}
    torch.testing.assert_close(matrices(low, stem), delta[name], rtol=1e-4, atol=1e-7)


def test_a_layer_that_has_not_moved_needs_no_entry(base):
    name = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    low = low_rank({name: torch.zeros_like(base[name])}, CONFIG, rank=4)
    assert not low.tensors and low.kept == 1


@pytest.mark.parametrize("method", ["esd-x", "esd-u", "esd-all"])
def test_diffusers_reads_every_layer(base, method):
    """What load_lora_weights does with kohya's files: their names, then the UNet's adapter."""
    delta = change_of(base, method)
    low = low_rank(delta, CONFIG, rank=200, dtype=torch.float32)
    state, alphas = _convert_non_diffusers_lora_to_diffusers(dict(low.tensors))
    unet = UNet2DConditionModel.from_config(CONFIG)
    names = diffusers_to_canonical(CONFIG)
    unet.load_state_dict({theirs: base[ours] for theirs, ours in names.items()})
    inner = {key.removeprefix("unet."): tensor for key, tensor in state.items()}
    unet.load_lora_adapter(inner, prefix=None, network_alphas=None)
    unet.fuse_lora()
    unet.unload_lora()
    fused = unet.state_dict()
    for theirs, ours in names.items():
        wanted = base[ours] + (delta[ours] if ours in low.ranks else 0)
        torch.testing.assert_close(fused[theirs], wanted, rtol=1e-4, atol=1e-5)
