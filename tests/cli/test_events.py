"""What a run shows on the terminal."""

import pytest
import torch

from esd_core.cli.events import TerminalEvents
from esd_core.config.settings import ErasureConfig
from esd_core.images.render import render
from esd_core.models.loading import load_denoiser


@pytest.mark.parametrize(
    ("line", "prompt"), [("boat -> fish", "boat"), ("boat <- a boat at sea", "a boat at sea")]
)
def test_a_preview_draws_the_prompt_that_the_student_is_given(line, prompt, tmp_path):
    denoiser = load_denoiser("pocket", device="cpu")
    config = ErasureConfig.from_mapping({"concepts": [line], "width": 64, "height": 64, "seed": 5})
    events = TerminalEvents(denoiser, config, tmp_path / "a.safetensors")
    events.on_preview(1, {})
    (own,) = render(denoiser, [prompt], [5], 20, config.trajectory.guidance, 64, 64)
    drawn = torch.frombuffer(bytearray(events.cover.tobytes()), dtype=torch.uint8)
    assert torch.equal(drawn, own.permute(1, 2, 0).mul(255).round().byte().flatten())
