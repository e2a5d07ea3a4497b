"""The key map against diffusers' own modules (full size, on the meta device) and LDM's names."""

import re

import pytest
from unets import CONFIGS, SD1, SDXL, meta_unet

from esd_core.errors import ESDError
from esd_core.models.keys import canonical_to_diffusers, diffusers_to_canonical, model_order


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_one_name_of_its_own(name):
    unet = meta_unet(name)
    names = diffusers_to_canonical(CONFIGS[name])
    assert names.keys() == unet.state_dict().keys()
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_modules_own_config_gives_the_same_map(name):
    config = meta_unet(name).config
    assert diffusers_to_canonical(config) == diffusers_to_canonical(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_inverse_inverts_and_keeps_the_order(name):
    forward = diffusers_to_canonical(CONFIGS[name])
    backward = canonical_to_diffusers(CONFIGS[name])
    assert list(backward) == list(forward.values())
    assert list(backward.values()) == list(forward)


@pytest.mark.parametrize(
    ("name", "millions"), [("sd1", 859.52), ("sdxl", 2567.46), ("ssd-1b", 1330), ("vega", 745)]
)
def test_the_configs_are_those_of_the_published_models(name, millions):
    count = sum(parameter.numel() for parameter in meta_unet(name).parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.002)


SDXL_NAMES = {
    "conv_in.weight": "input_blocks.0.0.weight",
    "time_embedding.linear_1.weight": "time_embed.0.weight",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    "add_embedding.linear_2.bias": "label_emb.0.2.bias",
    "down_blocks.0.resnets.1.norm1.weight": "input_blocks.2.0.in_layers.0.weight",
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "down_blocks.1.resnets.0.conv1.weight": "input_blocks.4.0.in_layers.2.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    ),
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight": (
        "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight"
    ),
    "mid_block.resnets.0.time_emb_proj.weight": "middle_block.0.emb_layers.1.weight",
    "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
    "mid_block.resnets.1.conv2.bias": "middle_block.2.out_layers.3.bias",
    "up_blocks.0.resnets.0.norm2.bias": "output_blocks.0.0.out_layers.0.bias",
    "up_blocks.0.attentions.2.norm.weight": "output_blocks.2.1.norm.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
    "up_blocks.1.upsamplers.0.conv.bias": "output_blocks.5.2.conv.bias",
    "up_blocks.2.resnets.2.conv_shortcut.bias": "output_blocks.8.0.skip_connection.bias",
    "conv_norm_out.weight": "out.0.weight",
    "conv_out.bias": "out.2.bias",
}
SD1_NAMES = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias": (
        "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.bias"
    ),
    "down_blocks.2.downsamplers.0.conv.bias": "input_blocks.9.0.op.bias",
    "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.attentions.0.transformer_blocks.0.norm3.weight": (
        "output_blocks.3.1.transformer_blocks.0.norm3.weight"
    ),
    "up_blocks.2.upsamplers.0.conv.weight": "output_blocks.8.2.conv.weight",
    "up_blocks.3.attentions.2.proj_out.weight": "output_blocks.11.1.proj_out.weight",
}


@pytest.mark.parametrize(
    ("config", "expected"), [(SDXL, SDXL_NAMES), (SD1, SD1_NAMES)], ids=["sdxl", "sd1"]
)
def test_names_are_those_of_ldm(config, expected):
    names = diffusers_to_canonical(config)
    assert {name: names[name] for name in expected} == expected


@pytest.mark.parametrize("name", ["ssd-1b", "vega"])
def test_a_mid_block_without_attention_is_one_residual_block(name):
    middle = {
        canonical.split(".")[1]
        for canonical in diffusers_to_canonical(CONFIGS[name]).values()
        if canonical.startswith("middle_block.")
    }
    assert middle == {"0"}


def test_ssd_1b_depths_follow_the_reversed_list():
    pattern = re.compile(r"output_blocks\.(\d+)\.1\.transformer_blocks\.(\d+)\.norm1\.weight")
    found = [pattern.fullmatch(name) for name in diffusers_to_canonical(CONFIGS["ssd-1b"]).values()]
    depths: dict[str, int] = {}
    for match in filter(None, found):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    assert depths == {"0": 4, "1": 4, "2": 10, "3": 2, "4": 1, "5": 1}


def test_model_order_is_that_of_the_forward_pass():
    names = [
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.2.0.in_layers.2.weight",
        "input_blocks.10.0.in_layers.2.weight",
        "input_blocks.10.1.transformer_blocks.0.attn1.to_q.weight",
        "input_blocks.10.1.transformer_blocks.0.attn2.to_q.weight",
        "middle_block.0.in_layers.2.weight",
        "output_blocks.0.0.in_layers.2.weight",
        "output_blocks.0.0.in_layers.2.bias",
        "out.2.weight",
        "something.else",
    ]
    assert sorted(reversed(names), key=model_order) == names


@pytest.mark.parametrize(
    "change",
    [
        {"time_cond_proj_dim": 256},
        {"addition_embed_type": "text"},
        {"class_embed_type": "projection"},
        {"attention_type": "gated"},
        {"dual_cross_attention": True},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"down_block_types": ["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"]},
        {"down_block_types": ["DownBlock2D"]},
        {"layers_per_block": [2, 2]},
        {"transformer_layers_per_block": [[1], [2], [10, 10]]},
    ],
    ids=str,
)
def test_a_structure_without_ldm_names_is_refused(change):
    with pytest.raises(ESDError, match="UNet"):
        diffusers_to_canonical({**SDXL, **change})
