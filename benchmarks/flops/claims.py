"""Claims 1 to 7 of "Revisiting Dynamic Evaluation" (arXiv 2403.01518), each with the rule that decides it.

The rules were written before the runs. A comparison is on the same tokens; "below" and "above" mean that its 95% interval
(evidence.interval) lies there entirely; MARGIN is what counts as a difference where the claim is "as good as". A claim is
confirmed when the rule holds on every text, refuted when a text contradicts it with its whole interval, and not decided otherwise.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from .cells import SEGMENT
from .evidence import Scored, cheapest_front, difference, front_at, interval, last_seen

MARGIN = 0.01  # nats per token
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not decided"
Text = dict[str, Scored]  # cell name -> its scores


def _decide(holds: list[bool], contradicts: list[bool]) -> str:
    return REFUTED if any(contradicts) else CONFIRMED if holds and all(holds) else OPEN


def always_improves(texts: dict[str, Text]) -> dict:
    """1. Online adaptation improves on the static model: online less static lies below 0 for LoRA, rows and full, with and without memory."""
    pairs = [
        ("lora-512", "static-512"),
        ("rows-0.1", "static-512"),
        ("full-512", "static-512"),
        ("lora-memory-512", "static-memory-512"),
        ("rows-0.1-memory-512", "static-memory-512"),
        ("full-memory-512", "static-memory-512"),
    ]
    rows = [{"text": name, "online": a, "static": b, **difference(cells[a], cells[b])} for name, cells in texts.items() for a, b in pairs]
    return {"verdict": _decide([r["high"] < 0 for r in rows], [r["low"] > 0 for r in rows]), "rows": rows}


def memory_for_less(texts: dict[str, Text]) -> dict:
    """2. Memory does as well as overlapping windows of the same reach for fewer FLOPs: memory less overlap below MARGIN."""
    pairs = [
        ("static-memory-512", "static-overlap-512"),
        ("static-memory-1536", "static-overlap-1536"),
        ("lora-memory-512", "lora-overlap-512"),
    ]
    rows = [
        {"text": name, "memory": a, "overlap": b, **difference(cells[a], cells[b]), "flops_ratio": cells[b].cost / cells[a].cost}
        for name, cells in texts.items()
        for a, b in pairs
    ]
    holds = [r["high"] < MARGIN and r["flops_ratio"] > 1 for r in rows]
    return {"verdict": _decide(holds, [r["low"] > MARGIN or r["flops_ratio"] <= 1 for r in rows]), "rows": rows}


def frequency_trades(texts: dict[str, Text]) -> dict:
    """3a. Updating less often costs less and scores worse: at every 8 against every 1, FLOPs fall and NLL rises."""
    rows = []
    for name, cells in texts.items():
        steps = [{"every": k, "nll": cells[f"lora-every-{k}"].mean, "cost": cells[f"lora-every-{k}"].cost} for k in (1, 2, 4, 8)]
        rows.append(
            {
                "text": name,
                "static": cells["static-short"].mean,
                "static_cost": cells["static-short"].cost,
                "steps": steps,
                **difference(cells["lora-every-8"], cells["lora-every-1"]),
            }
        )
    cheaper = [r["steps"][-1]["cost"] < r["steps"][0]["cost"] for r in rows]
    holds = [r["low"] > 0 and c for r, c in zip(rows, cheaper)]
    return {"verdict": _decide(holds, [r["high"] < 0 or not c for r, c in zip(rows, cheaper)]), "rows": rows}


def front_below(texts: dict[str, Text]) -> dict:
    """3b. The front of online adaptation lies below that of longer static context: at the cost of every cell on the online front,
    no static cell of up to that cost scores as low."""
    # a text contradicts it when no point of its online front is below
    rows = []
    for name, cells in texts.items():
        points = lambda online: cheapest_front(
            [
                (s.cost, s.mean)
                for c, s in cells.items()  # noqa: E731
                if not c.startswith("tuned") and c.startswith("static") != online
            ]
        )
        static, online = points(False), points(True)
        steps = [{"cost": cost, "online": nll, "static": front_at(static, cost)} for cost, nll in online]
        rows.append(
            {
                "text": name,
                "steps": steps,
                "static_front": static,
                "below": [s["static"] is None or s["online"] < s["static"] for s in steps],
            }
        )
    return {"verdict": _decide([all(r["below"]) for r in rows], [not any(r["below"]) for r in rows]), "rows": rows}


def lora_between(texts: dict[str, Text]) -> dict:
    """4. LoRA scores worse than full adaptation and better than static, at a fraction of the memory: LoRA less full above 0, less
    static below 0, and less than half of the learned parameters, to which masters, gradients and optimizer state are proportional."""
    rows = []
    for name, cells in texts.items():
        lora, full = cells["lora-512"], cells["full-512"]
        kinds = {
            c: {"nll": s.mean, "learned_parameters": s.learned_parameters, "cost": s.cost}
            for c, s in cells.items()
            if c in ("static-512", "lora-512", "full-512") or c.startswith("lora-rank") or (c.startswith("rows") and "memory" not in c)
        }
        rows.append(
            {
                "text": name,
                "against_full": difference(lora, full),
                "against_static": difference(lora, cells["static-512"]),
                "fraction": lora.learned_parameters / full.learned_parameters,
                "kinds": kinds,
            }
        )
    holds = [r["against_full"]["low"] > 0 and r["against_static"]["high"] < 0 and r["fraction"] < 0.5 for r in rows]
    against = [r["against_full"]["high"] < 0 or r["against_static"]["low"] > 0 for r in rows]
    return {"verdict": _decide(holds, against), "rows": rows}


def short_matches_long(texts: dict[str, Text]) -> dict:
    """5. A short context with online adaptation matches or beats a longer one without: online at 512 less static at 2,048 below
    MARGIN, for windows of 2,048 and for a memory that reaches as far."""
    pairs = [
        ("lora-512", "static-2048"),
        ("lora-512", "static-memory-1536"),
        ("lora-memory-512", "static-memory-1536"),
        ("lora-256", "static-1024"),
    ]
    rows = [
        {"text": name, "online": a, "static": b, **difference(cells[a], cells[b]), "flops_ratio": cells[a].cost / cells[b].cost}
        for name, cells in texts.items()
        for a, b in pairs
    ]
    return {"verdict": _decide([r["high"] < MARGIN for r in rows], [r["low"] > MARGIN for r in rows]), "rows": rows}


def grows_with_shift(domains: dict[str, Text]) -> dict:
    """6a. The gain grows with the distribution shift: over the domains, Spearman's correlation of the gain with the static bits per
    byte is positive (permutation p < 0.05, two-sided)."""
    rows = [
        {"text": name, "bits_per_byte": cells["static-512"].bits_per_byte, **_gain(cells["static-512"], cells["lora-512"])}
        for name, cells in domains.items()
    ]
    x, y = [r["bits_per_byte"] for r in rows], [r["mean"] for r in rows]
    if len(rows) < 4:
        return {"verdict": OPEN, "rows": rows, "rho": None, "p": None}
    rho, p = spearman(np.array(x), np.array(y))
    return {"verdict": OPEN if p >= 0.05 else CONFIRMED if rho > 0 else REFUTED, "rows": rows, "rho": rho, "p": p}


def spearman(x: np.ndarray, y: np.ndarray, draws: int = 9999) -> tuple[float, float]:
    """(rank correlation, two-sided permutation p) of paired values [n]."""
    standard = lambda v: (v - v.mean()) / np.linalg.norm(v - v.mean())  # noqa: E731
    a, b = standard(rankdata(x)), standard(rankdata(y))
    by_chance = np.random.default_rng(0).permuted(np.tile(b, (draws, 1)), axis=1) @ a
    rho = float(a @ b)
    return rho, float((1 + (abs(by_chance) >= abs(rho) - 1e-12).sum()) / (1 + draws))


def shrinks_when_tuned(texts: dict[str, Text]) -> dict:
    """6b. The gain shrinks when the model was first fine-tuned on the domain: gain after less gain before lies below 0."""
    rows = []
    for name, cells in texts.items():
        before = cells["static-512"].nll - cells["lora-512"].nll
        after = cells["tuned-static-512"].nll - cells["tuned-lora-512"].nll
        low, high = interval(after - before)
        rows.append(
            {
                "text": name,
                "before": float(before.mean()),
                "after": float(after.mean()),
                "mean": float((after - before).mean()),
                "low": low,
                "high": high,
                "nll": {c: cells[c].mean for c in ("static-512", "lora-512", "tuned-static-512", "tuned-lora-512")},
            }
        )
    return {"verdict": _decide([r["high"] < 0 for r in rows], [r["low"] > 0 for r in rows]), "rows": rows}


CLASSES = ("new in the text", f"last seen over {SEGMENT} tokens ago", f"last seen within {SEGMENT} tokens")


def weights_and_activations(texts: dict[str, Text], tokens: dict[str, np.ndarray]) -> dict:
    """7. Weights and activations are memories that add up: LoRA with memory scores below both LoRA alone and memory alone. By when a
    token was last seen, `classes` says which of the two gains where (nats per token of the class)."""
    rows = []
    for name, cells in texts.items():
        static, weights, activations, both = (cells[c] for c in ("static-512", "lora-512", "static-memory-512", "lora-memory-512"))
        gains = {"weights": static.mean - weights.mean, "activations": static.mean - activations.mean, "both": static.mean - both.mean}
        distance = last_seen(tokens[name][: len(static.nll) + 1])
        masks = (distance == 0, distance > SEGMENT, (distance > 0) & (distance <= SEGMENT))
        classes = {
            title: {
                "share": float(mask.mean()),
                **{
                    k: float((static.nll - s.nll)[mask].mean()) if mask.any() else None
                    for k, s in (("weights", weights), ("activations", activations), ("both", both))
                },
            }
            for title, mask in zip(CLASSES, masks)
        }
        rows.append(
            {
                "text": name,
                "gains": gains,
                "of_the_sum": gains["both"] / total if (total := gains["weights"] + gains["activations"]) > 0 else None,
                "against_weights": difference(both, weights),
                "against_activations": difference(both, activations),
                "classes": classes,
            }
        )
    sides = ("against_weights", "against_activations")
    return {
        "verdict": _decide([r[s]["high"] < 0 for r in rows for s in sides], [r[s]["low"] > 0 for r in rows for s in sides]),
        "rows": rows,
    }


def _gain(static: Scored, online: Scored) -> dict:
    low, high = interval(static.nll - online.nll)
    return {"mean": static.mean - online.mean, "low": low, "high": high, "share": 1 - online.mean / static.mean}


def all_claims(texts: dict[str, Text], domains: dict[str, Text], tokens: dict[str, np.ndarray]) -> dict[str, dict]:
    """Number -> {"claim", "verdict", "rows", ...}. `texts` have every cell, `domains` those of cells.SHIFT (texts included)."""
    found = {
        "1": (always_improves, (texts,)),
        "2": (memory_for_less, (texts,)),
        "3a": (frequency_trades, (texts,)),
        "3b": (front_below, (texts,)),
        "4": (lora_between, (texts,)),
        "5": (short_matches_long, (texts,)),
        "6a": (grows_with_shift, (domains,)),
        "6b": (shrinks_when_tuned, (texts,)),
        "7": (weights_and_activations, (texts, tokens)),
    }
    return {number: {"claim": " ".join(rule.__doc__.split()).split(". ", 1)[1], **rule(*given)} for number, (rule, given) in found.items()}
