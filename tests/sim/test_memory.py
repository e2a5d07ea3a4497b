"""Memory, by the device's own count: what runs take against their plans, and what is left when
there is no more."""

import gc
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from simdev import failing_after, fragmented, limited, ops
from trainers import PLAN, planned, trainer_of

from esd_core.cli.model import load
from esd_core.cli.room import Room
from esd_core.errors import ESDError
from esd_core.images.render import render
from esd_core.training.checkpoint import StateFile
from esd_core.training.plan import Planner
from esd_core.training.run import finish

# -- the plan --------------------------------------------------------------------------------

SHORT = {"width": 128, "height": 128, "training.steps": 2, "trajectory.steps": 2}
"""From the second step on, all of the optimizer's state is there."""
PLANS = {
    "esd-x": {},
    "esd-x, recomputed": {"training.gradient_checkpointing": "on"},
    "esd-x, small pictures": {"width": 64, "height": 64},
    "esd-x, wide pictures": {"width": 256, "height": 128},
    "esd-x, large batch": {"training.batch_size": 8},
    "esd-x, many trajectories": {"trajectory.count": 8},
    "esd-x, max_drift": {"training.max_drift": 0.5},
    "esd-x-strict": {"method": "esd-x-strict"},
    "esd-u": {"method": "esd-u"},
    "esd-all, adafactor": {"method": "esd-all", "training.optimizer": "adafactor"},
    "esd-u, adafactor": {"method": "esd-u", "training.optimizer": "adafactor"},
    "esd-x, a round larger than a step": {
        **{"training.batch_size": 2, "trajectory.count": 4},
        "training.gradient_checkpointing": "on",
    },
    "esd-all, low rank": {"method": "esd-all", "training.rank": 4},
    "selfattn, on policy": {"method": "selfattn", "trajectory.source": "student"},
    "esd-all, bf16": {"method": "esd-all"},
    "esd-u, bf16, adafactor": {"method": "esd-u", "training.optimizer": "adafactor"},
}


@pytest.fixture(scope="module")
def planners():
    """By the number format: one counts the prediction of all of its runs once."""
    return {}


@pytest.mark.parametrize("name", PLANS)
def test_a_run_takes_what_its_plan_says(sim, name, planners, make_denoiser, settings, recorder):
    """Never more, and at most a tenth and 2 MB less."""
    dtype, host = torch.bfloat16 if "bf16" in name else torch.float32, recorder()
    if dtype not in planners:
        denoiser = make_denoiser(dtype, sim)
        planners[dtype] = denoiser, Planner(denoiser, settings())
    denoiser, planner = planners[dtype]
    config = settings({**SHORT, "training.gradient_checkpointing": "off", **PLANS[name]})
    plan = planner.plan(config)
    gc.collect()  # models of other tests
    before = ops.allocated()
    ops.reset_peak()
    trainer = trainer_of(denoiser, config, plan=plan)
    finish(trainer, trainer.run(host, host))
    taken = ops.peak() - before
    assert taken <= plan.needed <= 1.1 * taken + 2 * 10**6


def test_a_low_rank_run_ends_in_the_memory_that_it_was_planned_in(
    sim, make_denoiser, settings, recorder
):
    """On policy, probed and drawn, with no dense set of its trained weights at any time."""
    denoiser = make_denoiser(torch.bfloat16, sim)
    lean = {"training.rank": 2, "training.steps": 2, "training.gradient_checkpointing": "on"}
    lean |= {"training.preview_every": 1}
    config = settings({"method": "esd-all", "trajectory.source": "student", **lean})
    plan, host = planned(denoiser, config), recorder()
    row = denoiser.encode(["Van Gogh"], 64, 64)

    def draw(step, student):
        noise, level = torch.zeros(1, 4, 8, 8, device=sim), torch.ones(1, device=sim)
        with denoiser.swapped(student), torch.no_grad():
            drawn.append(denoiser.predict(noise, level, row))

    drawn, host.on_preview = [], draw
    with limited(ops.allocated() + plan.needed):
        trainer = trainer_of(denoiser, config, plan=plan)
        weights = sum(weight.nbytes for weight in denoiser.parameters().values())
        assert plan.needed < weights, "dense weights would not be seen"
        finish(trainer, trainer.run(host, host))
    assert len(drawn) == 2


def test_probes_and_their_recording_take_no_more(sim, make_denoiser, settings, recorder):
    """Of many prompts, where there is room for little side by side."""
    lean = {"method": "esd-x-strict", "training.rank": 1, "training.batch_size": 8}
    many = {"preserve": [f"a photo of {number}" for number in range(12)], "trajectory.steps": 1}
    config = settings({"width": 128, "height": 128, "training.steps": 1, **lean, **many})
    denoiser, host = make_denoiser(torch.float32, sim), recorder()
    gc.collect()
    before, room = ops.allocated(), 3 * 10**6
    with limited(before + round((room + 2**28) / 0.97)):
        plan = planned(denoiser, config)
    assert plan.fits and plan.micro_batch < 8
    ops.reset_peak()
    trainer = trainer_of(denoiser, config, plan=plan)
    trainer.run(host, host)
    assert ops.peak() - before <= room


# -- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("count", "edge"), [(1, 128), (6, 64)])
def test_pictures_take_what_is_planned_for_them(sim, make_denoiser, dtype, count, edge):
    """In fp16 they are decoded in float32. Never more, and at most a tenth and 2 MB less."""
    denoiser = make_denoiser(dtype, sim)
    denoiser.pipeline.vae.register_to_config(force_upcast=True)
    needed = Room(denoiser, edge, edge)._needed(count)
    gc.collect()
    before = ops.allocated()
    ops.reset_peak()
    render(denoiser, ["a"] * count, [*range(count)], 1, 3.0, edge, edge, batch=count)
    taken = ops.peak() - before
    assert taken <= needed <= 1.1 * taken + 2 * 10**6


def test_pictures_for_which_there_is_no_room_are_not_begun(sim, make_denoiser):
    """Fewer side by side are, and memory in fragments is none."""
    denoiser = make_denoiser(torch.float32, sim)
    room = Room(denoiser, 64, 64)
    least = 2**28 + room._needed(1)
    with limited(ops.allocated() + round(1.05 * least)):
        assert room.side_by_side(1) == 1
        assert 1 <= room.side_by_side(1000) < 1000
        with fragmented(round(0.1 * least)), pytest.raises(ESDError, match="a picture of 64x64"):
            room.side_by_side(1)


# -- loading ---------------------------------------------------------------------------------


def test_a_model_for_which_there_is_no_memory_is_told_of(sim):
    sentence = "^out of memory .*, or --precision bf16$"
    with limited(ops.allocated() + 10**6), pytest.raises(ESDError, match=sentence):
        load("pocket", "fp32", sim)


# -- out of memory at any moment -------------------------------------------------------------


def on_device(toy, device, dtype):
    """The toy there: so small a model that every allocation of a run can fail in turn."""

    class OnDevice(toy):
        def encode(self, prompts, width, height):
            return super().encode(prompts, width, height).map(lambda part: part.to(device))

    model = OnDevice({"Van Gogh": (1.0, -0.5, 0.25, 2.0)})
    model.device, model.compute_dtype = torch.device(device), dtype
    gain = torch.ones(4, device=device, dtype=dtype)
    model.gain = model.teacher = torch.nn.Parameter(gain, requires_grad=False)
    return model


PARTS = {
    "adamw": (torch.float32, "adamw", False),
    "adamw, bf16": (torch.bfloat16, "adamw", True),
    "adamw, fp16": (torch.float16, "adamw", False),
    "adafactor": (torch.float32, "adafactor", False),
    "adafactor, bf16": (torch.bfloat16, "adafactor", True),
}
TINY = {"training.steps": 2, "trajectory.steps": 2, "trajectory.count": 1}
TINY |= {"trajectory.source": "student"}
TINY |= {"training.learning_rate": 0.3, "training.max_grad_norm": 0.0}
"""So large a rate that gradients change: Adam takes the same step twice for one, if they do not."""


@pytest.mark.parametrize("name", PARTS)
def test_out_of_memory_at_every_allocation(
    sim, name, toy, settings, recorder, tmp_path, monkeypatch
):
    """The model is as it was, one sentence says so, and the state that is kept resumes to the
    same bits."""
    dtype, optimizer, keeps_bf16 = PARTS[name]
    config = settings({**TINY, "training.optimizer": optimizer})
    monkeypatch.setattr("esd_core.training.student.select", lambda *_: ("gain",))
    passes = 1 if keeps_bf16 else 2  # 16 bits hold the gradients of one pass alone
    plan = replace(PLAN, micro_batch=4 // passes, keeps_bf16=keeps_bf16)
    file = StateFile(tmp_path / "state.safetensors", config.flat(), "base")
    model = on_device(toy, sim, dtype)
    teacher = model.teacher.clone()

    whole, broken, rest = (trainer_of(model, config, plan=plan) for _ in range(3))
    start, host = deepcopy(whole.state_dict()), recorder()
    whole.run(host, host)
    expected = whole.student.masters["gain"].detach()
    for _ in range(2):  # the first run alone makes what a scaler keeps
        broken.load_state_dict(deepcopy(start))
        made = ops.allocations()
        broken.run(host, host)
        count = ops.allocations() - made
    assert count > 100
    broken.state_file = file
    for at in range(count):
        file.path.unlink(missing_ok=True)
        broken.load_state_dict(deepcopy(start))
        with failing_after(at), pytest.raises(ESDError, match="^out of memory .*: take "):
            broken.run(host, host)
        assert model.gain is model.teacher and torch.equal(model.teacher, teacher)
        assert file.path.exists() == (broken.step > 0)
        rest.load_state_dict(file.read() if broken.step else deepcopy(start))
        rest.run(host, host)
        assert torch.equal(rest.student.masters["gain"].detach(), expected), at
