"""When probes end a run, and what they give back."""

import pytest
import torch
from torch import nn

from esd_core.config.settings import TrainingConfig
from esd_core.errors import ESDError
from esd_core.method.probes import ProbeReport
from esd_core.method.terms import Term
from esd_core.training.early_stop import DRIFTED, ERASED, RUNNING, EarlyStop
from esd_core.training.student import FullStudent


def student_at(value):
    return FullStudent({"w": nn.Parameter(torch.full((2,), value))}, ["w"], torch.float32)


def report(share=1.0, drift=0.0):
    return ProbeReport({"c": share}, {"c": "c"}, {"c": 1.0}, {"": drift, "other": 9.0})


def stop(**settings):
    return EarlyStop(TrainingConfig(**settings), (Term("", ""),))


def test_without_limits_nothing_ends_a_run():
    early_stop = stop()
    assert early_stop.check(report(-5.0, 5.0), student_at(1.0), 7) == 7
    assert early_stop.status == RUNNING


def test_until_takes_two_probes_running():
    early_stop, met = stop(until=0.2), []
    for share in (0.1, 0.3, 0.2, 0.2):
        early_stop.check(report(share), student_at(1.0), 1)
        met.append(early_stop.status)
    assert met == [RUNNING, RUNNING, RUNNING, ERASED]


def test_drift_brings_back_the_last_state_within_it():
    """Only what is preserved counts: the other prompt has drifted all the time."""
    early_stop, student = stop(max_drift=0.5), student_at(1.0)
    assert early_stop.check(report(drift=0.5), student, 10) == 10
    student.masters["w"].data.fill_(2.0)
    assert early_stop.check(report(drift=0.6), student, 20) == 10
    assert early_stop.status == DRIFTED
    assert student.masters["w"].tolist() == [1.0, 1.0]


def test_drift_before_any_good_probe_says_what_to_do():
    with pytest.raises(ESDError, match="`training.max_drift`: lower `training.learning_rate`"):
        stop(max_drift=0.5).check(report(drift=0.6), student_at(1.0), 10)


def test_another_goes_on_from_its_state():
    early_stop, student = stop(until=0.2, max_drift=0.5), student_at(1.0)
    early_stop.check(report(0.1), student, 10)
    other = stop(until=0.2, max_drift=0.5)
    other.load_state_dict(early_stop.state_dict())
    student.masters["w"].data.fill_(2.0)
    assert other.check_drift(report(drift=0.6), student, 15) == 10
    assert student.masters["w"].tolist() == [1.0, 1.0]
    again = stop(until=0.2, max_drift=0.5)
    again.load_state_dict(early_stop.state_dict())
    again.check(report(0.1), student, 20)
    assert again.status == ERASED
