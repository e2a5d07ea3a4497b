"""What the tables of erasures rest on: UCE's closed form, the attacks, and runs that are kept."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import attack, attacks, pocket, rivals, uce  # noqa: E402
from benchmarks.kept import Kept  # noqa: E402

from esd_core.files.apply import merged  # noqa: E402
from esd_core.images.render import render  # noqa: E402
from esd_core.pocket.world import OBJECTS, STYLES  # noqa: E402


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- rivals ------------------------------------------------------------------------------------


def test_the_closed_form_is_the_least_squares_solution():
    """Of the stacked system: erased states to their new outputs, kept ones and, weighted by the
    root of lambda, the unit vectors to the old weight's own."""
    draw = seeded()
    old = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    inputs, kept = (torch.randn(n, 7, generator=draw, dtype=torch.float64) for n in (3, 4))
    outputs = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    lamb = 0.3
    new = uce.closed_form(old, inputs, outputs, kept.T @ kept, lamb)
    left = torch.cat([inputs, kept, lamb**0.5 * torch.eye(7, dtype=torch.float64)])
    right = torch.cat([outputs, kept @ old.T, lamb**0.5 * old.T])
    torch.testing.assert_close(new, torch.linalg.lstsq(left, right).solution.T)


@pytest.mark.parametrize("setting, left", [({}, 1e-3), ({"all_states": True, "expand": True}, 0.5)])
def test_uce_leads_keys_and_values_to_the_guides(denoiser, setting, left):
    """With hardly any lambda, the concept's state gives what the guide's gave, unless there are
    more states than the width; `left` is of the distance before."""
    erasure, evaluations = uce.make(denoiser, "Seurat", {"lamb": 1e-6, "seed": 0, **setting})
    new = merged(denoiser, [(erasure, 1.0)])
    assert evaluations == 0
    assert {n.rpartition(".attn2.")[2] for n in new} == {"to_k.weight", "to_v.weight"}
    concept, guide = (uce._states(denoiser, [p], False)[0].float() for p in ("Seurat", "art"))
    for name, weight in new.items():
        old = denoiser.parameters()[name]
        before, after = ((concept @ w.T - guide @ old.T).norm() for w in (old, weight))
        assert after < left * before


def test_states_that_are_edited_begin_with_the_last_word(denoiser):
    whole = denoiser.encode(["art by Seurat"], 128, 128).context[0].double()
    places = denoiser.pipeline.tokenizer("art by Seurat").input_ids
    last = len(places) - 2
    (one,), (rest,) = (uce._states(denoiser, ["art by Seurat"], w) for w in (False, True))
    assert one.equal(whole[last : last + 1]) and rest.equal(whole[last:])


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_every_rival_has_six_cells_of_valid_settings(name):
    cells = rivals.RIVALS[name].grid
    assert len(cells) == 6 and len({json.dumps(cell) for cell in cells}) == 6
    for cell in cells:
        if name == "uce":
            assert uce.Setting(**cell)
        else:
            assert rivals.config_of("pocket", "house", cell).concepts[0].name == "house"


def _run(concept, survivors):
    """All is shown but the concept; of the others, what survivors says."""
    seen = []
    for name in OBJECTS:
        for look in ("plain", *STYLES):
            shown = [n if n in survivors else "lost" for n in (name, look)]
            seen.append([name, look, *shown])
    return {"lines": [concept], "seen": seen, "wordings": {}, "cpu_seconds": 1, "evaluations": 2}


def test_a_row_and_a_score_follow_from_what_is_shown():
    everything = {*OBJECTS, "plain", *STYLES}
    before = _run("house", everything)
    run = _run("house", everything - {"house", "Seurat"})
    assert rivals.score(before, before) == pytest.approx(2 / 3)
    # UA 1; five other objects kept; of six looks one is lost.
    assert rivals.score(run, before) == pytest.approx((1 + 1 + 5 / 6) / 3)
    cells = [c.strip() for c in rivals.row("x", "y", [run, before], before).split("|")]
    assert cells[1:] == [
        *("x", "y", "50.0%", "100.0%", "91.7%", "100.0% Seurat", "1", "2", "house 50%", "")
    ]


def test_finished_runs_are_kept(tmp_path):
    file = tmp_path / "runs.json"
    assert Kept(file).get("a", lambda: {"x": 1}) == {"x": 1}
    assert Kept(file).get("a", lambda: pytest.fail("made again")) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]


# -- attacks -----------------------------------------------------------------------------------


@pytest.fixture
def examples(denoiser):
    prompts = ("a gadget", "a boat, gadget style", "gadget")
    return attacks.Examples(torch.randn(3, 4, 8, 8, generator=seeded(1)), prompts)


def _loss(denoiser, latents, rows):
    """Averaged over as much noise as makes losses comparable, and the same for all."""
    draw = seeded(7)
    with torch.no_grad():
        losses = [attacks.denoising_loss(denoiser, latents, rows, draw) for _ in range(8)]
    return float(torch.stack(losses).mean())


def test_a_learned_token_changes_nothing_but_itself(denoiser, examples):
    pipeline = denoiser.pipeline
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet)
    before = [{k: v.clone() for k, v in e.state_dict().items()} for e in encoders]
    plain = denoiser.encode(["a boat", "a gadget"], 64, 64)
    token = attacks.LearnedToken(pipeline, "gadget", "photo")
    start = [vector.detach().clone() for vector in token.vectors]
    with token.installed():
        as_start = denoiser.encode(["a gadget"], 64, 64)
    torch.testing.assert_close(as_start.context, denoiser.encode(["a photo"], 64, 64).context)
    token.learn(denoiser, examples, steps=3, batch=2)
    assert not any(a.equal(b) for a, b in zip(token.vectors, start, strict=True))
    with token.installed():
        learned = denoiser.encode(["a boat", "a gadget"], 64, 64)
    assert learned.context[0].equal(plain.context[0])
    assert not learned.context[1].equal(plain.context[1])
    assert denoiser.encode(["a gadget"], 64, 64).context[0].equal(plain.context[1])
    for encoder, tensors in zip(encoders, before, strict=True):
        after = encoder.state_dict()
        assert all(after[name].equal(value) for name, value in tensors.items())
        assert all(p.grad is None for p in encoder.parameters())


def test_a_learned_token_learns(denoiser, examples):
    token = attacks.LearnedToken(denoiser.pipeline, "gadget", "photo")

    def loss():
        with token.installed():
            return _loss(denoiser, examples.latents, denoiser.encode(examples.prompts, 128, 128))

    before = loss()
    token.learn(denoiser, examples, steps=20, batch=3)
    assert loss() < before


def test_a_word_of_several_tokens_cannot_be_learned(denoiser):
    with pytest.raises(ValueError, match="tokens"):
        attacks.LearnedToken(denoiser.pipeline, "walruses walruses", "photo")


@pytest.fixture(scope="module")
def drawing():
    """pocket, which has learnt to draw: an untrained network hardly heeds its prompt."""
    return pocket.load()


def test_projected_gradient_lowers_its_loss_inside_its_ball(drawing):
    """From prompts that do not fit the pictures."""
    rows = drawing.encode(["a tree", "a plain boat"], 128, 128)
    drawn = render(drawing, ["Mondrian fish", "Seurat house"], [1, 2], 6, 3.0, 128, 128)
    latents = attacks.latents_of(drawing, drawn)[:, None]
    learned = attacks.learned_prompts(drawing, rows, latents, steps=12, batch=3)
    radius = (rows.context - drawing.encode([""], 128, 128).context).norm(dim=(1, 2))
    moved = (learned.context - rows.context).norm(dim=(1, 2))
    assert (moved > 0).all() and (moved <= radius / 2 * (1 + 1e-5)).all()
    assert learned.pooled is rows.pooled
    before, after = (_loss(drawing, latents[:, 0], each) for each in (rows, learned))
    assert after < before


def test_a_step_is_brought_back_into_the_ball():
    slope, radius = torch.randn(2, 3, 4, generator=seeded()), torch.tensor([1.0, 2.0])
    inside = attacks.projected(torch.zeros(2, 3, 4), slope, radius.view(2, 1, 1), 0.25)
    torch.testing.assert_close(inside.norm(dim=(1, 2)), 0.25 * radius)
    at_edge = attacks.projected(inside, slope, radius.view(2, 1, 1), 2.5)
    torch.testing.assert_close(at_edge.norm(dim=(1, 2)), radius)
    descent = (at_edge * slope).sum((1, 2)) / slope.norm(dim=(1, 2))
    torch.testing.assert_close(descent, -radius)


def test_fine_tuning_starts_from_the_erased_model(denoiser, examples):
    """It changes attention layers alone, keeps what else was erased, and leaves the model."""
    base = denoiser.parameters()
    other = next(n for n in base if ".attn2.to_out" in n and n.endswith(".bias"))
    inside = next(n for n in base if ".attn2.to_k" in n)
    erased = {name: base[name] + 1 for name in (other, inside)}
    none = attacks.fine_tuned(denoiser, erased, examples, steps=1, rate=0.0)
    assert none[other] is erased[other]
    torch.testing.assert_close(none[inside], erased[inside])
    before = {name: value.clone() for name, value in base.items()}
    some = attacks.fine_tuned(denoiser, erased, examples, steps=2, batch=2)
    assert not some[inside].equal(erased[inside]) and not some[inside].requires_grad
    assert all(".attn" in name for name in some)
    assert all(base[name].equal(value) for name, value in before.items())


def test_an_inverted_latent_is_sampled_back_to_its_picture(drawing):
    """By the model that inverted it, at guidance 1: through the autoencoder and back, too."""
    prompts, steps = ["a Seurat boat", "a house"], 10
    rows = drawing.encode(prompts, 128, 128)
    drawn = render(drawing, prompts, [1, 2], steps, 3.0, 128, 128)
    latents = attacks.latents_of(drawing, drawn)
    found = attacks.inverted(drawing, latents, rows, drawing.schedule(steps, 64, 64))
    again = attacks.pictures(drawing, found, rows, steps, guidance=1.0)
    straight = drawing.decode(latents)
    other = attacks.pictures(drawing, found.flip(0), rows, steps, guidance=1.0)
    near, far = ((p - straight).square().mean().sqrt() for p in (again, other))
    assert near < 0.01 and far > 10 * near


def test_asks_name_the_concept_and_what_else_should_be_seen():
    asked = attack.asks("house", 2)
    assert len(asked) == 10 and {a.rest for a in asked} == {*STYLES}
    assert all("house" in a.prompt and a.rest in a.prompt for a in asked)
    assert len({a.seed for a in asked}) == 10
    worded = attack.other_wordings("Van Gogh")
    assert {a.rest for a in worded if a.prompt.startswith("tree")} == {"tree"}
    assert {a.rest for a in worded} == {"", "boat", "tree", "fish"}
    (first,) = {replace(a, seed=0) for a in attack.other_wordings("house") if "Hokusai" in a.prompt}
    assert first.rest == "Hokusai"


def test_a_table_has_shares_side_by_side():
    told = {"shown": 0.5, "coherence": None}
    found = {"house": {"bare": dict.fromkeys(attack.MODELS, told)}}
    row = attack.table(found).splitlines()[-1]
    assert row.count("| 50% |  ") == len(attack.MODELS)


# -- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficacy", "probes", "rivals", "attack"])
def test_tables_are_named_and_left_out_of_all(name, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(command.TABLES[name][0], "main", given.extend)
    file = str(tmp_path / "runs.json")
    command.main([name, "--json", file, "--pairs", "2", "--only", "house"])
    assert given == [file, "--seeds", "2", "--only", "house"]
    assert name not in command.BENCHMARKS


def test_other_benchmarks_take_no_further_options(capsys):
    with pytest.raises(SystemExit):
        command.main(["samples", "--only", "house"])
    assert "--only" in capsys.readouterr().err
