"""How a run can end by itself, in words, for every host."""

ENDINGS = {
    "done": "all steps done",
    "erased": "ended early: no more than `training.until` of the concept is left",
    "drifted": (
        "ended early: a prompt drifted beyond `training.max_drift`; the last state below it is kept"
    ),
    "by hand": "ended by hand: what was trained by then is kept",
}
