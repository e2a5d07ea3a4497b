"""A run that its host asks to finish early, and what a host is told of its probes."""

from esd_core.training.plan import check
from esd_core.training.run import erase, prepare


def test_a_run_that_is_finished_early_is_one_of_fewer_steps(denoiser, settings, recorder):
    host = recorder(finish_at=2)
    kept = erase(denoiser, settings({"training.preview_every": 4}), host, host)
    assert (kept.outcome.ending, kept.outcome.step) == ("by hand", 2)
    assert [step for step, _ in host.previews] == [2]
    quiet = recorder()
    shorter = erase(denoiser, settings({"training.steps": 2}), quiet, quiet)
    assert kept.erasure.metadata["esd.steps"] == "2"
    assert all(kept.erasure.tensors[k].equal(t) for k, t in shorter.erasure.tensors.items())
    assert kept.outcome.probes == shorter.outcome.probes


def test_it_is_not_finished_before_its_first_step(denoiser, settings, recorder):
    host = recorder(finish_at=0)
    assert erase(denoiser, settings(), host, host).outcome.step == 1


def test_a_host_sees_every_probe_and_may_ask_for_more(denoiser, settings, recorder):
    host, config = recorder(), settings({"training.steps": 4})
    trainer = prepare(denoiser, config, check(denoiser, config))
    trainer.probe_interval = 2
    trainer.run(host, host)
    assert [step for step, _ in host.probes] == [2, 4, 4]
    assert host.probes[0][1] != host.probes[1][1] == host.probes[2][1]
