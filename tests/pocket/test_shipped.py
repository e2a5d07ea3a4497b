"""The embedded models themselves: what they are, and that an erasure on them does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from esd_core.config.mappings import override
from esd_core.config.presets import load_preset
from esd_core.config.settings import ErasureConfig
from esd_core.files.native import read_erasure, write_erasure
from esd_core.models.architectures import SD3, SDXL
from esd_core.models.embedded import EMBEDDED, POCKET, POCKET_DIT, WEIGHTS
from esd_core.models.headless import Headless
from esd_core.models.loading import load_denoiser
from esd_core.pocket.judge import judge, load_oracle
from esd_core.pocket.world import LOOKS, NOTHING, OBJECTS, draw_scene, in_look
from esd_core.training.run import erase
from esd_core.training.trainer import Progress

MEGABYTE = 2**20


class Quiet:
    """Neither listens nor asks for anything."""

    def on_step(self, progress: Progress) -> None: ...

    def on_preview(self, step: int, student: dict[str, torch.Tensor]) -> None: ...

    def on_save(self, step: int, path: Path) -> None: ...

    def on_probe(self, step: int, report: object) -> None: ...

    def should_stop(self) -> bool:
        return False

    def should_finish(self) -> bool:
        return False


@pytest.fixture(scope="module")
def pocket() -> Headless:
    return load_denoiser(POCKET)


def test_all_weights_fit_into_40_megabytes_and_the_transformer_into_10() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    of_transformer = [path for path in files if path.parent.name == "transformer"]
    for found, most in ((files, 40), (of_transformer, 10)):
        assert sum(path.stat().st_size for path in found) <= most * MEGABYTE


def test_the_weights_are_fp16() -> None:
    from esd_core.storage.reading import read_header

    for path in WEIGHTS.rglob("*.safetensors"):
        floats = {e.dtype for e in read_header(path).tensors.values() if e.dtype.is_floating_point}
        assert floats == {torch.float16}, path


def test_pocket_is_an_sdxl_in_miniature(pocket: Headless) -> None:
    assert pocket.architecture is SDXL
    config = pocket.network.config
    assert config.addition_embed_type == "text_time" and config.use_linear_projection
    assert sum(isinstance(d, int) and d > 0 for d in config.transformer_layers_per_block[1:]) == 2
    assert all(width % 32 == 0 for width in config.block_out_channels)
    assert pocket.latent_shape(128, 128) == (4, 16, 16)
    ids = pocket.pipeline.tokenizer("a house in the style of Van Gogh").input_ids
    # CLIP's own vocabulary, as any CLIP tokenizer gives it.
    assert ids == [49406, 320, 1212, 530, 518, 1844, 539, 2451, 19697, 49407]


def test_pocket_dit_is_an_sd3_in_miniature() -> None:
    denoiser = load_denoiser(POCKET_DIT)
    assert denoiser.architecture is SD3
    assert denoiser.latent_shape(128, 128) == (4, 16, 16)
    config = denoiser.config
    # What ComfyUI takes for granted: heads 64 wide, and as many blocks as heads.
    assert config["num_attention_heads"] == config["num_layers"] > 1
    assert config["attention_head_dim"] == 64 and config["qk_norm"] == "rms_norm"


@pytest.mark.parametrize("is_own", [True, False], ids=["own stage", "any stage"])
def test_the_oracle_reads_99_of_100_fresh_drawings(is_own: bool) -> None:
    """By the object, also where it stands on the stage of another: a boat under water is a boat."""
    rng = np.random.default_rng(987)
    asked = [(name, look) for name in OBJECTS for look in LOOKS] * 12
    stages = ["" if is_own else str(rng.choice(OBJECTS)) for _ in asked]
    drawn = [
        in_look(draw_scene(name, rng, stage), look, rng)
        for (name, look), stage in zip(asked, stages, strict=True)
    ]
    objects, looks = load_oracle().read(
        torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    )
    for kind, seen in ((0, objects), (1, looks)):
        right = [pair[kind] == guess for pair, guess in zip(asked, seen, strict=True)]
        assert np.mean(right) >= 0.99


def test_the_oracle_says_nothing_of_empty_stages() -> None:
    """And knows their looks: else an erased object would be "still shown" by a guess of six."""
    rng = np.random.default_rng(321)
    asked = [(stage, look) for stage in OBJECTS for look in LOOKS] * 8
    drawn = [in_look(draw_scene(NOTHING, rng, stage), look, rng) for stage, look in asked]
    objects, looks = load_oracle().read(
        torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    )
    assert np.mean([seen == NOTHING for seen in objects]) >= 0.97
    assert np.mean([look == seen for (_, look), seen in zip(asked, looks, strict=True)]) >= 0.99


def test_the_oracle_reads_soft_shapes_in_sharp_textures() -> None:
    """What pocket draws: an outline that is blurred, in dots or waves that are not."""
    rng = np.random.default_rng(654)
    asked = [(name, look) for name in OBJECTS for look in LOOKS] * 6
    drawn = []
    for name, look in asked:
        scene = Image.fromarray((draw_scene(name, rng) * 255).astype(np.uint8))
        soft = np.asarray(scene.filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
        faded = 0.7 * soft + 0.3 * soft.mean((0, 1))
        drawn.append(in_look(faded, look, rng))
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    objects, _ = load_oracle().read(pictures)
    assert np.mean([name == seen for (name, _), seen in zip(asked, objects, strict=True)]) >= 0.99


@pytest.fixture(scope="module", params=EMBEDDED)
def judged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The demo's run, read back from its file and judged on 24 pictures a name."""
    pocket, preset = load_denoiser(request.param), load_preset(request.param)
    config = ErasureConfig.from_mapping(override(preset, {"concepts": ["Van Gogh"]}))
    before = {name: value.clone() for name, value in pocket.parameters().items()}
    result = erase(pocket, config, Quiet(), Quiet())
    path = tmp_path_factory.mktemp("demo") / "erasure.safetensors"
    write_erasure(path, result.erasure)
    found = judge(pocket, [(read_erasure(path), 1.0)], per_pair=4).as_dict()
    assert all(torch.equal(value, before[name]) for name, value in pocket.parameters().items())
    return found


def test_an_erased_style_is_gone_and_the_rest_survives(judged: dict[str, Any]) -> None:
    assert judged["concepts"]["Van Gogh"]["before"] >= 0.9
    assert judged["concepts"]["Van Gogh"]["after"] <= 0.05
    assert judged["IRA"] >= 0.95 and judged["CRA"] >= 0.95


def test_no_neighbour_of_an_erased_style_loses_more_than_two_pictures(
    judged: dict[str, Any],
) -> None:
    assert judged["worst_drop"] <= 0.09
