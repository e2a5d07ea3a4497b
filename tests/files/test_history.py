"""The log of runs."""

import json

import pytest

from esd_core.errors import FileError
from esd_core.files import history

PROBES = {"share": {"Van Gogh": 0.04}, "drift": {"": 0.01, "a dog": 0.13}}


def test_a_run_is_a_line_and_told_as_one(settings, tmp_path):
    path = tmp_path / "new" / history.NAME
    entry = history.record(settings(), "SDXL", "done", 5, PROBES, "a.safetensors")
    history.append(path, entry)
    history.append(path, {**entry, "file": ""})
    first, second = history.read(path)
    assert first == entry and second["file"] == ""
    told = history.described(first)
    for word in ("Van Gogh", "SDXL", "esd-x, 5 steps at 0.001", "left 4.0%", "drift 13.0%", "done"):
        assert word in told
    assert told.endswith("a.safetensors") and "\n" not in told


def test_lines_that_are_cut_short_lose_no_others(settings, tmp_path):
    path = tmp_path / history.NAME
    entry = history.record(settings(), "SDXL", "done", 5, {}, "")
    path.write_text(json.dumps(entry)[:40] + "\n[]\n" + json.dumps(entry) + "\n", "utf-8")
    assert history.read(path) == [entry]


def test_a_log_that_is_missing_or_cannot_be_written_is_told(settings, tmp_path):
    with pytest.raises(FileError, match="no history"):
        history.read(tmp_path / history.NAME)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        history.append(tmp_path / "file" / history.NAME, {})
