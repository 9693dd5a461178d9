"""How many held-out rows of a domain its loss and its velocity take: the least number with which a given change is seen (power.py).

Losses of n rows with the standard deviation s between them have a mean that is known to s / sqrt(n); a true change d of it is called, two-sided at 0.05,
with probability 0.8 from some n on. Two spreads count. That of the rows' *losses* says how exactly a domain's loss is known, for targets from elsewhere and
for comparing domains. That of the rows' *changes* between two evaluations says it of velocity: the same rows are read each time, so that what sets rows
apart cancels, and so it does in what is left to a target that was fitted to those rows. Intervals take rows for independent, which neighbours in
a document are not quite: the numbers are least ones.

CHANGES and LOSSES are the largest spreads of nine domains at the best rate in `benchmarks/results/scratch-rates.json` (rows of 128 tokens, 1.3 million
parameters): what is assumed before a run has rows of its own. `of_run` has them from the run itself.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dynadapt.common.notes import note
from dynadapt.experiments.mixers import MIXERS
from dynadapt.runs.metrics import read_run

from .config import ReweightConfig
from .power import POWER, seen

LEVEL = 0.05
DIFFERENCE = 0.1  # nats that must be seen: a tenth of a velocity where start and target are a nat apart
CHANGES, LOSSES = 0.114, 0.394
MOST = 1 << 20


def sees(spread: float, rows: int) -> float:
    """Nats of the least true change that `rows` rows with this standard deviation show with probability 0.8; one row shows none."""
    return math.inf if rows < 2 else seen(spread / math.sqrt(rows), rows - 1, LEVEL, POWER)


def rows_needed(spread: float, difference: float = DIFFERENCE) -> int:
    """The least number of rows with which a true change of `difference` nats is seen.

    Raises:
        ValueError: `difference` is not above 0, or no number under a million is enough.
    """
    if not difference > 0:
        raise ValueError(f"difference {difference}: give nats above 0")
    low, high = 1, 2
    while sees(spread, high) > difference:
        low, high = high, 2 * high
        if high > MOST:
            raise ValueError(f"difference {difference} at a spread of {spread}: takes more than {MOST:,} rows")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sees(spread, middle) <= difference else (middle, high)
    return high


def check_rows(config: ReweightConfig) -> None:
    """A note where a mixer moves weights by held-out losses of too few rows."""
    needed = rows_needed(CHANGES)
    if MIXERS[config.mixer].signal == "heldout" and config.heldout_rows < needed:
        least = sees(CHANGES, config.heldout_rows)
        what = f"show no change under {least:.2f} nats" if math.isfinite(least) else "have no spread, and show nothing"
        note(
            f"heldout_rows {config.heldout_rows} with mixer {config.mixer!r}: so few rows of a domain {what} four times of five; a velocity of "
            f"{DIFFERENCE:g} nats between evaluations takes {needed}, a loss to {DIFFERENCE:g} nats {rows_needed(LOSSES)}"
        )


def of_run(run: str | Path) -> dict[str, dict]:
    """By domain: rows; change of the held-out loss from the first evaluation to the last, and from the last but one (velocity), in nats; what is seen
    of each, from the spread of this run's own rows; and how many rows a change of DIFFERENCE takes. Empty for a run with one evaluation or without rows."""
    lines = [line for line in read_run(run).metrics if line["kind"] == "evaluation" and line.get("heldout_rows")]
    if len(lines) < 2:
        return {}
    found = {}
    for name in lines[0]["heldout_rows"]:
        first, before, last = (np.array(lines[at]["heldout_rows"][name]) for at in (0, -2, -1))
        rows = len(last)
        found[name] = {"rows": rows}
        for what, change in (("change", last - first), ("velocity", last - before)):
            spread = float(change.std(ddof=1)) if rows > 1 else math.inf
            enough = rows_needed(spread) if math.isfinite(spread) else None
            found[name] |= {what: float(change.mean()), f"{what}_sees": sees(spread, rows), f"{what}_rows_needed": enough}
    return found


def told(found: dict[str, dict]) -> str:
    """What `dynadapt reweight train` says of it: the domains whose change is smaller than what their rows see."""
    small = {name: row for name, row in found.items() if abs(row["change"]) < row["change_sees"]}
    if not small:
        return ""
    each = ", ".join(f"{name} {row['change']:+.3f} of {row['change_sees']:.3f} ({row['rows']} rows)" for name, row in small.items())
    return f"too small for the held-out rows to show four times of five, as changes in nats: {each}; --heldout-rows has more"
