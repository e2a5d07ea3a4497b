"""LoRAs of low rank: the nearest matrices, under the names that loaders look for."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from esd_core.errors import FileError
from esd_core.files.lora import kohya_name, low_rank, write_lora
from esd_core.models.keys import canonical_to_diffusers
from esd_core.models.loading import load_denoiser

LINEAR = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
CONV = "input_blocks.1.0.in_layers.2"


def of_singular_values(values, rows=6, columns=5, seed=0):
    """A matrix that has exactly these."""
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    left, _ = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(
        torch.randn(columns, count, generator=generator, dtype=torch.float64)
    )
    return (left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T).float()


def product(lora, layer):
    up, down = lora.factors[layer]
    return up.flatten(1) @ down.flatten(1)


def test_the_error_is_the_singular_values_left_out():
    matrix = of_singular_values([4.0, 3.0, 2.0, 1.0])
    lora = low_rank({f"{LINEAR}.weight": matrix}, rank=2)
    # Eckart and Young 1936: the squared error is the sum of the squares left out, 4 + 1 of 30.
    assert float((matrix - product(lora, LINEAR)).square().sum()) == pytest.approx(5.0, rel=1e-4)
    assert lora.kept_in_all == pytest.approx((25 / 30) ** 0.5, rel=1e-5)
    assert lora.rank == 2


@pytest.mark.parametrize(
    ("energy", "rank", "expected"),
    [(0.5, None, 1), (16 / 30, None, 1), (0.6, None, 2), (0.99, None, 4), (0.99, 3, 3)],
)
def test_energy_takes_the_smallest_rank_that_keeps_it(energy, rank, expected):
    matrix = of_singular_values([4.0, 3.0, 2.0, 1.0])  # shares of the square: 16, 9, 4, 1 of 30
    assert low_rank({f"{LINEAR}.weight": matrix}, rank, energy).rank == expected


def test_a_full_rank_is_the_change_itself_for_a_convolution_too():
    change = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    lora = low_rank({f"{CONV}.weight": change})
    up, down = lora.factors[CONV]
    assert up.shape == (8, 8, 1, 1) and down.shape == (8, 4, 3, 3)
    composed = torch.nn.functional.conv2d(down.transpose(0, 1), up.flatten(1)[:, :, None, None])
    assert torch.allclose(composed.transpose(0, 1), change, atol=1e-5)


def test_a_large_matrix_keeps_as_much_as_the_exact_decomposition_would():
    values = [0.97**k for k in range(250)]
    matrix = of_singular_values(values, rows=260, columns=300)
    lora = low_rank({f"{LINEAR}.weight": matrix}, rank=8)
    squares = [value**2 for value in values]
    assert lora.kept_in_all == pytest.approx((sum(squares[:8]) / sum(squares)) ** 0.5, rel=1e-3)
    error = float((matrix - product(lora, LINEAR)).square().sum())
    assert error == pytest.approx(sum(squares[8:]), rel=1e-3)
    again = low_rank({f"{LINEAR}.weight": matrix}, rank=8)
    assert product(again, LINEAR).equal(product(lora, LINEAR))


def test_what_has_no_rank_counts_as_lost():
    matrix, bias = of_singular_values([3.0]), torch.full((4,), 2.0)  # squared norms 9 and 16
    lora = low_rank({f"{LINEAR}.weight": matrix, f"{CONV}.bias": bias}, rank=1)
    assert lora.kept[f"{CONV}.bias"] == 0.0
    assert lora.kept_in_all == pytest.approx((9 / 25) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("change", [torch.zeros(4, 4), torch.ones(4)])
def test_nothing_to_write_is_one_sentence(change):
    with pytest.raises(FileError, match="changes no weight matrix"):
        low_rank({f"{LINEAR}.weight": change})


def test_names_of_sd1_are_diffusers_own():
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 96, 96), cross_attention_dim=8, attention_head_dim=8
    )
    theirs = {
        name.removesuffix(".weight").replace(".", "_")
        for name, _ in unet.named_parameters()
        if name.endswith(".weight")
    }
    layers = [
        name.removesuffix(".weight")
        for name in canonical_to_diffusers({})
        if name.endswith(".weight")
    ]
    assert {kohya_name(layer, "sd1") for layer in layers} == {f"lora_unet_{n}" for n in theirs}


def test_names_of_sdxl_are_kohyas():
    assert kohya_name(LINEAR, "sdxl") == (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    )


def test_the_file_says_what_it_keeps(tmp_path):
    lora = low_rank({f"{LINEAR}.weight": of_singular_values([4.0, 3.0])}, rank=1)
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, "sdxl", {"esd.format": "x", "esd.method": "esd-x"}, torch.float16)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert "esd.format" not in about and about["esd.method"] == "esd-x"
    assert json.loads(about["esd.lora_kept_by_layer"]) == {f"{LINEAR}.weight": 0.8}
    assert about["esd.lora_kept"] == "0.8000" and about["ss_network_dim"] == "1"
    stem = kohya_name(LINEAR, "sdxl")
    tensors = load_file(path)
    assert float(tensors[f"{stem}.alpha"]) == len(tensors[f"{stem}.lora_down.weight"]) == 1


def test_diffusers_loads_it_and_predicts_as_with_the_change(tmp_path):
    pocket = load_denoiser("pocket", "fp32", "cpu")
    generator = torch.Generator().manual_seed(2)
    change = {
        name: 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in pocket.parameters().items()
        if tensor.dim() in (2, 4)
    }
    path = tmp_path / "lora.safetensors"
    write_lora(path, low_rank(change), "sdxl", {}, torch.float32)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    rows, sigma = pocket.encode(["a house", ""], 128, 128), torch.tensor([8.0, 1.0])
    with torch.no_grad():
        plain = pocket.predict(x, sigma, rows)
        merged = {name: pocket.parameters()[name] + part for name, part in change.items()}
        with pocket.swapped(merged):
            expected = pocket.predict(x, sigma, rows)
        pocket.pipeline.load_lora_weights(path)
        came = pocket.predict(x, sigma, rows)
    assert (expected - plain).norm() > 0.1 * plain.norm()
    assert torch.allclose(came, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
