"""The command `esd`, on the embedded model: every command, Ctrl-C, and going on after it."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from esd_core.cli import erased
from esd_core.cli.console import StopRequest
from esd_core.cli.flags import CONFIG, describe, flag, given
from esd_core.cli.main import COMMANDS, main
from esd_core.config.presets import load_settings
from esd_core.config.rules import bounds, described, kind_of
from esd_core.config.settings import ErasureConfig
from esd_core.errors import ConfigError
from esd_core.files import history
from esd_core.files.base import open_base
from esd_core.files.native import read_erasure
from esd_core.models.headless import Headless
from esd_core.models.loading import load_denoiser
from esd_core.pocket.judge import ORACLE
from esd_core.storage.reading import read_header

POCKET = ("--model", "pocket", "--device", "cpu")
QUICK = ("--steps", "2", "--trajectory-steps", "2", "--count", "1")
ERASE = ("erase", *POCKET, "--concept", "Van Gogh", *QUICK)
WEIGHTS = ORACLE.parent
ESD = [sys.executable, "-m", "esd_core"]


def esd(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an erasure, a.safetensors, and its report, made with a config and flags."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "run.toml"
    config.write_text("[training]\nbatch_size = 4\nsteps = 9\n", encoding="utf-8")
    out = folder / "new" / "a.safetensors"
    assert esd(*ERASE, "--config", config, "--out", out, "--report", folder / "report.json") == 0
    out.rename(folder / "a.safetensors")
    return folder


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    return run / "a.safetensors"


@pytest.fixture(scope="module")
def pocket() -> Headless:
    return load_denoiser("pocket", "fp32", "cpu")


# -- help and flags ----------------------------------------------------------------------------


def test_help_comes_without_torch() -> None:
    code = (
        "import sys\n"
        "from esd_core.cli.main import main\n"
        "for words in sys.argv[1:]:\n"
        "    try: main([*words.split(), '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    commands = ["", *COMMANDS]
    result = subprocess.run(
        [sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert all(f"usage: esd {name}".rstrip() in result.stdout for name in commands)


def test_every_setting_has_a_flag_of_its_own_with_its_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        esd("erase", "--help")
    text = " ".join(capsys.readouterr().out.split())
    flags = [flag(name) for name in CONFIG]
    shown = set(re.findall(r"--[a-z-]+", text))
    assert len(set(flags)) == len(flags)
    assert shown >= {*flags, "--no-preserve-empty"}
    assert {"--concept", "--steps", "--trajectory-steps", "--learning-rate"} <= set(flags)
    for field in CONFIG.values():
        help_of_field = describe(field)
        assert described(field) in help_of_field and bounds(field) in help_of_field
        assert kind_of(field) is tuple or "default" in help_of_field


def test_flags_say_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(
        "esd_core.cli.erase.run", lambda arguments: seen.update(given(arguments, CONFIG)) or 0
    )
    assert esd("erase", "--model", "m", "--out", "o") == 0
    assert seen == {}
    words = ["--concept", "a", "--concept", "b -> c", "--no-preserve-empty", "--steps", "5"]
    words += [
        "--trajectory-steps",
        "7",
        "--learning-rate",
        "1e-3",
        "--gradient-checkpointing",
        "on",
    ]
    assert esd("erase", "--model", "m", "--out", "o", *words) == 0
    assert seen == {
        "concepts": ["a", "b -> c"],
        "preserve_empty": False,
        "training.steps": 5,
        "trajectory.steps": 7,
        "training.learning_rate": 1e-3,
        "training.gradient_checkpointing": "on",
    }


# -- erase -------------------------------------------------------------------------------------


def test_an_erasure_is_written_with_its_report(run: Path, file: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    training = report["training"]
    assert (training["ending"], training["student_steps"], training["samples"]) == ("done", 2, 8)
    assert training["teacher_evaluations"] > 0 and training["probes"]["share"].keys() == {
        "Van Gogh"
    }
    assert report["architecture"] == "sdxl"
    assert read_erasure(file).concepts == ("Van Gogh",)
    left = [path.name for path in (run / "new").iterdir()]
    assert left == [history.NAME], "neither a state nor a partial file"


def test_flags_lie_over_the_config_and_that_over_the_models_preset(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    preset, config = load_settings("pocket"), report["config"]
    assert config["training"]["steps"] == 2, "a flag, over the file's 9"
    assert config["training"]["batch_size"] == 4, "the file, over the preset's"
    for name in ("width", "height", "negative_guidance"):
        assert config[name] == preset[name], "the preset, over the field's default"
    assert report["config_digest"] == ErasureConfig.from_mapping(config).digest()


def test_the_summary_names_shares_drifts_and_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    words = ("--preserve", "a boat", "--until", "1", "--probe-every", "1")
    assert esd(*ERASE, "--out", out, *words) == 0
    captured = capsys.readouterr()
    assert "ended early" in captured.out
    assert all(word in captured.out for word in ("Van Gogh", "(empty prompt)", "a boat", str(out)))
    assert "loss" in captured.err and "left" in captured.err


def test_a_preview_is_a_picture_beside_the_erasure(tmp_path: Path) -> None:
    words = ("--preview-every", "2", "--width", "64", "--height", "64")
    assert esd(*ERASE, "--out", tmp_path / "a.safetensors", *words) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"a.safetensors", "a.step-000002.png", "esd_history.jsonl"}
    assert Image.open(tmp_path / "a.step-000002.png").width > 128
    assert cover(tmp_path / "a.safetensors").size == (256, 256)


def test_a_preview_that_fails_is_skipped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("esd_core.images.render.render", fail)
    words = ("--preview-every", "2", "--width", "64", "--height", "64")
    assert esd(*ERASE, "--out", tmp_path / "a.safetensors", *words) == 0
    assert "no preview of step 2: CUDA out of memory" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def cover(file: Path) -> Image.Image:
    (data,) = json.loads(read_header(file).metadata["ssmd_cover_images"])
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_no_preview_leaves_no_cover(file: Path) -> None:
    assert "ssmd_cover_images" not in read_header(file).metadata


def test_force_overwrites_and_starts_anew(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    state = tmp_path / "a.state.safetensors"
    for path in (out, state):
        path.write_bytes(b"old")
    assert esd(*ERASE, "--batch-size", "4", "--out", out, "--force") == 0
    assert out.read_bytes() == file.read_bytes(), "the same settings make the same bytes"
    assert not state.exists()


# -- Ctrl-C ------------------------------------------------------------------------------------


posix = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a child process")


@pytest.mark.parametrize("load", ["load", "load_artist"])
def test_a_model_is_loaded_quietly(load: str) -> None:
    """In a process of its own: what the libraries say, they say as they are imported."""
    code = f"from esd_core.cli import model; model.{load}('pocket', device='cpu')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


def wait_for(happened: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        if time.monotonic() > deadline:
            child.kill()
        if child.poll() is not None:
            pytest.fail(f"ended early with {child.returncode}: {child.communicate()[1]}")
        time.sleep(0.05)


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*ESD, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, children would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@posix
def test_a_stopped_run_goes_on_to_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, state = tmp_path / "a b.safetensors", tmp_path / "a b.state.safetensors"
    quick = ("--trajectory-steps", "2", "--count", "1", "--batch-size", "2", "--save-every", "1")
    # a falling rate depends on the number of steps, which is changed below
    quick += ("--preview-every", "100000", "--schedule", "constant")
    words = ("erase", *POCKET, "--concept", "Van Gogh", *quick, "--steps", "100000", "--out", out)
    child = start(*words)
    wait_for(state.exists, child)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "Traceback" not in error and "stopping after this step" in error
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {state.name, history.NAME}, "nothing half written"

    command = shlex.split(error.splitlines()[-1])
    assert command == ["esd", *map(str, words), "--resume"]
    steps = json.loads(read_header(state).metadata["values"])["step"] + 1
    assert esd(*command[1:], "--steps", steps) == 0
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {out.name}
    assert cover(out).size == (256, 256)
    assert esd("history", tmp_path) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert "Van Gogh | pocket" in first and "stopped" in first and state.name in first
    assert f"{steps} steps" in second and "done" in second and out.name in second
    at_once = tmp_path / "at once.safetensors"
    assert esd(*words, "--steps", steps, "--out", at_once) == 0
    assert at_once.read_bytes() == out.read_bytes()


@posix
def test_an_interruption_before_training_leaves_no_traceback(tmp_path: Path) -> None:
    pipe = tmp_path / "config.toml"
    os.mkfifo(pipe)
    child = start(*ERASE, "--config", pipe, "--out", tmp_path / "a.safetensors")
    writer: list[int] = []

    def is_read() -> bool:
        try:
            writer.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody has it open yet
            return False
        return True

    wait_for(is_read, child)
    child.send_signal(signal.SIGINT)
    os.close(writer.pop())  # a signal just before the read would else wait for what never comes
    output, error = child.communicate(timeout=60)
    assert (child.returncode, output, error) == (130, "", "esd: interrupted\n")
    assert list(tmp_path.iterdir()) == [pipe]


def test_the_second_interruption_comes_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as commands:
        assert not commands.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert commands.should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# -- compare, evaluate, inspect ----------------------------------------------------------------


def test_a_comparison_has_a_row_a_seed_and_a_column_an_erasure(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, measures = tmp_path / "grid.png", tmp_path / "grid.json"
    words = ("--prompt", "a house, Van Gogh style", "--prompt", "", "--seed", "1", "--seed", "2")
    columns = ("--erased", file, "--erased", f"{file}:0", "--steps", "2")
    code = esd("compare", *POCKET, *columns, *words, "--out", out, "--json", measures)
    assert code == 0
    report = json.loads(measures.read_text(encoding="utf-8"))
    assert [(row["prompt"], row["seed"]) for row in report["rows"]] == [
        *(("a house, Van Gogh style", seed) for seed in (1, 2)),
        *(("", seed) for seed in (1, 2)),
    ]
    assert report["erased"] == [
        {"file": str(file), "strength": 1.0},
        {"file": str(file), "strength": 0.0},
    ]
    sampling = {"steps": 2, "guidance": 3.0, "width": 128, "height": 128, "negative": ""}
    assert report["sampling"] == sampling
    for row in report["rows"]:
        moved, still = row["measures"]
        assert moved["rmse"] > 0
        assert still == {"rmse": 0.0, "ssim": 1.0}, "at strength 0 the model is as it was"
    image = Image.open(out)
    assert image.format == "PNG" and image.height > 4 * 128 and image.width > 4 * 128
    assert f"written to {out}" in capsys.readouterr().out


def test_an_evaluation_prints_the_table_and_writes_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--per-pair", "1", "--steps", "1")
    table = tmp_path / "table.json"
    assert esd("evaluate", *POCKET, "--erased", file, *quick, "--json", table) == 0
    report = json.loads(table.read_text(encoding="utf-8"))
    assert report.keys() == {"concepts", "worst_drop", "UA", "IRA", "CRA"}
    assert [name for name, row in report["concepts"].items() if row["erased"]] == ["Van Gogh"]
    assert {row["pictures"] for row in report["concepts"].values()} == {6}
    printed = capsys.readouterr().out
    assert all(name in printed for name in report["concepts"]) and "worst drop" in printed


def test_what_is_inspected_can_be_trained_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert esd("inspect", file, "--config") == 0
    config = tmp_path / "again.toml"
    config.write_text(capsys.readouterr().out, encoding="utf-8")
    again = tmp_path / "again.safetensors"
    assert esd("erase", *POCKET, "--config", config, "--out", again) == 0
    assert again.read_bytes() == file.read_bytes()


def test_an_inspection_tells_layers_and_norms(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert esd("inspect", file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    change = read_erasure(file).change()
    (layers,) = report["layers"].items()
    assert layers[0] == "cross-attention"
    assert layers[1]["tensors"] == len(change)
    assert layers[1]["values"] == sum(tensor.numel() for tensor in change.values())
    norm = torch.cat([tensor.flatten() for tensor in change.values()]).norm()
    assert layers[1]["norm"] == pytest.approx(float(norm), rel=1e-4)
    assert report["metadata"]["esd.concepts"] == ["Van Gogh"]

    assert esd("inspect", file) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("Van Gogh", "esd-x", "cross-attention", "sdxl"))


def test_a_file_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[2J.safetensors"
    metadata = {
        "esd.format": "esd-erasure-1",
        "a\x1b]0;x\x07": "b\x9b31m\nWritten",
        "esd.config": "\x1bc",
    }
    save_file({"diffusion_model.out.2.diff": torch.zeros(4, 32, 3, 3)}, path, metadata)
    for words in ((), ("--json",), ("--config",)):
        assert esd("inspect", path, *words) == 0
        text = capsys.readouterr().out
        assert not [c for c in text if unicodedata.category(c) == "Cc" and c != "\n"]
        assert "x1b" in text or "u001b" in text
        assert "\nWritten" not in text
    assert esd("inspect", tmp_path / "\x1b[31m") == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1),
        ("a.safetensors:1e-1", "a.safetensors", 0.1),
        (r"C:\models\a.safetensors", r"C:\models\a.safetensors", 1),
        (r"C:\models\a.safetensors:.5", r"C:\models\a.safetensors", 0.5),
        ("a:b/c.safetensors", "a:b/c.safetensors", 1),
        ("12:30/a.safetensors:2", "12:30/a.safetensors", 2),
        ("a:nan", "a:nan", 1),
    ],
)
def test_a_strength_is_a_number_behind_the_last_colon(
    word: str, path: str, strength: float
) -> None:
    assert erased.parse(word) == erased.Erased(Path(path), strength)


@pytest.mark.parametrize("word", ["a:1e999", ":1"])
def test_a_strength_without_file_or_end_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is not an erasure: write FILE or FILE:STRENGTH"):
        erased.parse(word)


def test_an_inspection_of_another_program_s_file_tells_what_it_is_and_how_much_it_changes(
    file: Path, pocket: Headless, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official code's: absolute weights, of which a base is needed to tell the change."""
    out = tmp_path / "anything.bin"
    words = ("--to", "official", "--dtype", "fp32", "--out", out)
    assert esd("export", file, *POCKET[:2], *words) == 0
    capsys.readouterr()
    assert esd("inspect", out, "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["kind"] == "official"
    assert "norm" not in alone["layers"]["cross-attention"]
    assert esd("inspect", out, "--json", "--model", "pocket") == 0
    layer = json.loads(capsys.readouterr().out)["layers"]["cross-attention"]
    base, change = pocket.parameters(), read_erasure(file).change()
    size = sum(float(base[name].double().square().sum()) for name in change) ** 0.5
    norm = sum(float(tensor.double().square().sum()) for tensor in change.values()) ** 0.5
    assert layer["part"] == pytest.approx(norm / size, rel=1e-2)
    assert layer["tensors"] == len(change)
    assert esd("inspect", out, "--config") == 0
    assert capsys.readouterr().out == read_erasure(file).metadata["esd.config"]


def test_an_official_export_into_a_folder_has_the_official_name(file: Path, tmp_path: Path) -> None:
    assert esd("export", file, *POCKET[:2], "--to", "official", "--out", tmp_path) == 0
    assert (tmp_path / "esd-Van_Gogh-from-Van_Gogh-esdx.safetensors").is_file()


# -- export ------------------------------------------------------------------------------------


def expected(pocket: Headless, file: Path, strength: float) -> dict[str, torch.Tensor]:
    change = read_erasure(file).change()
    base = {name: tensor.detach() for name, tensor in pocket.parameters().items()}
    return base | {n: base[n] + strength * c.view(base[n].shape) for n, c in change.items()}


def test_an_export_as_a_unet_is_the_sum(file: Path, pocket: Headless, tmp_path: Path) -> None:
    out = tmp_path / "unet.safetensors"
    words = ("--to", "unet", "--dtype", "fp32", "--strength", "0.5")
    assert esd("export", file, *POCKET[:2], *words, "--out", out) == 0
    sums, written = expected(pocket, file, 0.5), dict(open_base(out).weights)
    assert written.keys() == sums.keys()
    assert all(torch.allclose(written[name], sums[name]) for name in sums)
    metadata = read_header(out).metadata
    assert metadata["esd.strength"] == "0.5" and "esd.format" not in metadata


def test_an_export_for_diffusers_loads_there(file: Path, pocket: Headless, tmp_path: Path) -> None:
    out, words = tmp_path / "unet", ("--to", "diffusers", "--dtype", "fp32")
    assert esd("export", file, *POCKET[:2], *words, "--out", out) == 0
    unet = UNet2DConditionModel.from_pretrained(out, torch_dtype=torch.float32)
    loaded, mine = unet.state_dict(), pocket.network.state_dict()
    moved = {name for name in mine if not torch.allclose(loaded[name], mine[name], atol=1e-4)}
    assert moved and all("attn2" in name for name in moved)


def test_an_official_export_holds_the_erased_layers_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "esd-van-gogh.safetensors"
    assert esd("export", file, *POCKET[:2], "--to", "official", "--out", out) == 0
    names = read_header(out).tensors
    assert len(names) == len(read_erasure(file).change())
    assert all(".attn2." in name and not name.startswith("diffusion_model") for name in names)


@pytest.mark.parametrize("words", [(), ("--rank", "4"), ("--energy", "0.9")])
def test_a_lora_export_keeps_what_it_says(
    words: tuple[str, ...], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lora.safetensors"
    assert esd("export", file, *POCKET[:2], "--to", "lora", *words, "--out", out) == 0
    ranks = {
        len(tensor)
        for name, tensor in load_file(out).items()
        if name.startswith("lora_unet_") and name.endswith(".lora_down.weight")
    }
    kept = float(read_header(out).metadata["esd.lora_kept"])
    told = re.search(rf"rank {max(ranks)} keeps ([0-9.]+)%", capsys.readouterr().out)
    assert told and float(told[1]) == pytest.approx(100 * kept, abs=0.06), "of 4 digits"
    if "--energy" in words:
        assert kept**2 > 0.85  # biases, which no LoRA holds, are lost besides
    else:
        assert max(ranks) == int(words[1] if words else 16)


def test_a_unet_of_v_prediction_is_marked(file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model)
    scheduler = model / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text(encoding="utf-8"))
    settings |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler.write_text(json.dumps(settings), encoding="utf-8")
    out = tmp_path / "unet.safetensors"
    assert esd("export", file, "--to", "unet", "--model", model, "--out", out) == 0
    assert {"v_pred", "ztsnr"} <= read_header(out).tensors.keys()
