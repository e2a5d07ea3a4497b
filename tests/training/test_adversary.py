"""The adversary: what it moves and how far, and that a run with it goes on as any other."""

import pytest
import torch
from trainers import PLAN, bank_of, run_of, trainer_of

from esd_core.files.apply import merged
from esd_core.method.objective import regression_loss
from esd_core.method.rounds import Rounds
from esd_core.training.adversary import REACH, Adversary

ODD, EVEN = 1, 2


@pytest.fixture
def bank(denoiser, settings):
    return bank_of(denoiser, settings())


@pytest.fixture
def batch(bank):
    return Rounds(bank, 6, 0).next_batch(dict)


def distances(moved, rows):
    return (moved - rows).norm(dim=(1, 2))


def test_every_second_step_moves_what_erases(bank, batch):
    """By half of the reach at first, and a half of the way to the empty prompt at most."""
    adversary, rows = Adversary(bank, 0), bank.rows(batch.condition).context
    assert adversary.prompts(batch, EVEN).context.equal(rows)
    moved, erasing = adversary.prompts(batch, ODD).context, batch.erasing
    assert 0 < erasing < len(batch) and moved[erasing:].equal(rows[erasing:])
    ways = distances(rows, bank.rows(torch.tensor([0])).context)[:erasing]
    torch.testing.assert_close(distances(moved, rows)[:erasing], ways * REACH / 2)
    adversary.move *= 2
    moved = adversary.prompts(batch, ODD).context
    torch.testing.assert_close(distances(moved, rows)[:erasing], ways / 2)


def test_it_learns_what_brings_the_concept_back(denoiser, settings, recorder, bank):
    """Of a student that erases, prompts so moved predict more of what the teacher does."""
    host = recorder()
    erasure = run_of(denoiser, settings({"training.steps": 20}), host).erasure
    student, adversary = merged(denoiser, [(erasure, 1.0)]), Adversary(bank, 0)
    samples = bank.sample_round(0, torch.Generator().manual_seed(5))
    samples = samples.select(torch.arange(samples.erasing))

    def distance(rows):
        with torch.no_grad(), denoiser.swapped(student):
            found = denoiser.predict(samples.x, samples.sigma, rows)
        with torch.no_grad():
            wanted = denoiser.predict(samples.x, samples.sigma, bank.rows(samples.condition))
        return float(regression_loss(found, wanted, samples.weight))

    still, first = distance(bank.rows(samples.condition)), distance(adversary.prompts(samples, 1))
    for _ in range(8):
        adversary.learn(samples, 4, student, ODD)
    learnt = adversary.move
    adversary.learn(samples, 4, student, EVEN)
    last = distance(adversary.prompts(samples, ODD))
    assert last < 0.7 * still and last < 0.7 * first
    assert adversary.move.norm() <= 1 + 1e-5
    assert adversary.move.equal(learnt)


def test_a_move_does_not_depend_on_parts(denoiser, bank, batch):
    whole, parted = Adversary(bank, 0), Adversary(bank, 0)
    whole.learn(batch, 100, {}, ODD)
    parted.learn(batch, 1, {}, ODD)
    torch.testing.assert_close(whole.move, parted.move, rtol=1e-3, atol=1e-5)
    assert not whole.move.equal(Adversary(bank, 0).move)


ROBUST = {
    "training.robust": True,
    "training.steps": 6,
    "contexts": ["auto"],
    "method": "esd-all",
}


def test_a_robust_run_goes_on_to_the_bit(denoiser, settings, recorder, tmp_path):
    config, file = settings(ROBUST), tmp_path / "state.safetensors"
    host = recorder()
    whole = run_of(denoiser, config, host)
    stopping = recorder(stop_at=3)
    assert run_of(denoiser, config, stopping, file).outcome.ending == "stopped"
    host = recorder()
    resumed = run_of(denoiser, config, host, file, resume=True)
    changes = whole.erasure.change(), resumed.erasure.change()
    assert all(changes[1][name].equal(change) for name, change in changes[0].items())
    assert whole.report["teacher_evaluations"] == resumed.report["teacher_evaluations"]
    host = recorder()
    plain = run_of(denoiser, settings({**ROBUST, "training.robust": False}), host)
    # Three of six steps are moved, with two samples each that erase.
    more = whole.report["teacher_evaluations"] - plain.report["teacher_evaluations"]
    assert more == 3 * 2
    assert any(not plain.erasure.change()[name].equal(c) for name, c in changes[0].items())


def test_a_step_that_fails_is_repeated_in_full(denoiser, settings, monkeypatch):
    trainer = trainer_of(denoiser, settings(ROBUST), plan=PLAN)
    trainer.take_step()
    move = trainer.adversary.move
    with monkeypatch.context() as broken:
        broken.setattr(trainer, "_backward", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.take_step()
    assert trainer.adversary.move.equal(move)
    trainer.take_step()
    assert not trainer.adversary.move.equal(move)
