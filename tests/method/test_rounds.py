"""Rounds: batches in order, and a cursor that can be put back to where it stood."""

import pytest
import torch
from trainers import bank_of

from esd_core.method.rounds import Rounds


def rounds_of(model, config, seed=0):
    return Rounds(bank_of(model, config), config.training.batch_size, seed)


def untrained():
    return {"gain": torch.ones(4)}


def drawn(rounds, count):
    return [rounds.next_batch(untrained).tensors() for _ in range(count)]


def same(some, others):
    assert len(some) == len(others)
    pairs = [(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in a]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("before", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("source", ["teacher", "student"])
def test_what_is_put_back_comes_again(toy, settings, before, source):
    """Three batches a round: within one, at its end, and before the first."""
    config = settings({"trajectory.source": source})
    rounds = rounds_of(toy({}), config)
    drawn(rounds, before)
    state = rounds.state_dict()
    first = drawn(rounds, 5)
    evaluations = rounds.bank.evaluations
    rounds.load_state_dict(state)
    assert same(first, drawn(rounds, 5))
    assert rounds.bank.evaluations == evaluations


def test_another_rounds_goes_on_from_a_state(toy, settings):
    rounds, other = (rounds_of(toy({}), settings()) for _ in range(2))
    drawn(rounds, 4)
    other.load_state_dict(rounds.state_dict())
    assert same(drawn(rounds, 4), drawn(other, 4))


def test_a_seed_decides_the_batches(toy, settings):
    one, again, other = (drawn(rounds_of(toy({}), settings(), seed), 4) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)


def test_a_round_is_sampled_when_the_one_before_is_used_up(toy, settings):
    """2 trajectories of 3 steps erase, in halves of batches of 4."""
    model = toy({})
    rounds = rounds_of(model, settings())
    assert not rounds.ready and rounds.batch_size == 0
    rows = []
    for _ in range(4):
        rounds.next_batch(untrained)
        rows.append(model.rows)
    assert rows == [12, 12, 12, 24]
    assert rounds.ready and rounds.batch_size == 4


def test_a_state_that_lacks_a_part_is_told_by_it(toy, settings):
    rounds = rounds_of(toy({}), settings())
    state = rounds.state_dict()
    del state["noise"]
    with pytest.raises(KeyError, match="noise"):
        rounds.load_state_dict(state)
