"""The loop, run as hosts run it: what moves, what stays, how it ends, and how it goes on."""

import json

import pytest
import torch
from trainers import probes_of, trainer_of

from esd_core.errors import ConfigError, ESDError, FileError
from esd_core.files.native import write_erasure
from esd_core.models.swap import materialize
from esd_core.storage.reading import read_header, read_tensors
from esd_core.storage.writing import write_safetensors
from esd_core.training.checkpoint import refuse_other_run, state_path
from esd_core.training.making import make_erasure
from esd_core.training.run import erase

RATE = 1e-3


def modules(denoiser):
    parts = denoiser.pipeline.components
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def everything(denoiser):
    """Every tensor of the pipeline, by name."""
    return {
        f"{part}.{name}": tensor
        for part, module in modules(denoiser).items()
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


class Untouched:
    """Notes what a pipeline is, and tells whether it still is that, bit for bit."""

    def __init__(self, denoiser):
        self.denoiser = denoiser
        self.objects = everything(denoiser)
        self.bits = {name: tensor.detach().clone() for name, tensor in self.objects.items()}
        self.checkpointing = denoiser.pipeline.unet.is_gradient_checkpointing
        self.prediction = self.predict()

    def predict(self):
        x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(8))
        with torch.no_grad():
            row = self.denoiser.encode(["Van Gogh"], 64, 64)
            return self.denoiser.predict(x, torch.tensor([2.0]), row)

    def check(self):
        now = everything(self.denoiser)
        assert now.keys() == self.objects.keys()
        for name, tensor in now.items():
            assert tensor is self.objects[name], name
            assert torch.equal(tensor, self.bits[name]), name
            assert tensor.grad is None, name
        assert not any(p.requires_grad for p in self.denoiser.pipeline.unet.parameters())
        assert torch.equal(self.predict(), self.prediction)


# -- the teacher -----------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"trajectory.source": "student"}, {"training.rank": 2}])
def test_the_teacher_is_the_same_before_during_and_after(denoiser, settings, recorder, overrides):
    """Bit for bit, and the very same objects."""
    untouched = Untouched(denoiser)
    host = recorder(at=dict.fromkeys((1, 4), untouched.check))
    result = erase(denoiser, settings(overrides), host, host)
    untouched.check()
    assert denoiser.pipeline.unet.is_gradient_checkpointing == untouched.checkpointing
    assert len(host.steps) == 5
    assert any(change.any() for change in result.erasure.change().values())


def test_a_host_may_look_at_the_student_during_a_step(denoiser, settings, recorder):
    untouched = Untouched(denoiser)
    trainer = trainer_of(denoiser, settings())

    def look():
        with denoiser.swapped(trainer.student.tensors()):
            assert not torch.equal(untouched.predict(), untouched.prediction)
        untouched.check()

    host = recorder(at={2: look})
    trainer.run(host, host)
    untouched.check()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_the_teacher_is_the_same_when_the_host_breaks(
    denoiser, settings, recorder, error, checkpointing
):
    untouched = Untouched(denoiser)

    def break_off():
        with denoiser.swapped(trainer.student.tensors()):
            raise error

    trainer = trainer_of(denoiser, settings({"training.gradient_checkpointing": checkpointing}))
    host = recorder(at={2: break_off})
    with pytest.raises(error):
        trainer.run(host, host)
    untouched.check()
    assert denoiser.pipeline.unet.is_gradient_checkpointing == untouched.checkpointing


def test_the_teacher_is_the_same_after_a_stop(denoiser, settings, recorder, tmp_path):
    untouched = Untouched(denoiser)
    host = recorder(stop_at=2)
    result = erase(denoiser, settings(), host, host, tmp_path / "state.safetensors")
    untouched.check()
    assert (result.outcome.ending, result.outcome.step) == ("stopped", 2)


# -- a step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["esd-x", "esd-x-strict", "esd-u", "selfattn"])
def test_gradients_are_in_the_selected_tensors_alone(denoiser, settings, recorder, method):
    """Selected by name here; the filters have tests of their own."""
    trainer = trainer_of(denoiser, settings({"method": method, "training.steps": 1}))
    inside = {"esd-x": ".attn2.", "esd-x-strict": ".attn2.to_", "selfattn": ".attn1."}
    met = {}

    class Spy(torch.optim.SGD):
        def step(self, *rest):
            met["masters"] = {n: m.grad is not None for n, m in trainer.student.masters.items()}
            met["others"] = [n for n, t in everything(denoiser).items() if t.grad is not None]
            return super().step(*rest)

    trainer.update.optimizer = Spy(trainer.student.masters.values(), RATE)
    host = recorder()
    trainer.run(host, host)
    assert met["masters"] and all(met["masters"].values())
    assert met["others"] == []
    for name in met["masters"]:
        assert inside[method] in name if method in inside else ".attn2." not in name
    assert all(m.grad is None for m in trainer.student.masters.values())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_optimizer_moves_the_masters_and_nothing_else(denoiser, settings, recorder, optimizer):
    trainer = trainer_of(denoiser, settings({"training.optimizer": optimizer}))
    moved = [p for group in trainer.update.optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in moved] == [id(m) for m in trainer.student.masters.values()]
    untouched = Untouched(denoiser)
    host = recorder()
    trainer.run(host, host)
    untouched.check()
    still = [n for n, c in trainer.student.change().items() if not c.any()]
    assert still == []


def test_the_first_loss_by_hand(denoiser, settings, recorder):
    """The student is the teacher yet: (1 + eta)^2 |eps(c) - eps(empty)|^2, and 0 to preserve."""
    eta = 2.0
    trainer = trainer_of(denoiser, settings({"negative_guidance": eta, "training.steps": 1}))
    host = recorder()
    outcome = trainer.run(host, host)
    rows, samples = trainer.rounds.batches[0], trainer.rounds.samples
    assert trainer.config.training.batch_size == len(rows) == 4
    total = 0.0
    with torch.no_grad():
        both = denoiser.encode(["Van Gogh", ""], 64, 64)
        for row in rows[rows < samples.erasing]:
            x, sigma = samples.x[row], samples.sigma[row]
            concept, empty = denoiser.predict(
                torch.stack([x, x]), torch.stack([sigma, sigma]), both
            )
            total += (1 + eta) ** 2 * float((concept - empty).square().mean())
    # what is preserved is off by float32 rounding only
    assert outcome.losses == [pytest.approx(total / 4, rel=1e-4)]


def gradients_of_a_step(trainer, recorder):
    """What the optimizer is given, by master."""
    seen = {}

    def note(*_):
        for name, master in trainer.student.masters.items():
            if master.grad is not None:  # gradients of bf16 come in parts
                seen[name] = master.grad.double().clone()

    trainer.update.optimizer.register_step_pre_hook(note)
    host = recorder()
    trainer.run(host, host)
    return seen


def test_gradients_are_clipped_to_their_norm(denoiser, settings, recorder):
    """Their direction stays."""
    free, clipped = (
        gradients_of_a_step(
            trainer_of(denoiser, settings({"training.steps": 1, "training.max_grad_norm": norm})),
            recorder,
        )
        for norm in (0.0, 1e-4)
    )
    length = float(sum(g.square().sum() for g in free.values())) ** 0.5
    assert length > 1e-3
    # torch adds 1e-6 to the norm that it divides by
    for name, gradient in clipped.items():
        torch.testing.assert_close(
            gradient, free[name] * 1e-4 / (length + 1e-6), rtol=1e-5, atol=1e-12
        )


def test_checkpointing_in_training_reads_the_student_again(denoiser, settings, recorder):
    """Once it has left the teacher, what is recomputed must be the student's: bit for bit."""
    changes = []
    for enabled in ("off", "on"):
        switch = {"training.gradient_checkpointing": enabled, "training.steps": 3}
        host = recorder()
        changes.append(erase(denoiser, settings(switch), host, host).erasure.change())
    assert all(torch.equal(changes[1][name], change) for name, change in changes[0].items())


def test_warm_up_is_linear_and_then_over(denoiser, settings, recorder):
    """Three steps of it: a quarter, two, three, and from then on all of the learning rate."""
    trainer = trainer_of(denoiser, settings({"training.warmup": 3}))
    rates = []

    def note():
        rates.append(trainer.update.optimizer.param_groups[0]["lr"])

    host = recorder(at=dict.fromkeys(range(1, 6), note))
    trainer.run(host, host)
    assert rates == [pytest.approx(RATE * part) for part in (0.25, 0.5, 0.75, 1.0, 1.0)]


def test_training_erases(denoiser, settings, recorder):
    """Half of what the concept adds to its bare prompt is gone after a few steps."""
    config = settings({"training.steps": 20, "training.learning_rate": 3e-4})
    trainer, host = trainer_of(denoiser, config), recorder()
    worst = trainer.run(host, host).probes.share["Van Gogh"]
    bare = probes_of(denoiser, config).measure(trainer.student.tensors()).share["Van Gogh"]
    assert bare < 0.5 and bare < worst < 1


def test_a_student_of_bf16_learns_in_float32(make_denoiser, settings, recorder):
    """Adam's first step, rate * g / (|g| + 1e-8), which bf16 weights would swallow at 1e-5."""
    denoiser = make_denoiser(torch.bfloat16)
    untouched = Untouched(denoiser)
    config = settings({"training.learning_rate": 1e-5, "training.steps": 1})
    trainer = trainer_of(denoiser, config)
    gradients = gradients_of_a_step(trainer, recorder)
    untouched.check()
    name = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    master, teacher = trainer.student.masters[name].detach(), denoiser.parameters()[name]
    change = (master - teacher.float()).double()
    expected = -1e-5 * gradients[name] / (gradients[name].abs() + 1e-8)
    # float32 rounds a weight of pocket's, which are all below 1/8, by half of 2^-27
    assert teacher.abs().max() < 1 / 8
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=2**-27)
    large = teacher.abs() > 0.02
    assert large.float().mean() > 0.5
    assert ((teacher - expected.bfloat16()) == teacher)[large].all()
    assert (expected.abs() > 5e-6).double().mean() > 0.9


# -- what a host is told ---------------------------------------------------------------------


def test_previews_and_saves_come_when_they_are_due(denoiser, settings, recorder, tmp_path):
    config = settings({"training.preview_every": 2, "training.save_every": 3})
    host, path = recorder(), tmp_path / "state.safetensors"
    result = erase(denoiser, config, host, host, path)
    assert [p.step for p in host.steps] == [1, 2, 3, 4, 5]
    assert {p.total for p in host.steps} == {5}
    assert [p.loss for p in host.steps] == result.outcome.losses
    assert [step for step, _ in host.previews] == [2, 4, 5]
    assert host.saves == [(3, path)]
    for _, student in host.previews:
        assert all(".attn2." in name for name in student)


def test_the_report_counts(denoiser, settings, recorder):
    """Five steps of 4 samples: two rounds of 12, half of them erasing at 2 evaluations each."""
    host = recorder()
    report = erase(denoiser, settings(), host, host).report
    assert report["ending"] == "done"
    assert report["student_steps"] == 5
    assert report["samples"] == 20
    assert report["teacher_evaluations"] == 2 * 6 * 2
    json.dumps(report, allow_nan=False)


# -- endings ---------------------------------------------------------------------------------


SLOW = {"training.steps": 20, "training.learning_rate": 3e-4}


def test_until_ends_a_run_when_little_is_left(denoiser, settings, recorder):
    config = settings({**SLOW, "training.until": 0.75, "training.probe_every": 1})
    host = recorder()
    outcome = erase(denoiser, config, host, host).outcome
    assert outcome.ending == "erased" and 1 < outcome.step < 20
    assert outcome.probes.share["Van Gogh"] <= 0.75


@pytest.fixture(scope="module")
def readings(denoiser, settings, recorder):
    """The probes of a run of SLOW before its first step and after each."""
    trainer = trainer_of(denoiser, settings(SLOW))
    reports = [trainer.probes.measure(trainer.student.tensors())]

    def note():
        reports.append(trainer.probes.measure(trainer.student.tensors()))

    host = recorder(at=dict.fromkeys(range(1, 21), note))
    trainer.run(host, host)
    return reports


def test_until_takes_two_probes_running(denoiser, settings, recorder, readings):
    """The run ends at the first step whose share, and the one's before it, lie below."""
    shares = [report.share["Van Gogh"] for report in readings]
    limit = sorted(shares)[len(shares) // 2]
    expected = next(i for i in range(2, 21) if max(shares[i - 1 : i + 1]) <= limit)
    config = settings({**SLOW, "training.until": limit, "training.probe_every": 1})
    assert erase(denoiser, config, recorder(), recorder()).outcome.step == expected


@pytest.fixture(scope="module")
def drifting(readings):
    """(step, limit): a run of SLOW drifts beyond the limit at that step, and not before."""
    drifts = [report.drift[""] for report in readings]
    step = next(i for i in range(3, 21) if drifts[i] > max(drifts[:i]))
    return step, (max(drifts[:step]) + drifts[step]) / 2


def test_max_drift_keeps_the_last_state_below_it(denoiser, settings, recorder, drifting):
    """And says so: it is the result of as many steps as its metadata tells."""
    step, limit = drifting
    host = recorder()
    ending = settings({**SLOW, "training.max_drift": limit, "training.probe_every": 1})
    result = erase(denoiser, ending, host, host)
    assert result.outcome.ending == "drifted" and len(host.steps) == step
    assert result.outcome.probes.drift[""] <= limit
    shorter = erase(denoiser, settings({**SLOW, "training.steps": step - 1}), host, host).erasure
    for name, change in shorter.change().items():
        assert torch.equal(change, result.erasure.change()[name]), name
    assert result.erasure.metadata["esd.steps"] == shorter.metadata["esd.steps"]


def test_max_drift_holds_for_the_last_steps_too(denoiser, settings, recorder, drifting):
    """Also when no probe is due after them: the only one lies a step before the drift."""
    step, limit = drifting
    host = recorder()
    last = {"training.max_drift": limit, "training.probe_every": step - 1, "training.steps": step}
    outcome = erase(denoiser, settings({**SLOW, **last}), host, host).outcome
    assert outcome.probes.drift[""] <= limit
    assert outcome.ending == "drifted"


def test_drift_at_the_first_probe_says_what_to_do(denoiser, settings, recorder):
    untouched = Untouched(denoiser)
    host = recorder()
    config = settings({"training.max_drift": 1e-7, "training.probe_every": 1})
    with pytest.raises(ESDError, match=r"max_drift.*learning_rate"):
        erase(denoiser, config, host, host)
    untouched.check()


# -- a loss that is not finite ---------------------------------------------------------------


def test_a_broken_student_is_told_at_the_next_step(denoiser, settings, recorder, tmp_path):
    untouched, path = Untouched(denoiser), tmp_path / "state.safetensors"
    trainer = trainer_of(denoiser, settings({"training.save_every": 1}), path)

    def spoil():
        next(iter(trainer.student.masters.values())).data.fill_(torch.inf)

    host = recorder(at={3: spoil})
    with pytest.raises(ESDError, match=r"not finite at step 4 \(sigma [\d., ]+\).*learning_rate"):
        trainer.run(host, host)
    untouched.check()
    assert len(host.steps) == 3


def test_a_broken_teacher_is_told_at_once(make_denoiser, settings, recorder, tmp_path):
    denoiser = make_denoiser()
    name = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    denoiser.parameters()[name].data[0, 0] = torch.inf
    objects = everything(denoiser)
    host, path = recorder(), tmp_path / "state.safetensors"
    with pytest.raises(ESDError, match=r"not finite at step 1 \(sigma "):
        erase(denoiser, settings({"training.save_every": 1}), host, host, path)
    assert all(tensor is objects[name] for name, tensor in everything(denoiser).items())
    assert host.steps == [] and not path.exists()


def test_a_student_that_breaks_in_its_last_step_is_no_result(denoiser, settings, recorder):
    trainer = trainer_of(denoiser, settings({"training.steps": 1}))

    def break_gradients(*_):
        for master in trainer.student.masters.values():
            master.grad.fill_(torch.nan)

    trainer.update.optimizer.register_step_pre_hook(break_gradients)
    host = recorder()
    with pytest.raises(ESDError, match="not finite"):
        outcome = trainer.run(host, host)
        make_erasure(trainer.student, denoiser, trainer.config, outcome.step, outcome.probes)


# -- resume ----------------------------------------------------------------------------------

# A round is 3 batches (2 trajectories of 3 steps, in halves of 4), so stops at 1, 3, 4 and 6 lie
# within a round, on a boundary, and right behind one.
RUNS = {
    "plain": {},
    "reuse": {"trajectory.reuse": 2},
    "on policy": {"trajectory.source": "student"},
    "adafactor": {"training.optimizer": "adafactor", "training.warmup": 4},
    "eight bits": {"training.optimizer": "adamw8bit"},
    "low rank": {"training.rank": 2, "method": "esd-u"},
    "further": {"concepts": ["Van Gogh -> painting", "hat <- man"], "preserve": ["a house"]},
    "drift": {"training.max_drift": 10.0, "training.probe_every": 2},
}


def file_of(result, path):
    write_erasure(path, result.erasure, force=True)
    return path.read_bytes()


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_ends_with_the_same_bytes(denoiser, settings, recorder, tmp_path, run):
    config = settings({"training.steps": 7, "training.save_dtype": "fp32", **RUNS[run]})
    whole = recorder()
    expected = file_of(erase(denoiser, config, whole, whole), tmp_path / "whole.safetensors")
    state, losses = tmp_path / "state.safetensors", []
    for stop in (1, 3, 4, 6, None):
        host = recorder(stop_at=stop)
        result = erase(denoiser, config, host, host, state, resume=bool(losses))
        losses += host.steps
    assert [p.step for p in losses] == [1, 2, 3, 4, 5, 6, 7]
    assert [p.loss for p in losses] == [p.loss for p in whole.steps] == result.outcome.losses
    assert file_of(result, tmp_path / "parts.safetensors") == expected


def test_a_run_that_broke_off_goes_on_from_its_last_save(denoiser, settings, recorder, tmp_path):
    config = settings({"training.save_every": 2})
    whole = recorder()
    expected = file_of(erase(denoiser, config, whole, whole), tmp_path / "whole.safetensors")

    def break_off():
        raise KeyboardInterrupt  # at once: nothing is saved any more

    host, state = recorder(at={3: break_off}), tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        erase(denoiser, config, host, host, state)
    assert [step for step, _ in host.saves] == [2]
    host = recorder()
    result = erase(denoiser, config, host, host, state, resume=True)
    assert [p.step for p in host.steps] == [3, 4, 5]
    assert file_of(result, tmp_path / "parts.safetensors") == expected


ENDINGS = {
    "erased": {**SLOW, "training.until": 0.75, "training.probe_every": 1},
    "done": {"training.steps": 3},
}


@pytest.mark.parametrize("ending", [*ENDINGS, "drifted"])
def test_a_run_that_broke_off_at_its_end_is_not_trained_further(
    denoiser, settings, recorder, drifting, tmp_path, ending
):
    """Its last preview fails, or the person cancels while it is drawn."""
    drifts = {**SLOW, "training.max_drift": drifting[1], "training.probe_every": 1}
    seen = {"training.preview_every": 50, "training.save_dtype": "fp32"}
    config, whole = settings({**seen, **ENDINGS.get(ending, drifts)}), recorder()
    expected = erase(denoiser, config, whole, whole)
    assert expected.outcome.ending == ending
    trainer, host = trainer_of(denoiser, config, tmp_path / "state.safetensors"), recorder()

    def fail(step, student):
        raise RuntimeError

    host.on_preview = fail
    with pytest.raises(RuntimeError):
        trainer.run(host, host)
    rest = recorder()
    result = erase(denoiser, config, rest, rest, tmp_path / "state.safetensors", resume=True)
    assert not rest.steps and result.outcome.ending == ending
    ((step, shown),) = rest.previews
    assert step == result.outcome.step
    base = denoiser.parameters()
    for name, change in result.erasure.change().items():
        assert change.equal(materialize(shown[name]).detach() - base[name]), (
            "what comes out is what is shown"
        )
    made = file_of(result, tmp_path / "parts.safetensors")
    assert made == file_of(expected, tmp_path / "whole.safetensors")


def test_a_stop_before_the_first_step_can_be_resumed(denoiser, settings, recorder, tmp_path):
    config, whole = settings({"training.steps": 2}), recorder()
    expected = file_of(erase(denoiser, config, whole, whole), tmp_path / "whole.safetensors")
    host, state = recorder(stop_at=0), tmp_path / "state.safetensors"
    stopped = erase(denoiser, config, host, host, state)
    assert (stopped.outcome.ending, stopped.outcome.step) == ("stopped", 0)
    assert not any(change.any() for change in stopped.erasure.change().values())
    host = recorder()
    result = erase(denoiser, config, host, host, state, resume=True)
    assert file_of(result, tmp_path / "parts.safetensors") == expected


def test_a_run_can_be_made_longer(denoiser, settings, recorder, tmp_path):
    """Steps decide where a run ends, not its course."""
    short, long = settings({"training.steps": 2}), settings({"training.steps": 4})
    whole = recorder()
    expected = erase(denoiser, long, whole, whole).erasure.change()
    host, state = recorder(stop_at=2), tmp_path / "state.safetensors"
    short = short.override({"training.steps": 3})
    erase(denoiser, short, host, host, state)
    result = erase(denoiser, long, recorder(), recorder(), state, resume=True)
    assert all(torch.equal(expected[n], c) for n, c in result.erasure.change().items())


def test_other_seeds_are_other_runs(denoiser, settings, recorder, tmp_path):
    host = recorder()
    files = [
        file_of(
            erase(denoiser, settings({"seed": seed, "training.steps": 1}), host, host),
            tmp_path / "run.safetensors",
        )
        for seed in (0, 0, 1)
    ]
    assert files[0] == files[1] != files[2]


# -- states that do not fit ------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_run(denoiser, settings, recorder, tmp_path_factory):
    host, path = recorder(stop_at=1), tmp_path_factory.mktemp("run") / "state.safetensors"
    erase(denoiser, settings(), host, host, path)
    return path.read_bytes()


@pytest.fixture
def stopped(stopped_run, tmp_path):
    """The state file of a run that stopped at its first step."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(stopped_run)
    return path


def resumed(denoiser, config, recorder, path):
    return erase(denoiser, config, recorder(), recorder(), path, resume=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concepts", ["Monet"]),
        ("preserve", ["a house"]),
        ("method", "esd-u"),
        ("negative_guidance", 2.0),
        ("seed", 7),
        ("trajectory.steps", 4),
        ("trajectory.source", "student"),
        ("training.learning_rate", 5e-4),
        ("training.optimizer", "adafactor"),
        ("training.rank", 4),
    ],
)
def test_a_state_of_other_settings_names_them(settings, tmp_path, name, value):
    before, now = settings().flat(), settings({name: value}).flat()
    refuse_other_run(tmp_path / "s", before, settings().flat())
    with pytest.raises(FileError, match=rf"other settings \(`{name}`\)"):
        refuse_other_run(tmp_path / "s", before, now)


def test_every_changed_setting_is_named(settings, tmp_path):
    now = settings({"seed": 7, "training.warmup": 2, "training.steps": 9}).flat()
    with pytest.raises(FileError, match=r"\(`seed`, `training\.warmup`\)"):
        refuse_other_run(tmp_path / "s", settings().flat(), now)


def test_resuming_another_run_is_refused(denoiser, settings, recorder, stopped):
    with pytest.raises(FileError, match=r"training\.learning_rate"):
        resumed(denoiser, settings({"training.learning_rate": 0.5}), recorder, stopped)


def test_resuming_on_another_model_is_refused(make_denoiser, settings, recorder, stopped):
    other = make_denoiser()
    for parameter in other.parameters().values():
        parameter.data.mul_(1.5)
    with pytest.raises(FileError, match="model"):
        resumed(other, settings(), recorder, stopped)


def test_a_state_beyond_the_last_step_is_refused(denoiser, settings, recorder, tmp_path):
    """It would give a file of more steps than it claims."""
    host, path = recorder(stop_at=3), tmp_path / "state.safetensors"
    erase(denoiser, settings(), host, host, path)
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"3 steps, more than `training\.steps` = 2: raise"):
        resumed(denoiser, settings({"training.steps": 2}), recorder, path)
    assert path.read_bytes() == before


def test_a_missing_state_is_refused(denoiser, settings, recorder, tmp_path):
    with pytest.raises(FileError, match=r"nowhere\.safetensors"):
        resumed(denoiser, settings(), recorder, tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_state_that_is_cut_short_is_refused(denoiser, settings, recorder, stopped, keep):
    stopped.write_bytes(stopped.read_bytes()[:keep])
    with pytest.raises(FileError, match=r"state\.safetensors"):
        resumed(denoiser, settings(), recorder, stopped)


def test_another_safetensors_file_is_no_state(denoiser, settings, recorder, stopped):
    write_safetensors(stopped, {"x": torch.zeros(1)}, {"format": "pt"}, force=True)
    with pytest.raises(FileError, match="is not a training state"):
        resumed(denoiser, settings(), recorder, stopped)


def test_a_state_of_another_version_is_refused_by_name(denoiser, settings, recorder, stopped):
    metadata = {"format": "esd-training-state-1"}
    write_safetensors(stopped, {"x": torch.zeros(1)}, metadata, force=True)
    with pytest.raises(FileError, match="esd-training-state-1.*start the run anew"):
        resumed(denoiser, settings(), recorder, stopped)


def lacking_values(tensors, values):
    return tensors, None


def broken_values(tensors, values):
    return tensors, json.dumps(values)[:100]


def lacking_numbers(tensors, values):
    del values["rounds"]["round"]
    return tensors, json.dumps(values)


def lacking_tensors(tensors, values):
    return {k: v for k, v in tensors.items() if not k.startswith("rounds/")}, json.dumps(values)


def lacking_a_master(tensors, values):
    first = next(k for k in tensors if k.startswith("student/"))
    return {k: v for k, v in tensors.items() if k != first}, json.dumps(values)


def misshapen_masters(tensors, values):
    bent = {k: v[:1].clone() if k.startswith("student/") else v for k, v in tensors.items()}
    return bent, json.dumps(values)


@pytest.mark.parametrize(
    "damage",
    [
        lacking_values,
        broken_values,
        lacking_numbers,
        lacking_tensors,
        lacking_a_master,
        misshapen_masters,
    ],
)
def test_a_damaged_state_is_refused(denoiser, settings, recorder, stopped, damage):
    metadata = read_header(stopped).metadata
    tensors, values = damage(read_tensors(stopped), json.loads(metadata["values"]))
    metadata = {"format": metadata["format"]} | ({"values": values} if values else {})
    write_safetensors(stopped, tensors, metadata, force=True)
    untouched = Untouched(denoiser)
    with pytest.raises(FileError, match=r"state\.safetensors"):
        resumed(denoiser, settings(), recorder, stopped)
    untouched.check()


def test_a_state_lies_beside_its_erasure(tmp_path):
    assert state_path(tmp_path / "a.safetensors") == tmp_path / "a.state.safetensors"


def test_batches_of_one_cannot_preserve(settings):
    with pytest.raises(ConfigError, match="batch_size"):
        settings({"training.batch_size": 1})
