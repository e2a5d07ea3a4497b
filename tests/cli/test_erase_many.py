"""`esd erase-many`: a list of runs, in this process; ranks share it out in tests/training."""

from pathlib import Path

import pytest

from esd_core.cli.main import main
from esd_core.files.native import read_erasure

LIST = """
contexts = []
[trajectory]
steps = 2
count = 1
[training]
steps = 2
batch_size = 2
[[erase]]
name = "drifts"
concepts = ["boat"]
training.max_drift = 1e-9
training.probe_every = 1
[[erase]]
name = "van-gogh"
concepts = ["Van Gogh"]
training.steps = 3
"""


def erase_many(folder: Path, text: str = LIST, *words: str) -> int:
    (folder / "list.toml").write_text(text, encoding="utf-8")
    model = ("--model", "pocket", "--device", "cpu")
    out = ("--out", str(folder / "out"))
    return main(["erase-many", str(folder / "list.toml"), *model, *out, *words])


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One fails, which ends neither the list nor the next."""
    assert erase_many(tmp_path) == 2
    heads, _, done, failed = capsys.readouterr().out.splitlines()
    assert heads == "| name | file | what is left | worst drift | seconds |"
    file = tmp_path / "out" / "van-gogh.safetensors"
    assert read_erasure(file).metadata["esd.steps"] == "3"
    assert done.startswith(f"| van-gogh | {file} | ") and done.count("%") == 2
    assert failed.startswith("| drifts | failed: ") and "--max-drift" in failed
    made = file.stat().st_mtime_ns
    assert erase_many(tmp_path, LIST.replace("max_drift = 1e-9", "max_drift = 9")) == 0
    _, _, first, second = capsys.readouterr().out.splitlines()
    assert "done before" in second and "done before" not in first
    assert file.stat().st_mtime_ns == made
    other = LIST[: LIST.index("[[erase]]")] + LIST[LIST.rindex("[[erase]]") :]
    assert erase_many(tmp_path, other.replace("steps = 3", "steps = 1")) == 2
    assert "is of other settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("[[erase]]", "[[runs]]", "lists no run: write a table [[erase]]"),
        ('"drifts"', '"../a"', "run 1 needs a name of letters"),
        ('"drifts"', '"Van-Gogh"', "two runs are named van-gogh"),
        ("max_drift", "max_drft", "drifts: unknown setting"),
        ("steps = 3", 'precision = "fp16"', "one for all"),
    ],
)
def test_a_list_is_checked_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, told: str
) -> None:
    assert erase_many(tmp_path, LIST.replace(before, after)) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpus", "some"), "--gpus takes all or a number"),
        (("--gpus", "64"), "torch sees"),
        (("--shard-optimizer",), "--shard-optimizer is for several GPUs"),
    ],
)
def test_gpus_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    asked = ["erase", "--model", "pocket", "--concept", "a", "--out", str(tmp_path / "a"), *words]
    assert main(asked) == 2
    assert told in capsys.readouterr().err
