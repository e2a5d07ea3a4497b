"""What goes wrong: one sentence on stderr, exit code 2, no traceback, and nothing half written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from esd_core.cli.main import main
from esd_core.config.mappings import override
from esd_core.config.presets import load_preset
from esd_core.config.settings import ErasureConfig
from esd_core.files import history
from esd_core.files.apply import fingerprint
from esd_core.files.erasure import Erasure
from esd_core.files.native import read_erasure, write_erasure
from esd_core.models.loading import load_denoiser
from esd_core.pocket.judge import ORACLE
from esd_core.training.run import erase

WEIGHTS = ORACLE.parent
POCKET = ("--model", "pocket", "--device", "cpu")
SMALL = ("--width", "64", "--height", "64")
QUICK = ("--steps", "2", "--trajectory-steps", "2", "--count", "1", "--batch-size", "2")
EXPORT = ("export", "f", "--model", "m", "--out", "o", "--to")
COMPARE = ("compare", "--model", "m", "--out", "o.png", "--erased", "f", "--prompt", "p")
CONV_IN = "input_blocks.0.0.diff"
CONV_IN_SHAPE = (32, 4, 3, 3)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence by which a command line is refused; progress may stand before it."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    return sentence(captured.err)


def sentence(error: str) -> str:
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("esd: ") and error.count("esd: ") == 1
    return last.removeprefix("esd: ")


@pytest.fixture
def no_model(tmp_path: Path) -> Path:
    """A folder that fails as soon as it is loaded: what is refused by another reason came first."""
    folder = tmp_path / "no model"
    folder.mkdir()
    return folder


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    named = {f"esd.{key}": text for key, text in metadata.items()}
    write_erasure(path, Erasure(tensors, named))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An erasure that fits pocket and changes nothing."""
    tensors = {CONV_IN: torch.zeros(CONV_IN_SHAPE)}
    return write(tmp_path / "fits.safetensors", tensors, base_architecture="sdxl")


def left(folder: Path) -> set[str]:
    """All but the log of runs, which has each that has begun."""
    return {path.name for path in folder.iterdir()} - {history.NAME}


# -- settings, before a model is loaded --------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--concept", ""], "no concept given: name at least one to erase"),
        ([], "no concept given: name at least one to erase"),
        (["--concept", "a -> "], '"a ->" has nothing after its arrow'),
        (["--concept", "a", "--concept", "A"], 'the concept "A" is given twice'),
        (["--concept", "a\udc80"], "--concept must be a list of texts"),
        (
            ["--concept", "a", "--method", "esd-y"],
            "--method must be one of esd-x, esd-x-strict, esd-u, esd-all, selfattn, not 'esd-y'",
        ),
        (
            ["--concept", "a", "--width", "100"],
            "--width must be at least 64 and at most 4096, in multiples of 8, not 100",
        ),
        (
            ["--concept", "a", "--steps", "0"],
            "--steps must be at least 1 and at most 1000000000, not 0",
        ),
        (["--steps", "many"], "--steps must be a whole number, not 'many'"),
        (["--steps", "9" * 5000], "--steps must be a whole number"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0 and at most 1"),
        (["--concept", "a", "--warmup", "300"], "--warmup must be at most --steps, 200, not 300"),
        (["--concept", "a", "--preserve", "A"], '--preserve names "A"'),
        (["--concept", "a", "--config", "none"], "none is neither a file nor one of the presets"),
        (["--conc", "a"], "unrecognized arguments: --conc"),
    ],
)
def test_settings_are_refused_by_name(
    words: list[str],
    expected: str,
    no_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a.safetensors"
    assert expected in refusal(capsys, "erase", "--model", no_model, "--out", out, *words)
    assert left(tmp_path) == {no_model.name}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate = 1", 'unknown setting "learning_rate": did you mean training.learn'),
        ("[training]\nstep = 1", 'unknown setting "training.step": did you mean training.steps'),
        ("training = 1", "training must be a table of settings, not 1"),
        ("concepts = 'a'", "--concept must be a list of texts"),
        ("concepts = ", "is not a TOML file"),
    ],
)
def test_a_config_file_is_refused_by_name(
    text: str, expected: str, no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8")
    words = ("--concept", "a", "--config", config, "--out", tmp_path / "a.safetensors")
    if "concepts" in text:
        words = words[2:]
    assert expected in refusal(capsys, "erase", "--model", no_model, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["erase"], "the following arguments are required: --model, --out"),
        ([*EXPORT, "ckpt"], "--to must be one of unet, diffusers, official, lora"),
        ([*EXPORT, "lora", "--energy", "0"], "--energy must be above 0"),
        ([*COMPARE, "--seed", "-1"], "--seed must be at least 0"),
        (
            [*COMPARE, "--width", "100"],
            "--width must be at least 64 and at most 4096, in multiples of 8, not 100",
        ),
        (["evaluate", "--model", "m", "--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_a_command_line_is_refused_in_a_sentence(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, *words)


# -- outputs, before a model is loaded ---------------------------------------------------------


def test_an_output_that_exists_is_kept(
    no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    words = ("erase", "--model", no_model, "--concept", "a", "--out")
    assert "a.safetensors exists already" in refusal(capsys, *words, out)
    report = ("--report", out)
    assert "exists already" in refusal(capsys, *words, tmp_path / "b.safetensors", *report)
    assert out.read_bytes() == b"precious"


def test_an_output_that_cannot_be_is_refused_and_no_folder_made(
    no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "in the way"
    in_the_way.write_bytes(b"")
    words = ("erase", "--model", no_model, "--concept", "a", "--out")
    for out in (in_the_way / "x" / "a.safetensors", tmp_path / ("n" * 300)):
        assert "cannot be written" in refusal(capsys, *words, out)
    for out in (no_model, "/dev/null"):
        assert f"{out} is there and is not a file" in refusal(capsys, *words, out, "--force")
    out = tmp_path / "new" / "a.safetensors"
    assert "without model_index.json" in refusal(capsys, *words, out)
    assert left(tmp_path) == {no_model.name, in_the_way.name}


def test_no_file_is_both_read_and_written(
    file: Path, no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, force = file.read_bytes(), "--force"
    twice = "is given for two things at once"
    model = ("--model", no_model)
    export = ("export", file, *model, "--to", "unet", "--out", file, force)
    assert twice in refusal(capsys, *export)
    evaluate = ("evaluate", *model, "--erased", file, "--json", file, force)
    assert twice in refusal(capsys, *evaluate)
    base = ("erase", "--model", file, "--concept", "a", "--out", file, force)
    assert twice in refusal(capsys, *base)
    out = tmp_path / "a.png"
    compare = ("compare", *model, "--erased", file, "--prompt", "a", "--out", out, "--json", out)
    assert twice in refusal(capsys, *compare)
    assert file.read_bytes() == before


def test_a_loop_of_links_is_named(
    file: Path, no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    model, out = ("--model", no_model), tmp_path / "a.png"
    for words in (
        ("erase", *model, "--concept", "a", "--out", loop, "--force"),
        ("export", file, *model, "--to", "unet", "--out", loop, "--force"),
        ("export", loop, *model, "--to", "unet", "--out", out),
        ("evaluate", *model, "--erased", loop),
        ("compare", *model, "--erased", loop, "--prompt", "a", "--out", out),
        ("inspect", loop),
        ("inspect", file, "--model", loop),
        ("compare", "--model", loop, "--erased", file, "--prompt", "a", "--out", out),
    ):
        assert str(loop) in refusal(capsys, *words)


def test_a_grid_is_a_png(file: Path, no_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("compare", "--model", no_model, "--erased", file, "--prompt", "a", "--out", "a.jpg")
    assert "a.jpg does not end in .png" in refusal(capsys, *words)


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere/model", "a/b/c", "./model", "model.safetensors"])
def test_a_model_that_is_missing_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("erase", "--model", name, "--concept", "a", "--out", tmp_path / "a.safetensors")
    assert refusal(capsys, *words).startswith(f"there is no model {name}: give pocket, ")


def test_models_that_are_none_are_named(
    file: Path, no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"\x80\x04")
    cases = {
        no_model: "is a folder without model_index.json",
        pickled: "is not a .safetensors file",
        file: "is not a checkpoint, since it holds no UNet",
    }
    for model, expected in cases.items():
        words = ("erase", "--model", model, "--concept", "a", "--out", out)
        found = refusal(capsys, *words)
        assert expected in found and str(model) in found


def test_a_damaged_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    words = ("erase", "--model", model, "--concept", "a", "--out", tmp_path / "a.safetensors")
    assert f"no model can be loaded from {model}" in refusal(capsys, *words)


def test_a_device_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("erase", "--model", "pocket", "--concept", "a", "--out", tmp_path / "a.safetensors")
    for device in ("abacus", "meta", "cuda:99"):
        expected = f"there is no device {device} here"
        assert expected in refusal(capsys, *words, "--device", device)


def test_only_the_embedded_model_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model)
    config = model / "unet" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"sample_size": 128}), encoding="utf-8")
    assert "is not an embedded model" in refusal(capsys, "evaluate", "--model", model)


# -- erasure files -----------------------------------------------------------------------------


def broken(kind: str, path: Path, good: Path) -> Path:
    if kind == "png":
        Image.new("RGB", (8, 8)).save(path, "PNG")
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not finite":
        write(path, {CONV_IN: torch.full(CONV_IN_SHAPE, torch.inf)})
    elif kind == "half":
        write(path, {"out.2.lora_up.weight": torch.zeros(4, 2)})
    elif kind == "halves that do not fit":
        up, down = torch.zeros(4, 2), torch.zeros(3, 8)
        tensors = {"out.2.lora_up.weight": up, "out.2.lora_down.weight": down}
        write(path, {**tensors, "out.2.alpha": torch.tensor(1.0)})
    return path


BROKEN = {
    "missing": "there is no file",
    "png": "is not a safetensors file",
    "truncated": "damaged or cut short",
    "empty": "is empty",
    "not finite": "holds a value that is not finite",
    "half": "lacks its other half",
    "halves that do not fit": "or does not fit it",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_erasure_is_refused_by_every_command(
    kind: str, file: Path, no_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken(kind, tmp_path / "broken.safetensors", file)
    before, model = left(tmp_path), ("--model", no_model)
    out = tmp_path / "out.png"
    for words in (
        ("inspect", path),
        ("compare", *model, "--erased", f"{path}:0.5", "--prompt", "a", "--out", out),
        ("evaluate", *model, "--erased", path, "--json", out),
        ("export", path, *model, "--to", "unet", "--out", out),
    ):
        found = refusal(capsys, *words)
        assert BROKEN[kind] in found and str(path) in found
    assert left(tmp_path) == before


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        (
            {CONV_IN: torch.zeros(33, 4, 3, 3)},
            {},
            "made for another model: input_blocks.0.0.weight has the shape [33, 4, 3, 3] there "
            "and [32, 4, 3, 3] here",
        ),
        ({CONV_IN: torch.tensor(1.0)}, {}, "made for another model"),
        ({"elsewhere.diff": torch.zeros(1)}, {}, "changes elsewhere.weight, which this model"),
        (
            {CONV_IN: torch.zeros(CONV_IN_SHAPE)},
            {"base_architecture": "sd1"},
            "was made for SD 1.x, and this model is SDXL",
        ),
    ],
)
def test_an_erasure_of_another_base_is_refused(
    tensors: dict[str, Any],
    metadata: dict[str, str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "other.safetensors", tensors, **metadata)
    out = tmp_path / "out.png"
    for words in (
        ("compare", *POCKET, "--erased", path, "--prompt", "a", "--out", out),
        ("export", path, *POCKET[:2], "--to", "diffusers", "--out", out),
    ):
        assert expected in refusal(capsys, *words)
    assert left(tmp_path) == {path.name}


def test_other_weights_of_the_same_shape_are_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(fingerprint(load_denoiser("pocket", "fp32", "cpu").parameters()).split())
    tensors = {CONV_IN: torch.zeros(CONV_IN_SHAPE)}
    path = write(tmp_path / "other.safetensors", tensors, base_fingerprint=" ".join(["9"] * count))
    out = tmp_path / "unet.safetensors"
    assert main(["export", str(path), *POCKET[:2], "--to", "unet", "--out", str(out)]) == 0
    assert "esd: warning: other.safetensors was made for other weights" in capsys.readouterr().err


# -- training ----------------------------------------------------------------------------------


def test_a_concept_without_tokens_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where both tokenizers pad with the end token, that token's own text is an empty prompt."""
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model)
    shutil.rmtree(model / "tokenizer_2")
    shutil.copytree(model / "tokenizer", model / "tokenizer_2")
    out = ("--out", tmp_path / "a.safetensors")
    words = ("erase", "--model", model, "--concept", "<|endoftext|>", *SMALL, *QUICK, *out)
    assert "encodes to the same tokens as the empty prompt" in refusal(capsys, *words)


def test_a_loss_that_is_not_finite_stops_and_writes_nothing_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"][0] = torch.inf
    save_file(tensors, weights, {"format": "pt"})
    words = ("erase", "--model", model, "--concept", "Van Gogh", *SMALL, *QUICK)
    found = refusal(capsys, *words, "--out", out, "--force")
    assert found.startswith("the loss is not finite at step 1 (sigma ")
    assert "lower --learning-rate" in found
    assert out.read_bytes() == b"precious" and left(tmp_path) == {out.name, model.name}


def test_a_resume_needs_the_state_of_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, state = tmp_path / "a.safetensors", tmp_path / "a.state.safetensors"
    words = ("erase", *POCKET, "--concept", "Van Gogh", *QUICK, "--out", out)
    assert "there is no stopped run at" in refusal(capsys, *words, "--resume")

    state.write_bytes(b"something else")
    assert "holds a stopped run: add --resume" in refusal(capsys, *words)
    assert "is not a safetensors file" in refusal(capsys, *words, "--resume")
    assert state.read_bytes() == b"something else"


def test_a_resume_with_other_settings_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, state = tmp_path / "a.safetensors", tmp_path / "a.state.safetensors"
    words = ("erase", *POCKET, "--concept", "Van Gogh", *QUICK, "--out", out)
    stop_at_once(state)
    before = state.read_bytes()
    changed = ("--resume", "--seed", "7", "--reuse", "2")
    found = refusal(capsys, *words, *changed)
    assert "belongs to a run with other settings (--seed, --reuse)" in found
    assert state.read_bytes() == before and left(tmp_path) == {state.name}
    assert main([*map(str, words), "--resume"]) == 0
    assert left(tmp_path) == {out.name}


class StopAtOnce:
    """Events and commands of a run that is stopped before its first step."""

    def should_stop(self) -> bool:
        return True

    def on_save(self, step: int, path: Path) -> None:
        assert step == 0


def stop_at_once(state: Path) -> None:
    """Leaves the state of a run with QUICK's settings."""
    quick = {"trajectory": {"steps": 2, "count": 1}, "training": {"steps": 2, "batch_size": 2}}
    settings = override(load_preset("pocket"), {"concepts": ["Van Gogh"], **quick})
    host: Any = StopAtOnce()
    pocket = load_denoiser("pocket", "auto", "cpu")
    erase(pocket, ErasureConfig.from_mapping(settings), host, host, state)


# -- a full disk -------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_nothing_half_written(tmp_path: Path) -> None:
    """The limit on the size of its files makes every larger write of the child fail."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "a.safetensors"
    words = ("erase", *POCKET, "--concept", "Van Gogh", *QUICK, "--out", str(out))
    result = subprocess.run(
        [sys.executable, "-m", "esd_core", *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    found = sentence(result.stderr)
    assert found.startswith(f"{out} cannot be written: File too large (")
    assert "MB needed" in found and "MB free" in found
    assert left(tmp_path) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free))


def test_a_disk_that_is_too_small_is_told_before_the_first_step(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(small_disk)
    out = small_disk / "a.safetensors"
    words = ("erase", *POCKET, "--concept", "Van Gogh", "--steps", "1000000", "--out", out)
    found = refusal(capsys, *words)
    assert found.startswith(f"{out} needs ") and "and 0.0 MB are free there" in found
    assert left(small_disk) == {"filling"}


def test_a_run_whose_erasure_finds_no_room_is_kept(
    small_disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else fills the disk while it trains."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.setattr("esd_core.cli.outputs.check_room", lambda out, size: fill(out.parent))
    words = ("erase", *POCKET, "--concept", "Van Gogh", *QUICK, "--out")
    out, state = small_disk / "a.safetensors", elsewhere / "a.state.safetensors"
    found = refusal(capsys, *words, out)
    assert found.startswith(f"{out} cannot be written: No space left")
    assert f"the training is kept in {state}: repeat the command with --resume" in found
    assert left(small_disk) == {"filling"}
    monkeypatch.undo()
    moved, at_once = elsewhere / out.name, tmp_path / "at once.safetensors"
    assert main([*map(str, words), str(moved), "--resume"]) == 0
    assert main([*map(str, words), str(at_once)]) == 0
    assert moved.read_bytes() == at_once.read_bytes() and left(elsewhere) == {out.name}


def test_an_erasure_is_whole_without_its_report(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(small_disk)
    out, report = tmp_path / "a.safetensors", small_disk / "report.json"
    words = ("erase", *POCKET, "--concept", "Van Gogh", *QUICK, "--out", out, "--report", report)
    found = refusal(capsys, *words)
    assert found.startswith(f"{report} cannot be written: No space left")
    assert found.endswith(f"; the erasure is whole, in {out}")
    assert read_erasure(out).concepts == ("Van Gogh",)
    assert left(small_disk) == {"filling"}


def test_a_report_that_finds_no_room_is_told(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ("--per-pair", "1", "--steps", "1", "--json", tmp_path / "table.json")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        capsys.readouterr()
        code = main(["evaluate", *POCKET, *map(str, words)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "table.json cannot be written: File too large" in sentence(capsys.readouterr().err)
    assert left(tmp_path) == {file.name}


def test_a_demo_of_what_pocket_does_not_know(capsys, tmp_path):
    told = refusal(
        capsys, "demo", "--concept", "fish", "--concept", "Monet", "--out", tmp_path / "demo"
    )
    assert '"Monet"' in told and "--concept" in told and "Van Gogh" in told and "fish" in told
    assert not (tmp_path / "demo").exists()
