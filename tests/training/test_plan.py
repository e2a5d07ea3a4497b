"""What a run needs of memory: against counts by hand, against measured peaks, and what is said."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from trainers import bank_of, planned, trainer_of

from esd_core.cli.main import main
from esd_core.config.settings import TrainingConfig
from esd_core.errors import ConfigError, ESDError
from esd_core.models.diffusers_backend import DiffusersDenoiser
from esd_core.training import dry_run, run
from esd_core.training import plan as memory
from esd_core.training.dry_run import DryRun
from esd_core.training.run import erase
from esd_core.training.selection import select

TESTS = Path(__file__).resolve().parents[1]


class Small(DiffusersDenoiser):
    """A model on a device with so much free memory."""

    free = 10**12

    def free_memory(self):
        return self.free


@pytest.fixture
def small(pipeline):
    return Small(pipeline)


def count(denoiser, method):
    base = denoiser.parameters()
    return sum(base[name].numel() for name in select(method, base, denoiser.architecture))


# -- the estimate ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["esd-x", "esd-u"])
@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 8), ("adamw8bit", 2)])
def test_what_is_trained_is_counted(small, settings, method, optimizer, each):
    asked = {"method": method, "training.optimizer": optimizer}
    plan = planned(small, settings(asked))
    trained = count(small, method)
    assert plan.masters == plan.gradients == 4 * trained
    assert plan.optimizer == each * trained
    assert plan.weights == 4 * sum(p.numel() for p in small.parameters().values())
    assert plan.needed >= 8 * trained + plan.optimizer


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_optimizers_state_is_as_large_as_planned(small, settings, recorder, optimizer):
    config = settings({"training.optimizer": optimizer, "training.steps": 1, "method": "esd-all"})
    trainer = trainer_of(small, config)
    trainer.take_step()
    held = sum(
        value.numel() * value.element_size()
        for entries in trainer.update.optimizer.state.values()
        for value in entries.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    plan = planned(small, config)
    assert held == pytest.approx(plan.optimizer, rel=0.001)


def test_the_banks_samples_are_as_large_as_planned(small, settings):
    config = settings()
    samples = bank_of(small, config).sample_round(0, torch.Generator())
    held = sum(samples.tensors()[name].nbytes for name in ("x", "target"))
    assert planned(small, config).bank == held


def test_checkpointing_and_size_count_by_what_they_do(small, settings):
    def activations(edge, switch):
        size = {"width": edge, "height": edge, "training.gradient_checkpointing": switch}
        return planned(small, settings(size)).activations

    assert activations(256, "on") < activations(256, "off") / 2
    assert 3.2 < activations(256, "off") / activations(128, "off") < 4.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_one_rehearsal_counts_every_batch_and_size(
    make_denoiser, settings, monkeypatch, dtype, checkpointing
):
    """To the byte, against rehearsals of those batches and sizes themselves."""
    denoiser, config = make_denoiser(dtype), settings()
    count = DryRun(denoiser, config, print).step(config, checkpointing)
    evaluation = DryRun(denoiser, config, print).evaluation()
    monkeypatch.setattr(dry_run, "_growth", lambda size: ((0, 0), size))
    for batch, edge in ((1, 8), (3, 16), (4, 24)):
        monkeypatch.setattr(dry_run, "BATCH", batch)
        monkeypatch.setattr(dry_run, "EDGE", edge // dry_run.LEVELS)
        itself = DryRun(denoiser, config, print)
        for gradients in ("fp32", "bf16", 10**7):
            expected = itself.step(config, checkpointing).peak(1, 1, 1, gradients)
            assert count.peak(batch, edge, edge, gradients) == expected
        assert evaluation.peak(batch, edge, edge) == itself.evaluation().peak(1, 1, 1)


@pytest.fixture(scope="module")
def deep(pipeline):
    """With transformers of six blocks, as SDXL has of ten."""
    shape = {**pipeline.unet.config, "transformer_layers_per_block": 6}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(shape)
    return DiffusersDenoiser(StableDiffusionXLPipeline(**{**pipeline.components, "unet": unet}))


@pytest.mark.parametrize("overrides", [{}, {"method": "esd-u"}, {"training.rank": 2}])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_equal_blocks_count_as_if_all_were_called(
    deep, settings, monkeypatch, overrides, checkpointing
):
    """To the byte, and for a fraction of the calls."""
    config = settings(overrides)
    folded = DryRun(deep, config, print).step(config, checkpointing)
    monkeypatch.setattr(dry_run, "fold", lambda network: [])
    whole = DryRun(deep, config, print).step(config, checkpointing)
    assert len(folded._none) < len(whole._none) / 1.5
    for batch, edge in ((1, 8), (1, 32), (4, 64)):
        for gradients in (0, "fp32", "bf16"):
            expected = whole.peak(batch, edge, edge, gradients)
            assert folded.peak(batch, edge, edge, gradients) == expected


def test_from_the_second_pass_on_all_gradients_are_there(small, settings):
    whole = planned(small, settings(LARGE))
    small.free = needs(small, settings, gradient_checkpointing="on") - 1
    split = planned(small, settings(LARGE))
    assert whole.micro_batch == 4 > split.micro_batch
    count = DryRun(small, settings(LARGE), print).step(settings(LARGE), True)
    alone = count.peak(split.micro_batch, 32, 32)
    assert split.needed >= split.masters + split.optimizer + split.gradients + alone


def test_the_plan_is_what_a_step_takes():
    """In a process of its own, whose peak nothing else has raised: within 15 %."""
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    asked = {"width": 512, "height": 512, "training.gradient_checkpointing": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "ours", "pocket", json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["grown"] == pytest.approx(told["needed"], rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "switch"), [("sd3_pipeline", "off"), ("flux_pipeline", "on")])
def test_the_plan_is_what_a_transformers_step_takes(name, switch):
    """Within 15 %."""
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, TESTS / "planned_step.py", name, switch],
        env={**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["taken"] == pytest.approx(told["planned"], rel=0.15)


def test_experts_share_their_tokens_evenly():
    """As many as all have together is known: which of them has more, no shape tells."""
    found = []

    def call(router):
        tokens = torch.empty(12, 3).repeat_interleave(2, dim=0)
        chosen = router(torch.empty(12, 3)).topk(2).indices.flatten()
        taken = torch.empty_like(tokens)
        for expert in range(4):
            taken[chosen == expert] = tokens[chosen == expert]
            found.append(len(tokens[chosen == expert]))

    dry_run.counted(torch.nn.Linear(3, 4), torch.float32, call)
    assert found == [6, 6, 6, 6]


def test_an_accelerator_is_not_filled_to_the_brim(small, settings, monkeypatch):
    """What no count of tensors shows is left free there; on the CPU it is the system's to find."""
    assert memory.margin(torch.device("cpu"), 10**10) == 0
    assert memory.margin(torch.device("cuda"), 10**10) == 2**28 + 3 * 10**8
    monkeypatch.setattr(memory, "margin", lambda device, free: 123)
    assert planned(small, settings()).free == small.free - 123


# -- what is done about it -------------------------------------------------------------------

LARGE = {"width": 256, "height": 256}


def needs(small, settings, **changes):
    """Bytes that a run of LARGE needs with these settings of the training."""
    dotted = {f"training.{name}": value for name, value in changes.items()}
    return planned(small, settings({**LARGE, **dotted})).needed


def test_auto_recomputes_only_where_it_must(small, settings):
    off, on = (needs(small, settings, gradient_checkpointing=s) for s in ("off", "on"))
    for free, expected in ((off, False), (off - 1, True), (on, True)):
        small.free = free
        plan = memory.check(small, settings(LARGE))
        assert plan.checkpointing == expected and plan.micro_batch == 4


def test_a_batch_is_split_before_a_run_is_refused(small, settings):
    small.free = needs(small, settings, gradient_checkpointing="on") - 1
    plan = memory.check(small, settings(LARGE))
    assert plan.checkpointing and plan.micro_batch < 4 and plan.fits


def test_a_run_that_does_not_fit_does_not_start(small, settings, recorder, monkeypatch):
    """It names settings that do fit."""
    small.free = 0
    small.free = planned(small, settings(LARGE)).needed - 1  # of parts of one sample
    monkeypatch.setattr(run, "Bank", None)  # what would be made first
    host = recorder()
    with pytest.raises(ESDError, match=r"needs .* MB .* free on cpu: it fits with") as told:
        erase(small, settings(LARGE), host, host)
    assert str(told.value).endswith("it fits with `training.optimizer` = adafactor")
    milder = {**LARGE, "training.optimizer": "adafactor"}
    assert planned(small, settings(milder)).fits


def test_advice_counts_each_kind_of_step_once(small, settings):
    """Whatever the sizes, optimizers and batches that are tried."""
    told = []
    asked = settings({"width": 4096, "height": 4096})
    leanest = {"training.rank": 16, "width": 256, "height": 256}
    small.free = planned(small, settings(leanest)).needed
    with pytest.raises(ESDError, match="it fits with"):
        memory.check(small, asked, told.append)
    assert len(told) == len(set(told)) <= 5


def test_a_host_can_end_the_planning(small, settings):
    class Cancelled(Exception):
        pass

    def cancel(_):
        raise Cancelled

    with pytest.raises(Cancelled):
        memory.check(small, settings(), cancel)


def test_a_device_that_is_much_too_small_is_told(small, settings):
    small.free = 1000
    lean = {"training.optimizer": "adafactor", "training.rank": 1, "method": "esd-x-strict"}
    with pytest.raises(ESDError, match="no settings make it fit"):
        memory.check(small, settings(lean))


@pytest.mark.parametrize("overrides", [{}, {"training.rank": 2}])
def test_parts_of_a_batch_add_up_to_it(small, settings, overrides):
    """Gradients of one step: split in three and whole, to float32's rounding."""
    config, gradients = settings({"training.max_grad_norm": 0.0, **overrides}), []
    for part in (4, 3):
        plan = replace(planned(small, config), micro_batch=part)
        trainer = trainer_of(small, config, plan=plan)
        kept = []
        masters = trainer.student.masters.values()
        trainer.update.optimizer.register_step_pre_hook(
            lambda *_, kept=kept, masters=masters: kept.extend(m.grad.clone() for m in masters)
        )
        trainer.take_step()
        gradients.append(kept)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


class Counting(Small):
    """Notes how many rows went through the network at a time."""

    rows: list[int]

    def predict(self, x, sigma, conditioning):
        self.rows.append(len(x))
        return super().predict(x, sigma, conditioning)


def test_a_round_is_split_to_fit(pipeline, settings):
    denoiser, config = Counting(pipeline), settings()
    denoiser.rows = []
    whole, split = bank_of(denoiser, config), bank_of(denoiser, config, sampling_batch=3)
    expected = whole.sample_round(0, torch.Generator().manual_seed(1))
    assert denoiser.rows == [4, 4, 4]  # 2 trajectories of 3 steps, followed and empty
    denoiser.rows.clear()
    got = split.sample_round(0, torch.Generator().manual_seed(1))
    assert denoiser.rows == [3, 1] * 3
    torch.testing.assert_close(got.target, expected.target, rtol=0, atol=1e-5)


# -- memory that is used up after all --------------------------------------------------------


class Exhausted(Small):
    """Has no memory left at its so-manieth prediction, as an accelerator says it."""

    calls, last = 0, 10**9

    def predict(self, x, sigma, conditioning):
        self.calls += 1
        if self.calls > self.last:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().predict(x, sigma, conditioning)


@pytest.mark.parametrize("at", [1, 4])
def test_the_state_is_kept_and_the_run_ends_with_the_same_bits(
    pipeline, settings, recorder, tmp_path, at
):
    """It breaks in a step, or in a round: rounds are of 3 batches, at 3 predictions each."""
    config, host = settings(), recorder()
    expected = erase(Small(pipeline), config, host, host).erasure.change()
    denoiser, file = Exhausted(pipeline), tmp_path / "state.safetensors"
    before = {name: p.clone() for name, p in denoiser.parameters().items()}
    broken = recorder()

    def use_up():
        denoiser.calls, denoiser.last = 0, at

    broken.at = {1: use_up}
    with pytest.raises(ESDError, match=r"out of memory \(CUDA out of memory.*checkpointing"):
        erase(denoiser, config, broken, broken, file)
    assert all(torch.equal(p, before[n]) for n, p in denoiser.parameters().items())
    denoiser.last = 10**9
    rest = recorder()
    change = erase(denoiser, config, rest, rest, file, resume=True).erasure.change()
    assert rest.steps[0].step == broken.steps[-1].step + 1
    assert all(torch.equal(change[name], value) for name, value in expected.items())


# -- settings and the command ----------------------------------------------------------------


@pytest.mark.parametrize(("old", "now"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_the_switch_of_older_files_is_read(old, now):
    assert TrainingConfig(gradient_checkpointing=old).gradient_checkpointing == now


def test_eight_bits_need_their_package(small, settings, recorder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    host = recorder()
    with pytest.raises(ConfigError, match="needs the package bitsandbytes"):
        erase(small, settings({"training.optimizer": "adamw8bit"}), host, host)


def test_the_command_tells_the_plan(capsys):
    assert main(["plan", "--model", "pocket", "--concept", "Van Gogh"]) == 0
    told = capsys.readouterr().out
    for word in ("weights 14.2 MB", "masters", "gradients", "optimizer", "activations", "bank"):
        assert word in told
    assert re.search(r"needed beside the weights, [\d.]+ GB free", told)
