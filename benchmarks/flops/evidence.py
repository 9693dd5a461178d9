"""What the scores of two runs on the same tokens say about each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.reweight.compare import paired
from dynadapt.ops import attention

SINKS = EvalConfig().sinks
BLOCK = 256  # neighbouring tokens, which are not independent, taken as one value


@dataclass(frozen=True)
class Scored:
    """One finished cell. nll [N] nats per token in the text's order, token 1 first; FLOPs are per scored token, by phase, over the whole rectangle of
    attention's windows; masked: of them what causal attention throws away."""

    nll: np.ndarray = field(repr=False)
    bytes: int
    flops: dict[str, float]
    learned_parameters: int
    masked: float = 0.0

    @property
    def mean(self) -> float:
        return float(self.nll.mean(dtype=np.float64))

    @property
    def bits_per_byte(self) -> float:
        return float(self.nll.sum(dtype=np.float64)) / (np.log(2) * self.bytes)

    @property
    def cost(self) -> float:
        """FLOPs per scored token, attention's as causal."""
        return sum(self.flops.values()) - self.masked


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


def masked_per_token(config, tokens: int, settings: dict) -> float:
    """What causal attention throws away of a run's FLOPs per scored token: `tokens` of them on one stream, `settings` as EvalConfig has them. Memory is
    in front of every query and loses what a sliding window does not reach; the context of overlapping windows is run with the segment behind it."""
    segment, every = settings["segment"], 1 if settings.get("accumulate") else settings.get("every", 1)
    held = settings.get("memory", 0) and settings["memory"] + settings.get("sinks", SINKS)
    total = 0
    for i, start in enumerate(range(0, tokens, segment)):
        length = min(segment, tokens - start) + min(settings.get("context", 0), start)
        learns = settings["adapt"] != "none" and (i + 1) % every == 0
        for layer in config.attention_layers:
            window = config.window(layer)
            memory = attention.seen_memory(min(start, held), window)
            forward, backward = attention.masked_flops(length, config.heads, config.head_dim, memory, window)
            total += forward + backward * learns
    return total / tokens


def interval(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95% interval of the mean of per-token values [N]: Student's over the means of blocks of about BLOCK neighbours. Of this text alone, and too narrow
    where blocks go with their neighbours; None of one block."""
    blocks = np.array_split(values, max(1, round(len(values) / BLOCK)))
    low, high = paired([float(block.mean()) for block in blocks])["interval"] or (None, None)
    return low, high


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
