"""The learning rate of a run before it runs: its schedule as points, as a line of text and as a picture."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jtasks import optim
from jtasks.console import number
from jtasks.run.chart import Line, Points, chart
from jtasks.run.stylesheet import STYLE

POINTS, COLUMNS = 400, 48
BARS = "▁▂▃▄▅▆▇█"


def points(fields: Any, steps: int, count: int = POINTS) -> list[tuple[int, float]]:
    """Return (step, learning rate) at up to `count` steps of a run, the first and the last among them.

    Args:
      fields: `config.optim`.
      steps: of the run; config.plateau, which depends on its evaluations, is left out.
      count: maximum number of points.
    """
    at = np.unique(np.linspace(1, steps, min(count, steps)).astype(np.int64))
    rates = np.broadcast_to(np.asarray(jax.jit(optim.schedule(fields, steps))(at - 1)), at.shape)
    return list(zip(at.tolist(), rates.tolist(), strict=True))


def line(rates: Points) -> str:
    """Return the rates as one line of bars, with the first, the largest and the last of them.

    >>> line([(1, 0.5), (2, 1.0), (3, 0.5), (4, 0.0)])
    '▅█▅▁  0.5, at most 1, at last 0'
    """
    values = [value for _, value in rates]
    parts = np.array_split(np.array(values), min(COLUMNS, len(values)))
    top = max(values) or 1.0
    bars = "".join(BARS[round(float(part.mean()) / top * (len(BARS) - 1))] for part in parts)
    return f"{bars}  {number(values[0])}, at most {number(max(values))}, at last {number(values[-1])}"


def picture(rates: Sequence[tuple[int, float]]) -> str:
    """Return the rates as an SVG file."""
    inner = chart("lr", [Line("lr", rates)])
    style = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    head, _, rest = inner.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="800" height="440">{style}{rest}\n'
