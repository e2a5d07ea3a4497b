"""Method -> tensors, against the official filters applied to diffusers' own modules."""

import pytest
import torch
from unets import CONFIGS, SD1, SD1_COUNTS, SD2, SDXL, SDXL_COUNTS, meta_unet

from esd_core.config.settings import METHODS
from esd_core.errors import ConfigError, ESDError
from esd_core.models.architectures import ARCHITECTURES, REFINER
from esd_core.models.architectures import SD1 as SD_1
from esd_core.models.architectures import SD2 as SD_2
from esd_core.models.architectures import SDXL as XL
from esd_core.models.keys import diffusers_to_canonical, model_order
from esd_core.training.selection import select

ARCHITECTURE = {"sd1": SD_1, "sd2": SD_2}  # every other config here is SDXL-like


# Tensors and millions of parameters, counted with the official filters.
@pytest.mark.parametrize(
    ("name", "method", "count", "millions"),
    [("sdxl", method, *counts) for method, counts in SDXL_COUNTS.items()]
    + [("sd1", method, *counts) for method, counts in SD1_COUNTS.items()],
)
def test_counts_are_those_of_the_official_code(name, method, count, millions):
    names = diffusers_to_canonical(CONFIGS[name])
    parameters = {names[key]: value for key, value in meta_unet(name).named_parameters()}
    selected = select(method, parameters, ARCHITECTURES[name])
    assert len(selected) == count
    assert sum(parameters[key].numel() for key in selected) / 1e6 == pytest.approx(
        millions, abs=0.006
    )


def official_filter(method: str, name: str, is_sdxl: bool) -> bool:
    """The rules of esd_sd.py and esd_sdxl.py, on diffusers' module names."""
    if method == "esd-x":
        return "attn2" in name
    if method == "esd-x-strict":
        return "attn2.to_k" in name or "attn2.to_v" in name
    if method == "selfattn":
        return "attn1" in name
    inner = not is_sdxl or ("emb" not in name and "block" in name)
    return inner and (method == "esd-all" or "attn2" not in name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "refiner", "ssd-1b", "vega", "small-sdxl"])
def test_the_same_tensors_as_the_official_filter_by_module_type(name, method):
    architecture = ARCHITECTURE.get(name, XL)
    names = diffusers_to_canonical(CONFIGS[name])
    expected = {
        names[f"{path}.{kind}"]
        for path, module in meta_unet(name).named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and official_filter(method, path, architecture is XL)
        for kind, _ in module.named_parameters()
    }
    assert set(select(method, names.values(), architecture)) == expected


@pytest.mark.parametrize(("architecture", "config"), [(XL, SDXL), (SD_1, SD1)])
def test_input_and_output_convolutions_train_on_sd1_only(architecture, config):
    selected = select("esd-u", diffusers_to_canonical(config).values(), architecture)
    ends = {"input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight"}
    assert ends <= set(selected) if architecture is SD_1 else not ends & set(selected)
    has_time_projections = any(".emb_layers." in name for name in selected)
    assert has_time_projections == (architecture is SD_1)


def test_the_order_is_the_models_whatever_came_in():
    names = list(diffusers_to_canonical(SD2).values())
    selected = select("esd-x", names, SD_2)
    assert selected == select("esd-x", reversed(names), SD_2)
    assert list(selected) == sorted(selected, key=model_order)
    assert selected[0] == "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"


def test_the_label_table_of_the_upscaler_is_no_layer():
    names = diffusers_to_canonical(CONFIGS["sd2-upscaler"]).values()
    assert "label_emb.weight" in names
    assert "label_emb.weight" not in select("esd-all", names, SD_2)


def test_unknown_words_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'xattn'.*esd-x, esd-x-strict, esd-u, esd-all, selfattn"):
        select("xattn", ["out.2.weight"], SD_1)
    with pytest.raises(ConfigError, match="'esd-x' for the SDXL refiner"):
        select("esd-x", ["out.2.weight"], REFINER)


@pytest.mark.parametrize("names", [[], ["double_blocks.0.img_attn.qkv.weight"]])
def test_a_model_without_such_layers_is_refused(names):
    with pytest.raises(ESDError, match="esd-x"):
        select("esd-x", names, XL)
