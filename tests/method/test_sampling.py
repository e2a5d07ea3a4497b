"""Guided Euler against steps done by hand."""

import pytest
import torch

from esd_core.errors import ESDError
from esd_core.method.sampling import predict_together, sample, unit_noise
from esd_core.models.denoiser import MASK, Conditioning, Schedule

VECTORS = {"two": (2, 2, 2, 2), "one": (1, 1, 1, 1), "ramp": (0, 1, 2, 3)}


def conditionings(model, *prompts, rows=1):
    return [model.encode([p] * rows, 8, 8) for p in prompts]


def test_steps_by_hand(toy):
    """eps is 2 for the prompt and 1 for the "empty" one; guidance 3 makes 1 + 3 * (2 - 1) = 4."""
    model, seen = toy(VECTORS, shared=0.0), []
    prompts = conditionings(model, "two", "one", "ramp")
    noise = torch.ones(1, 4, 1, 1)
    end = sample(
        model,
        noise,
        prompts,
        model.schedule(3, 64, 64),
        3.0,
        lambda x, s, p: seen.append((x, s, p)),
    )
    assert [s for _, s, _ in seen] == [4.0, 2.0, 1.0]
    # x starts at 5 * 1 and loses 4 for each unit of sigma: 5, 5 - 8, 5 - 12, 5 - 16
    assert [x.unique().tolist() for x, _, _ in seen] == [[5.0], [-3.0], [-7.0]]
    assert end.unique().tolist() == [-11.0]
    for _, _, predictions in seen:
        assert [p.flatten().tolist() for p in predictions] == [[2.0] * 4, [1.0] * 4, [0, 1, 2, 3]]


def test_the_direction_is_that_of_the_current_latents(toy):
    """eps = x / 4 at sigmas 4, 2, 1, 0 multiplies x by 1 - 2/4, 1 - 1/4, 1 - 1/4."""
    model = toy({}, shared=0.25)
    noise = torch.arange(4.0).view(1, 4, 1, 1)
    end = sample(model, noise, conditionings(model, "", ""), model.schedule(3, 64, 64), 3.0)
    assert torch.equal(end, noise * 5.0 * 0.5 * 0.75 * 0.75)


@pytest.mark.parametrize(("guidance", "slope"), [(0.0, 1.0), (1.0, 2.0)])
def test_guidance_0_is_the_empty_prompt_and_1_the_prompt(toy, guidance, slope):
    model = toy(VECTORS, shared=0.0)
    prompts = conditionings(model, "two", "one")
    end = sample(model, torch.zeros(1, 4, 1, 1), prompts, model.schedule(3, 64, 64), guidance)
    assert end.unique().tolist() == [-4.0 * slope]


def test_rows_keep_their_own_prompts(toy):
    model = toy(VECTORS, shared=0.0)
    mixed = model.encode(["two", "ramp"], 8, 8)
    empty = model.encode(["", ""], 8, 8)
    end = sample(model, torch.zeros(2, 4, 1, 1), [mixed, empty], model.schedule(3, 64, 64), 1.0)
    assert end[:, :, 0, 0].tolist() == [[-8.0] * 4, [0.0, -4.0, -8.0, -12.0]]


def test_sampling_keeps_no_graph(toy):
    model = toy(VECTORS)
    prompts = conditionings(model, "two", "one")
    with model.swapped({"gain": torch.ones(4, requires_grad=True)}):
        end = sample(model, torch.zeros(1, 4, 1, 1), prompts, model.schedule(3, 64, 64), 2.0)
    assert not end.requires_grad


def test_predicting_together_is_predicting_one_by_one(denoiser):
    x = 3.0 * unit_noise((2, 4, 8, 8), torch.Generator().manual_seed(1), denoiser.device)
    rows = denoiser.encode(["", "a house", "Van Gogh"], 64, 64)
    prompts = [rows.select([0, 0]), rows.select([1, 2])]
    with torch.no_grad():
        together = predict_together(denoiser, x, 3.0, prompts)
        for i, prompt in enumerate(prompts):
            for j in range(2):
                one = denoiser.predict(x[j : j + 1], torch.tensor([3.0]), prompt.select([j]))
                # float32 through a network: the prompts' predictions differ by a tenth
                assert (together[i][j : j + 1] - one).norm() < 1e-5 * one.norm()


def test_noise_is_a_function_of_the_stream_alone():
    first, second = (torch.Generator().manual_seed(s) for s in (5, 5))
    whole = [unit_noise((2, 4, 3, 3), first, torch.device("cpu")) for _ in range(2)]
    again = [unit_noise((2, 4, 3, 3), second, torch.device("cpu")) for _ in range(2)]
    assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])
    assert not torch.equal(whole[0], whole[1])
    many = unit_noise((50_000,), first, torch.device("cpu"))
    # six standard errors of mean and variance of that many normal numbers
    assert abs(many.mean().item()) < 6 / 50_000**0.5
    assert abs(many.var().item() - 1) < 6 * (2 / 50_000) ** 0.5


def test_conditioning_rows():
    whole = Conditioning(
        torch.arange(6.0).view(3, 2, 1), torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3, 6)
    )
    picked = whole.select([2, 0, 2])
    assert len(picked) == 3
    assert picked.pooled.flatten().tolist() == [2.0, 0.0, 2.0]
    assert picked.context.flatten().tolist() == [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]
    joined = Conditioning.cat([whole, picked])
    assert joined.pooled.flatten().tolist() == [0.0, 1.0, 2.0, 2.0, 0.0, 2.0]
    assert torch.equal(joined.time_ids[3], whole.time_ids[2])
    assert Conditioning(whole.context).select([1]).pooled is None


def test_rows_of_different_lengths_are_padded_and_found_again():
    rows = [
        Conditioning(torch.randn(1, n, 3), torch.randn(1, 2), extra={MASK: torch.ones(1, n)})
        for n in (4, 2, 4)
    ]
    whole = Conditioning.cat(rows)
    assert whole.lengths == (4, 2, 4)
    assert whole.context.shape == (3, 4, 3) and not whole.context[1, 2:].any()
    short, long = whole.select([0, 1, 2]).by_length()
    assert (short[0], long[0]) == ([1], [0, 2])
    assert torch.equal(short[1].context, rows[1].context)
    assert torch.equal(short[1].extra[MASK], rows[1].extra[MASK])
    assert torch.equal(short[1].pooled, rows[1].pooled)
    assert torch.equal(long[1].context, torch.cat([rows[0].context, rows[2].context]))
    # What was padded once keeps its length beside what is longer still.
    longer = Conditioning(torch.randn(1, 6, 3), torch.randn(1, 2), extra={MASK: torch.ones(1, 6)})
    assert Conditioning.cat([whole, longer]).lengths == (4, 2, 4, 6)
    assert Conditioning.cat([whole.select([1])]).by_length()[0][1].context.shape == (1, 2, 3)


def test_other_parts_must_have_as_many_tokens_in_all_rows():
    rows = [Conditioning(torch.randn(1, 4, 3), extra={"t5": torch.ones(1, n, 5)}) for n in (7, 9)]
    assert Conditioning.cat(rows[:1] * 2).extra["t5"].shape == (2, 7, 5)
    with pytest.raises(ESDError, match="gives 7 tokens for one prompt and 9 for another"):
        Conditioning.cat(rows)


def test_rows_of_one_length_need_no_padding():
    rows = [Conditioning(torch.randn(1, 4, 3)) for _ in range(2)]
    assert Conditioning.cat(rows).lengths is None


class Guided:
    """A network that takes guidance as an input, and predicts it beside its prompt."""

    def __init__(self):
        self.seen = []

    def predict(self, x, sigma, conditioning):
        self.seen.append((conditioning.context.flatten().tolist(), conditioning.guidance.tolist()))
        return (conditioning.context[:, 0] * conditioning.guidance[:, None])[:, :, None, None] + x


def test_guidance_that_is_an_input_leads_and_targets_are_without():
    """Sampled with it along the prompt alone; what is recorded has the guidance of targets."""
    rows = [Conditioning(torch.tensor([[[value]]]), guidance=torch.ones(1)) for value in (2.0, 5.0)]
    network, seen = Guided(), []
    schedule = Schedule(torch.tensor([1.0, 0.5, 0.0]), 1.0)
    noise = torch.full((1, 1, 1, 1), 3.0)
    found = sample(network, noise, rows, schedule, 3.5, lambda *step: seen.append(step))
    x = 3.0
    for (state, _, predicted), step in zip(seen, (0.5, 0.5), strict=True):
        assert state.item() == x and [p.item() for p in predicted] == [2 + x, 5 + x]
        x = x - step * (2 * 3.5 + x)
    assert found.item() == x
    assert [sigma for _, sigma, _ in seen] == [1.0, 0.5]
    assert network.seen[0] == ([2.0], [3.5]) and network.seen[1] == ([2.0, 5.0], [1.0, 1.0])
