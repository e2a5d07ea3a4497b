"""A run's parts, made as `prepare` makes them, for tests that look inside."""

from esd_core.method.bank import Bank
from esd_core.method.contexts import term_source
from esd_core.method.probes import Probes
from esd_core.method.terms import terms
from esd_core.models.swap import materialize
from esd_core.training.plan import Planner
from esd_core.training.run import prepare


def bank_of(denoiser, config, sampling_batch=None):
    size = config.width, config.height
    return Bank(denoiser, term_source(config), config.trajectory, size, sampling_batch)


def probes_of(denoiser, config):
    """Of the bare lines alone."""
    asked = {str(term): [term] for term in terms(config) if term.concept is not None}
    return Probes(denoiser, asked, config)


def planned(denoiser, config):
    return Planner(denoiser, config).plan(config)


def trainer_of(denoiser, config, state_file=None, plan=None):
    return prepare(denoiser, config, plan or planned(denoiser, config), state_file)


def dense(student):
    """The student's tensors, all of them materialized."""
    return {name: materialize(weight) for name, weight in student.tensors().items()}
