"""A run's parts, made as `prepare` makes them, for tests that look inside."""

from pathlib import Path

from esd_core.method.bank import Bank
from esd_core.method.contexts import term_source
from esd_core.method.probes import Probes
from esd_core.method.terms import terms
from esd_core.models.swap import materialize
from esd_core.training.plan import Plan, Planner
from esd_core.training.run import finish, prepare

SMALL = {
    "concepts": ["Van Gogh"],
    "contexts": [],
    "width": 64,
    "height": 64,
    "negative_guidance": 1.0,
    "preserve_weight": 1.0,
    "trajectory": {"steps": 3, "count": 2, "guidance": 3.0},
    "training": {
        "steps": 5,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "save_dtype": "fp32",
        "loss_weight": "output",
    },
}


PLAN = Plan(*[0] * 8, checkpointing=False, micro_batch=4, keeps_bf16=False, sampling_batch=64)
"""For runs of SMALL whose memory is not asked about: planning takes as long as a short run."""


def bank_of(denoiser, config, sampling_batch=None, source=None):
    size = config.width, config.height
    source = source or term_source(config, denoiser.architecture)
    return Bank(denoiser, source, config.trajectory, size, sampling_batch)


def probes_of(denoiser, config):
    """Of the bare lines alone."""
    asked = {str(term): [term] for term in terms(config) if term.concept is not None}
    return Probes(denoiser, asked, config)


def planned(denoiser, config):
    return Planner(denoiser, config).plan(config)


def trainer_of(denoiser, config, state_file=None, plan=None):
    return prepare(denoiser, config, plan or planned(denoiser, config), state_file)


def run_of(denoiser, config, host, file=None, resume=False, plan=PLAN):
    """As `erase`, by a plan that is given."""
    trainer = prepare(denoiser, config, plan, file, resume)
    return finish(trainer, trainer.run(host, host))


def dense(student):
    """The student's tensors, all of them materialized."""
    return {name: materialize(weight) for name, weight in student.tensors().items()}


class Recorder:
    """Events and commands of a run: notes everything, does what `at` says after a step, stops."""

    def __init__(self, stop_at=None, at=None, finish_at=None):
        self.stop_at, self.at, self.finish_at = stop_at, at or {}, finish_at
        self.steps, self.previews, self.saves, self.probes = [], [], [], []
        self.done = 0

    def on_step(self, progress):
        self.steps.append(progress)
        self.done = progress.step
        if progress.step in self.at:
            self.at[progress.step]()

    def on_preview(self, step: int, student: dict):
        self.previews.append((step, student))

    def on_probe(self, step: int, report):
        self.probes.append((step, report))

    def on_save(self, step: int, path: Path):
        self.saves.append((step, path))

    def should_stop(self):
        return self.stop_at is not None and self.done >= self.stop_at

    def should_finish(self):
        return self.finish_at is not None and self.done >= self.finish_at
