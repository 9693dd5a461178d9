"""Claims 1 to 7 of "Revisiting Dynamic Evaluation" (arXiv 2403.01518), each with the rule that decides it.

The unit is the text. A comparison is the mean over texts of the difference of two runs' mean NLLs on the same tokens, with Student's 95% interval; "below"
and "above" mean that the whole interval lies there; MARGIN is what counts as a difference where a claim is "as good as". Texts of authors and projects
that served to choose defaults judge nothing, and fewer than six texts decide nothing. A claim of several comparisons is confirmed where each one is,
refuted where one is contradicted at 5% divided by their number, and not decided otherwise. Beside each comparison: how far from its limit a true
difference has to lie to be called with a probability of 80%. FLOPs are those of causal attention.

These rules replace those of the first runs, which judged each text by itself, by percentiles of a bootstrap over its blocks (too narrow: of made-up blocks
with long tails they hold 83%), on four texts of which two had served to choose defaults. When they were fixed, this was known of the six texts: the whole
earlier grid on two of them; of all, static and LoRA at 512, the same with memory of 512 (guard.json), and static at 2,048 and with memory of 1,536 on these very
tokens (long-streams.json): two of claim 1's six comparisons, two of claim 5's four with the one that refutes it, one of claim 7's two. On four of the six nothing
was known of overlap, update frequency, rows, full adaptation and fine-tuning.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from benchmarks.script import CONFIRMED, OPEN, REFUTED, judged, mean_error
from dynadapt.experiments.reweight.power import seen

from .cells import SEGMENT
from .evidence import Scored, cheapest_front, difference, front_at, interval, last_seen

MARGIN = 0.01  # nats per token
LEVEL = 0.05
Text = dict[str, Scored]  # cell name -> its scores


def over_texts(values: list[float], margin: float = 0.0, below: bool = True, places: int = 1) -> dict:
    """script.judged of the values of texts; refuted only at LEVEL divided by `places`, the comparisons of its claim. "seen_to_refute" is the distance from the margin
    that is called so with a probability of 80%."""
    found = judged(values, margin, below)
    freedom = len(values) - 1
    found["seen_to_refute"] = seen(mean_error(values)[1], freedom, LEVEL / places) if freedom else None
    if found["verdict"] == REFUTED and found["p"] >= LEVEL / places:
        found["verdict"] = OPEN
    return found


def _decide(comparisons: list[dict]) -> str:
    verdicts = [found["verdict"] for found in comparisons]
    return REFUTED if REFUTED in verdicts else CONFIRMED if verdicts and set(verdicts) == {CONFIRMED} else OPEN


def compare(texts: dict[str, Text], pairs: list[tuple[str, str]], names: tuple[str, str], margin: float = 0.0, below: bool = True) -> dict:
    """Verdict, rows by text and comparisons over texts of pairs of cells; names: what the two of a pair are called in them."""
    called = lambda pair: dict(zip(names, pair))  # noqa: E731
    rows = [
        {"text": text, **called((a, b)), **difference(cells[a], cells[b]), "flops_ratio": cells[a].cost / cells[b].cost}
        for text, cells in texts.items()
        for a, b in pairs
    ]
    over = [
        {**called((a, b)), **over_texts([cells[a].mean - cells[b].mean for cells in texts.values()], margin, below, len(pairs))}
        for a, b in pairs
    ]
    return {"verdict": _decide(over), "rows": rows, "over_texts": over}


def improves(texts: dict[str, Text]) -> dict:
    """1. Online adaptation improves on the static model: online less static below 0 for LoRA, rows and full, with and without memory."""
    pairs = [
        ("lora-512", "static-512"),
        ("rows-0.1", "static-512"),
        ("full-512", "static-512"),
        ("lora-memory-512", "static-memory-512"),
        ("rows-0.1-memory-512", "static-memory-512"),
        ("full-memory-512", "static-memory-512"),
    ]
    return compare(texts, pairs, ("online", "static"))


def memory_for_less(texts: dict[str, Text]) -> dict:
    """2. Memory does as well as overlapping windows of the same reach for fewer FLOPs: memory less overlap below MARGIN, at fewer FLOPs."""
    pairs = [
        ("static-memory-512", "static-overlap-512"),
        ("static-memory-1536", "static-overlap-1536"),
        ("lora-memory-512", "lora-overlap-512"),
    ]
    found = compare(texts, pairs, ("memory", "overlap"), MARGIN)
    dearer = any(row["flops_ratio"] >= 1 for row in found["rows"])
    return {**found, "verdict": REFUTED if dearer else found["verdict"]}


def frequency_trades(texts: dict[str, Text]) -> dict:
    """3a. Updating less often costs less and scores worse: an update at every 8th segment less one at every segment above 0, at fewer FLOPs. Learned
    from is an eighth of the text, then, so that beside it, judged by itself, the frequency alone: an update at every 8th segment from all eight."""
    rows = []
    for name, cells in texts.items():
        step = lambda kind, k: {"every": k, "nll": cells[f"lora-{kind}-{k}"].mean, "cost": cells[f"lora-{kind}-{k}"].cost}  # noqa: B023, E731
        rows.append(
            {
                "text": name,
                "static": cells["static-short"].mean,
                "static_cost": cells["static-short"].cost,
                "steps": [step("every", k) for k in (1, 2, 4, 8)],
                "accumulated": [step("accumulate", k) for k in (2, 4, 8)],
                **difference(cells["lora-every-8"], cells["lora-every-1"]),
            }
        )
    apart = lambda a: [cells[a].mean - cells["lora-every-1"].mean for cells in texts.values()]  # noqa: E731
    between = [{"every": k, **over_texts(apart(f"lora-accumulate-{k}"), below=False), "verdict": None} for k in (2, 4)]
    over = {"every": 8, "learned_from": "an eighth", **over_texts(apart("lora-every-8"), below=False)}
    alone = {"every": 8, "learned_from": "all", **over_texts(apart("lora-accumulate-8"), below=False)}
    alone["equivalent"] = len(texts) >= 6 and alone["low"] > -MARGIN and alone["high"] < MARGIN
    dearer = any(r["steps"][-1]["cost"] >= r["steps"][0]["cost"] for r in rows)
    found = {"rows": rows, "over_texts": [over], "frequency_alone": alone, "frequencies_between": between}
    return {"verdict": REFUTED if dearer else over["verdict"], **found}


def front_below(texts: dict[str, Text]) -> dict:
    """3b. The front of online adaptation lies below that of longer static context: for each online cell on the front of the texts' means, its NLL less
    that of the best static cell of the same text whose FLOPs are no more; confirmed where every one is below 0, refuted where every one is above."""
    known = [name for name in next(iter(texts.values())) if not name.startswith("tuned")]
    cost = {name: float(np.mean([cells[name].cost for cells in texts.values()])) for name in known}
    mean = {name: float(np.mean([cells[name].mean for cells in texts.values()])) for name in known}
    static = [name for name in known if name.startswith("static")]
    on_front = dict(cheapest_front([(cost[name], mean[name]) for name in known if name not in static]))
    online = sorted((name for name in known if name not in static and on_front.get(cost[name]) == mean[name]), key=cost.get)
    over = []
    for name in online:
        against = [other for other in static if cost[other] <= cost[name] * (1 + 1e-9)]
        if against:
            values = [cells[name].mean - min(cells[other].mean for other in against) for cells in texts.values()]
            over.append({"online": name, "cost": cost[name], "against": against, **judged(values)})
    rows = []
    for text, cells in texts.items():
        front = cheapest_front([(cells[name].cost, cells[name].mean) for name in static])
        steps = [{"cost": cells[n].cost, "online": cells[n].mean, "static": front_at(front, cells[n].cost)} for n in online]
        rows.append({"text": text, "steps": steps, "static_front": front})
    verdicts = {found["verdict"] for found in over}
    return {"verdict": verdicts.pop() if len(verdicts) == 1 else OPEN, "rows": rows, "over_texts": over}


def lora_between(texts: dict[str, Text]) -> dict:
    """4. LoRA scores worse than full adaptation, at a fraction of the memory: LoRA less full above 0, with memory and without, each at its default rate, and
    less than half of the learned parameters, to which masters, gradients and optimizer state are proportional."""
    found = compare(texts, [("lora-512", "full-512"), ("lora-memory-512", "full-memory-512")], ("lora", "full"), below=False)
    kinds = {
        text: {
            c: {"nll": s.mean, "learned_parameters": s.learned_parameters, "cost": s.cost}
            for c, s in cells.items()
            if c in ("static-512", "lora-512", "full-512") or c.startswith("lora-rank") or (c.startswith("rows") and "memory" not in c)
        }
        for text, cells in texts.items()
    }
    halves = [cells["lora-512"].learned_parameters < cells["full-512"].learned_parameters / 2 for cells in texts.values()]
    return {**found, "verdict": found["verdict"] if all(halves) else REFUTED, "kinds": kinds}


def short_matches_long(texts: dict[str, Text]) -> dict:
    """5. A short context with online adaptation matches or beats a longer one without: online at 512 less static at 2,048 below
    MARGIN, for windows of 2,048 and for a memory that reaches as far."""
    pairs = [
        ("lora-512", "static-2048"),
        ("lora-512", "static-memory-1536"),
        ("lora-memory-512", "static-memory-1536"),
        ("lora-256", "static-1024"),
    ]
    return compare(texts, pairs, ("online", "static"), MARGIN)


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
    return {"verdict": OPEN if p >= LEVEL else CONFIRMED if rho > 0 else REFUTED, "rows": rows, "rho": rho, "p": p}


def spearman(x: np.ndarray, y: np.ndarray, draws: int = 9999) -> tuple[float, float]:
    """(rank correlation, two-sided permutation p) of paired values [n]."""
    standard = lambda v: (v - v.mean()) / np.linalg.norm(v - v.mean())  # noqa: E731
    a, b = standard(rankdata(x)), standard(rankdata(y))
    by_chance = np.random.default_rng(0).permuted(np.tile(b, (draws, 1)), axis=1) @ a
    rho = float(a @ b)
    return rho, float((1 + (abs(by_chance) >= abs(rho) - 1e-12).sum()) / (1 + draws))


def shrinks_when_tuned(texts: dict[str, Text]) -> dict:
    """6b. The gain shrinks when the model was first fine-tuned on the domain: gain after less gain before below 0."""
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
    over = over_texts([row["mean"] for row in rows])
    return {"verdict": over["verdict"], "rows": rows, "over_texts": [over]}


CLASSES = ("new in the text", f"last seen over {SEGMENT} tokens ago", f"last seen within {SEGMENT} tokens")


def weights_and_activations(texts: dict[str, Text], tokens: dict[str, np.ndarray]) -> dict:
    """7. Weights and activations are memories that each add to the other: LoRA with memory less LoRA alone, and less memory alone, below 0. Beside it, judged by
    itself: that they add up in full, the gain of both as a share of the sum of their gains less 1. By when a token was last seen, `classes` says which of
    the two gains where (nats per token of the class)."""
    found = compare(texts, [("lora-memory-512", "lora-512"), ("lora-memory-512", "static-memory-512")], ("both", "alone"))
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
        total = gains["weights"] + gains["activations"]
        rows.append({"text": name, "gains": gains, "of_the_sum": gains["both"] / total if total > 0 else None, "classes": classes})
    shares = [row["of_the_sum"] for row in rows]
    whole = judged([share - 1 for share in shares], below=False) if None not in shares else None
    return {"verdict": found["verdict"], "rows": rows, "over_texts": found["over_texts"], "share_less_1": whole}


def _gain(static: Scored, online: Scored) -> dict:
    low, high = interval(static.nll - online.nll)
    return {"mean": static.mean - online.mean, "low": low, "high": high, "share": 1 - online.mean / static.mean}


def all_claims(texts: dict[str, Text], domains: dict[str, Text], tokens: dict[str, np.ndarray]) -> dict[str, dict]:
    """Number -> {"claim", "verdict", "rows", ...}. `texts` have every cell, `domains` those of cells.SHIFT (texts included)."""
    found = {
        "1": (improves, (texts,)),
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
