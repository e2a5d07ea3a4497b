"""Samples: their batches, and what is selected, split and joined."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from esd_core.method.samples import Samples


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(erasing, preserving, first=0):
    """Samples that their weights tell apart."""
    count = erasing + preserving
    return Samples(
        torch.zeros(count, 1, 1, 1),
        torch.zeros(count),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, 1, 1, 1),
        torch.arange(first, first + count).float(),
        erasing,
    )


def test_every_sample_comes_as_often_as_it_is_reused():
    order = numbered(6, 6).batches(stream(), batch_size=4, reuse=3)
    assert order.shape == (9, 4)
    assert order.flatten().bincount().tolist() == [3] * 12
    passes = order.view(3, 12)
    assert all(sorted(p) == list(range(12)) for p in passes.tolist())
    assert len({tuple(p) for p in passes.tolist()}) == 3


@given(
    count=st.integers(1, 30),
    batch_size=st.integers(2, 12),
    reuse=st.integers(1, 3),
    preserves=st.booleans(),
)
def test_batches_erase_and_preserve_in_halves(count, batch_size, reuse, preserves):
    samples = numbered(count, count if preserves else 0)
    order = samples.batches(stream(), batch_size, reuse)
    erasing = order < count
    preserve_share = batch_size // 2 if preserves else 0
    erase_share = batch_size - preserve_share
    assert (erasing.sum(1) == min(erase_share, count)).all()
    assert ((~erasing).sum(1) == min(preserve_share, count)).all()
    used = order[erasing].bincount(minlength=count)
    assert used.max() <= reuse
    # only what fills no batch of a pass is left out
    assert reuse * count - used.sum() <= reuse * (erase_share - 1)
    assert len(order) >= reuse


@given(count=st.integers(4, 30), batch_size=st.integers(3, 12), short=st.integers(0, 20))
def test_two_may_preserve_for_every_one_that_erases(count, batch_size, short):
    """Where there are fewer than that, as many as there are come into every batch."""
    preserving = max(1, 2 * count - short)
    order = numbered(count, preserving).batches(stream(), batch_size, 1, preserving=2)
    erasing = order < count
    share = min(batch_size - batch_size * 2 // 3, count)
    assert (erasing.sum(1) == share).all()
    assert ((~erasing).sum(1) == order.shape[1] - share).all()
    assert order.shape[1] > share
    assert order.flatten().bincount().max() == 1
    if not short and count % share == 0:
        assert order.shape == (count // share, min(batch_size, 3 * share))


def test_the_order_is_the_streams():
    one, two, other = (numbered(20, 20).batches(stream(seed), 4, 1).tolist() for seed in (1, 1, 2))
    assert one == two != other


# -- parts of them ---------------------------------------------------------------------------


def test_those_that_erase_stay_first_when_parts_are_joined():
    joined = Samples.cat([numbered(2, 1), numbered(1, 2, first=10)])
    assert joined.weight.tolist() == [0, 1, 10, 2, 11, 12]
    assert joined.erasing == 3


def test_selected_samples_know_how_many_of_them_erase():
    chosen = numbered(3, 3).select(torch.tensor([2, 0, 5]))
    assert (chosen.weight.tolist(), chosen.erasing) == ([2, 0, 5], 2)


def test_split_parts_are_the_whole_again():
    whole = numbered(3, 4)
    parts = whole.split(3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [part.erasing for part in parts] == [3, 0, 0]
    assert torch.equal(Samples.cat(parts).weight, whole.weight)


def test_a_subsample_has_none_twice():
    chosen = numbered(0, 10).subsample(6, stream())
    assert len(set(chosen.weight.tolist())) == 6 and chosen.erasing == 0
