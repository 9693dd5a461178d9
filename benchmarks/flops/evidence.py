"""What the scores of two runs on the same tokens say about each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BLOCK = 256  # tokens that the bootstrap draws together: neighbours are not independent
DRAWS = 4000


@dataclass(frozen=True)
class Scored:
    """One finished cell. nll [N] nats per token in the text's order, token 1 first; FLOPs are per scored token, by phase."""

    nll: np.ndarray = field(repr=False)
    bytes: int
    flops: dict[str, float]
    learned_parameters: int

    @property
    def mean(self) -> float:
        return float(self.nll.mean(dtype=np.float64))

    @property
    def bits_per_byte(self) -> float:
        return float(self.nll.sum(dtype=np.float64)) / (np.log(2) * self.bytes)

    @property
    def cost(self) -> float:
        """FLOPs per scored token."""
        return sum(self.flops.values())


def read_scored(run: Path, summary: dict) -> Scored:
    rows = np.load(run / "scores.npy")
    rows = rows[np.argsort(rows["position"], kind="stable")]
    if len(rows) != summary["tokens"] or (np.diff(rows["position"]) != 1).any():
        raise SystemExit(f"{run}: scores.npy does not hold {summary['tokens']} neighbouring tokens; remove {run} and run again")
    return Scored(
        rows["nll"].astype(np.float64),
        summary["bytes"],
        {phase: flops / summary["tokens"] for phase, flops in summary["flops"].items()},
        summary["learned_parameters"],
    )


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean of per-token values [N], drawing blocks of BLOCK neighbours with replacement."""
    starts = range(0, len(values), BLOCK)
    sums = np.array([values[i : i + BLOCK].sum() for i in starts])
    sizes = np.array([len(values[i : i + BLOCK]) for i in starts])
    drawn = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def difference(a: Scored, b: Scored) -> dict:
    """a less b, in nats per token on the same tokens: {"mean", "low", "high"}."""
    if len(a.nll) != len(b.nll):
        raise ValueError(f"a scores {len(a.nll)} tokens and b {len(b.nll)}: expected the same tokens")
    apart = a.nll - b.nll
    low, high = interval(apart)
    return {"mean": float(apart.mean()), "low": low, "high": high}


def last_seen(tokens: np.ndarray) -> np.ndarray:
    """Distance [N] from tokens[1:] back to the same token's last occurrence; 0 where it has not occurred before."""
    last: dict[int, int] = {}
    distance = np.zeros(len(tokens) - 1, np.int64)
    for i, token in enumerate(tokens.tolist()):
        if i and token in last:
            distance[i - 1] = i - last[token]
        last[token] = i
    return distance


def cheapest_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(cost, NLL) of the points that no cheaper or equally cheap one beats, by cost."""
    front: list[tuple[float, float]] = []
    for cost, nll in sorted(points):
        if not front or nll < front[-1][1]:
            front.append((cost, nll))
    return front


def front_at(front: list[tuple[float, float]], cost: float) -> float | None:
    """The lowest NLL of a front for at most `cost`; None where the front begins later."""
    reached = [nll for c, nll in front if c <= cost * (1 + 1e-9)]
    return min(reached) if reached else None
