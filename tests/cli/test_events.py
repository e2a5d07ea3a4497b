"""What a run shows on the terminal."""

import pytest
import torch

from esd_core.cli.events import TerminalEvents
from esd_core.config.settings import ErasureConfig
from esd_core.images.render import render
from esd_core.models.loading import load_denoiser


@pytest.mark.parametrize(
    ("line", "prompt", "other"),
    [("boat -> fish", "boat", "fish"), ("boat <- a boat at sea", "a boat at sea", "boat")],
)
def test_a_preview_draws_the_prompt_that_the_student_is_given(line, prompt, other, tmp_path):
    """To a level of 255: where a tensor lies in memory can decide the last digit on a CPU."""
    denoiser = load_denoiser("pocket", device="cpu")
    config = ErasureConfig.from_mapping({"concepts": [line], "width": 64, "height": 64, "seed": 5})
    events = TerminalEvents(denoiser, config, tmp_path / "a.safetensors")
    events.on_preview(1, {})
    guidance = config.trajectory.guidance
    drawn = torch.frombuffer(bytearray(events.cover.tobytes()), dtype=torch.uint8).float()

    def away(asked):
        (own,) = render(denoiser, [asked], [5], 20, guidance, 64, 64)
        return (drawn - own.permute(1, 2, 0).mul(255).flatten()).abs().max()

    assert away(prompt) <= 1 < away(other)
