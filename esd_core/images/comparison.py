"""Pictures of a model beside those of its erased selves: their grid, their measures, a report.

Columns are [N, 3, H, W] in 0..1, the original's first; row n of each is the same prompt and seed.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from .grid import DIFFERENCE_HEADER, Row, comparison_grid, difference
from .measures import measures

Measures = dict[str, float]
"""By name, as `measures` gives them."""


def draw(
    rows: Sequence[tuple[str, int]], labels: Sequence[str], columns: Sequence[Tensor], footer: str
) -> Image.Image:
    """The grid of all pictures, and last how far the last column's lie from the original's.

    Args:
        rows: prompt and seed of each.
        labels: of the columns after the original's.
    """
    drawn = [
        Row(prompt or "(empty prompt)", [*shown, difference(shown[0], shown[-1])], f"seed {seed}")
        for (prompt, seed), *shown in zip(rows, *columns, strict=True)
    ]
    last = f" of {labels[-1]}" if len(labels) > 1 else ""
    headers = ["original", *labels, DIFFERENCE_HEADER + last]
    return comparison_grid(drawn, headers, footer=footer)


def measure(columns: Sequence[Tensor]) -> list[list[Measures]]:
    """For every row, how far each other picture lies from the original's."""
    rows = zip(*columns, strict=True)
    return [[measures(original, other) for other in others] for original, *others in rows]


def mean(rows: Sequence[Measures]) -> Measures:
    """The mean of every measure."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def report(prompts: Sequence[str], rows: Sequence[Measures]) -> str:
    """A line a row, then the means."""
    lines = zip([*rows, mean(rows)], [*prompts, "mean of all"], strict=True)
    return "\n".join(
        "  ".join([*(f"{name} {value:.3f}" for name, value in row.items()), label])
        for row, label in lines
    )
