"""Pictures are planned before the first is drawn: commands refuse, a run skips its preview."""

import json

import pytest
import torch

from esd_core.cli.events import TerminalEvents
from esd_core.cli.main import main
from esd_core.files.native import write_erasure
from esd_core.models.headless import Headless
from esd_core.training.run import erase

MODEL = ("--model", "pocket", "--device", "cpu")


@pytest.fixture
def erased(denoiser, settings, recorder, tmp_path):
    host, file = recorder(), tmp_path / "a.safetensors"
    write_erasure(file, erase(denoiser, settings({"training.steps": 1}), host, host).erasure)
    return str(file)


@pytest.fixture
def little(monkeypatch):
    """Nothing may be drawn, with a megabyte free."""
    monkeypatch.setattr(Headless, "free_memory", lambda _: 10**6)
    monkeypatch.setattr(Headless, "decode", None)


def test_commands_that_draw_refuse(erased, little, tmp_path, capsys):
    out = tmp_path / "grid.png"
    compare = ("compare", *MODEL, "--erased", erased, "--prompt", "a house", "--out", str(out))
    for words in (compare, ("evaluate", *MODEL, "--erased", erased)):
        assert main(words) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("esd: a picture of 128x128 needs ") and "are free on cpu" in told
    assert not out.exists()


def test_a_preview_is_skipped_and_said(denoiser, settings, little, tmp_path, capsys):
    events = TerminalEvents(denoiser, settings(), tmp_path / "a.safetensors")
    events.on_preview(3, {})
    assert "no preview of step 3: a picture of 64x64 needs" in capsys.readouterr().err
    assert events.cover is None and not [*tmp_path.iterdir()]


def test_fewer_are_drawn_side_by_side_where_that_fits(erased, monkeypatch, tmp_path):
    """The same pictures, but for the last bits."""
    grids, sizes = [], []
    decode = Headless.decode

    def noted(self, latents):
        sizes.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr(Headless, "decode", noted)
    for free in (10**12, 13 * 10**6):
        monkeypatch.setattr(Headless, "free_memory", lambda _, free=free: free)
        out = tmp_path / f"{free}.json"
        words = ("--seed", "1", "--seed", "2", "--prompt", "a house", "--steps", "2")
        files = ("--out", str(tmp_path / f"{free}.png"), "--json", str(out))
        assert main(("compare", *MODEL, "--erased", erased, *words, *files)) == 0
        grids.append(out.read_text())
    assert sizes == [2, 2, 1, 1, 1, 1]
    assert torch.allclose(*map(numbers, grids), atol=1e-2)


def numbers(report):
    rows = json.loads(report)["rows"]
    return torch.tensor([[*row["measures"][0].values()] for row in rows])
