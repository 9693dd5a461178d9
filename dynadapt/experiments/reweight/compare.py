"""Which mixer is better: paired differences over seeds, and what may be said of them.

Rows are finished runs, {"method", "seed", "test": {domain: nats}, "mean": nats, ...}. Runs of one seed share what chance
decides (the random numbers that draw rows, initial weights), so that differences are taken within a seed.

The rule, fixed before any run was looked at:
- The outcome of a run is the mean over domains of its loss on test rows, which no mixer reads.
- A difference between two methods is the mean over seeds of their paired differences, with Student's 95% interval (n - 1
  degrees of freedom) and two-sided p-value. Seeds that one of the two lacks are left out.
- Many methods are compared with stratified: p-values of those comparisons are adjusted by Holm's method over all methods of
  the case. "better" or "worse" needs an adjusted p below 0.05; else the comparison is "undecided".
- Claim 8 (Velocitune beats static proportions and distance-based reweighting): velocitune against stratified, proportional and
  dynamic-batch-loading, three comparisons with Holm's adjustment. Confirmed if it is better in all three; refuted if it is
  worse in any; else not decided.
- Claim 9 (moving weights against their average): velocitune against velocitune-average, one comparison, p below 0.05 decides.
Added since, changing no number of the rule:
- Beside each comparison stands the difference that it sees (power.py): the true one that it would call with probability 0.8, at the spread
  between seeds that was found and the level that its family leaves the first to be called.
- DoReMi in batches with fewer rows than domains is "not tested": mixers/doremi.py says why. It stays in its family.
Intervals of single domains are not adjusted: of twenty of them, one leaves out zero by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy.stats import t as student

from dynadapt.runs.drawing import CYCLE, STYLE, save

from .power import POWER, seeds_for, seen

LEVEL = 0.95
FAR = 3.0  # a picture whose largest difference is more than so many times the middle one has a logarithmic axis,
NEAR = 0.2  # linear up to this share of the largest
PANELS = 6  # of weights, in the picture of a case
BASE, CONTROLLED = "stratified", "-average"
POINTS = 30
ADDED = ("velocitune-known",)  # after the rule was fixed: outside its family, so that it changes no other verdict
CLAIM8 = ("stratified", "proportional", "dynamic-batch-loading")
WANTS_LARGE_BATCHES = ("doremi", "doremi-average", "doremi-sampling")
UNTESTED = "not tested"
WORTH = 0.05  # nats: what a mixer may be worth


class CompareError(ValueError):
    """Runs that can't be compared; the message names them."""


def paired(differences: Sequence[float]) -> dict:
    """Mean, Student's interval and two-sided p-value of paired differences [n seeds]; of one seed, neither."""
    values = np.asarray(differences, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise CompareError(f"differences {list(differences)!r}: give at least one finite number")
    n, mean = len(values), float(values.mean())
    if n < 2:
        return {"seeds": n, "mean": mean, "interval": None, "p": None}
    return {"seeds": n, **with_interval(mean, float(values.std(ddof=1)) / math.sqrt(n), n - 1)}


def with_interval(mean: float, error: float, freedom: float) -> dict:
    """Student's interval and two-sided p-value of a mean with this standard error."""
    reach = float(student.ppf((1 + LEVEL) / 2, freedom)) * error
    p = 2 * float(student.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return {"mean": mean, "interval": [mean - reach, mean + reach], "p": p}


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of p-values, in the order given; None (no p-value) stays and does not count."""
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted, largest = [None] * len(values), 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def said(mean: float, p: float | None) -> str:
    """Losses are compared: a lower one is better."""
    return "undecided" if p is None or p >= 1 - LEVEL else "better" if mean < 0 else "worse"


def difference(rows: Sequence[Mapping], method: str, other: str) -> dict | None:
    """method less other, paired by seed: of the mean, and by domain. None when no seed has both."""
    one, two = ({row["seed"]: row for row in rows if row["method"] == name} for name in (method, other))
    seeds = sorted(set(one) & set(two))
    if not seeds:
        return None
    return of_pairs([(one[seed], two[seed]) for seed in seeds])


def of_pairs(pairs: Sequence[tuple[Mapping, Mapping]]) -> dict:
    """First less second, of the mean and by domain; each has "mean" and "test"."""
    found = paired([one["mean"] - two["mean"] for one, two in pairs])
    found["domains"] = {domain: paired([one["test"][domain] - two["test"][domain] for one, two in pairs]) for domain in pairs[0][0]["test"]}
    return found


def compared(rows: Sequence[Mapping], pairs: Sequence[tuple[str, str]], taken: Callable = difference) -> dict[str, dict]:
    """Differences of the pairs that were run, as `taken` takes them, Holm-adjusted together, each with what it says; keyed by method, or by
    `other` when the method is the same throughout."""
    found = {(one, two): taken(rows, one, two) for one, two in pairs}
    found = {pair: value for pair, value in found.items() if value}
    for value, p in zip(found.values(), holm([value["p"] for value in found.values()])):
        value["p_adjusted"], value["says"] = p, said(value["mean"], p)
        value["sees"] = sees(value, (1 - LEVEL) / len(found))
        value["seeds_for_worth"] = seeds_for_worth(value, (1 - LEVEL) / len(found))
    same = len({one for one, _ in pairs}) == 1
    return {two if same and len(pairs) > 1 else one: value for (one, two), value in found.items()}


def sees(value: Mapping, level: float) -> float | None:
    """The true difference that a comparison calls at this level with probability POWER; None of one seed."""
    return None if value["interval"] is None else seen(_error(value), value["seeds"] - 1, level)


def seeds_for_worth(value: Mapping, level: float) -> int | None:
    """With how many seeds it would call a true difference of WORTH so often, at the spread that was found; None of one seed, and of too many."""
    return None if value["interval"] is None else seeds_for(WORTH, _error(value) * math.sqrt(value["seeds"]), level)


def _error(value: Mapping) -> float:
    """The standard error of a mean, from its interval."""
    return (value["interval"][1] - value["mean"]) / float(student.ppf((1 + LEVEL) / 2, value["seeds"] - 1))


def report(rows: Sequence[Mapping], batch: int | None = None) -> dict:
    """All of one case: methods in a table, comparisons, verdicts. JSON-ready. batch: rows of a step, where it is known."""
    if not rows:
        raise CompareError("no finished run to compare")
    check_alike(rows)
    methods = _methods(rows)
    return {"methods": {name: _summary([row for row in rows if row["method"] == name]) for name in methods}, **judged(rows, batch)}


def _methods(rows: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in sorted(rows, key=lambda row: (row["seed"], _order(row["method"])))))


def judged(rows: Sequence[Mapping], batch: int | None = None) -> dict:
    """Comparisons and verdicts of one case, from what each run ended with alone."""
    check_alike(rows)
    methods = _methods(rows)
    others = [name for name in methods if name != BASE]
    untested = WANTS_LARGE_BATCHES if batch is not None and batch < len(rows[0]["test"]) else ()
    against_base = compared(rows, [(name, BASE) for name in others if name not in ADDED])
    for name in ADDED:
        against_base.update(compared(rows, [(name, BASE)]) if name in others else {})
    for name in set(untested) & set(against_base):
        against_base[name]["says"] = UNTESTED
    controls = {name: compared(rows, [(name, name + CONTROLLED)]) for name in methods if name + CONTROLLED in methods}
    claim8 = compared(rows, [("velocitune", other) for other in CLAIM8])
    for value in claim8.values():
        del value["domains"]  # by domain, differences to stratified and controls are enough
    claim9 = controls.get("velocitune", {}).get("velocitune")
    for name in set(untested) & set(controls):
        controls[name][name]["says"] = UNTESTED
    return {
        "against_stratified": against_base,
        "against_control": {name: value[name] for name, value in controls.items() if value},
        "claim8": {"comparisons": claim8, "verdict": _claim8(claim8)},
        "claim9": {"verdict": _claim9(claim9)},
        "verdict": _verdict(against_base),
    }


def check_alike(rows: Sequence[Mapping]) -> None:
    """CompareError where a run has other domains or another number of tokens than the first: means over seeds are of runs of one size."""
    first = rows[0]
    for row in rows:
        if set(row["test"]) != set(first["test"]) or row["tokens"] != first["tokens"]:
            one, two = (
                f"{each['method']} of seed {each['seed']} has {each['tokens']:,} tokens of {', '.join(sorted(each['test']))}"
                for each in (first, row)
            )
            raise CompareError(f"{one}; {two}: other domains or other numbers of tokens can't be compared")


def _order(name: str) -> tuple[int, str]:
    first = ("stratified", "proportional", "velocitune", "velocitune-average", "velocitune-known", "dynamic-batch-loading")
    return (first.index(name) if name in first else len(first), name)


def _summary(rows: Sequence[Mapping]) -> dict:
    """Means over seeds, with the spread between them."""
    mean = lambda values: float(np.mean(values))  # noqa: E731
    domains = rows[0]["test"]
    return {
        "seeds": sorted(row["seed"] for row in rows),
        "mean": mean([row["mean"] for row in rows]),
        "spread": float(np.std([row["mean"] for row in rows], ddof=1)) if len(rows) > 1 else None,
        "test": {domain: mean([row["test"][domain] for row in rows]) for domain in domains},
        "tokens": rows[0]["tokens"],
        "average_weights": {domain: mean([row["average_weights"][domain] for row in rows]) for domain in domains},
        "flops": {what: mean([row["flops"][what] for row in rows]) for what in rows[0]["flops"]},
        "most_epochs": max(max(row["epochs"].values()) for row in rows),
        "targets_from": sorted({row["targets_from"] for row in rows if row["targets_from"]}),
        "weights": _thinned(min(rows, key=lambda row: row["seed"])["weights"]),
    }


def _thinned(weights: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """At most POINTS of them: what a picture of a hand's width can show."""
    every = -(-len(weights["tokens"]) // POINTS)
    return {name: [round(value, 3) for value in values[::every]] for name, values in weights.items()}


def _claim8(found: Mapping[str, Mapping]) -> str:
    if set(found) != set(CLAIM8):
        return "not tested: velocitune, stratified, proportional and dynamic-batch-loading are needed"
    words = [value["says"] for value in found.values()]
    parts = ", ".join(f"{value['says']} against {other} ({signed(value)}, sees {nats(value['sees'])})" for other, value in found.items())
    verdict = "confirmed" if set(words) == {"better"} else "refuted" if "worse" in words else "not decided"
    return f"{verdict} at this scale: velocitune is {parts}"


def _claim9(found: Mapping | None) -> str:
    if found is None:
        return "not tested: velocitune and velocitune-average are needed"
    word = {
        "better": "moving weights beat their average",
        "worse": "the average weights, held still, beat moving them",
        "undecided": "not decided: moving weights and their average can't be told apart",
    }[found["says"]]
    return f"{word} at this scale ({signed(found)}, sees {nats(found['sees'])})"


def _verdict(found: Mapping[str, Mapping]) -> str:
    better, worse = ([name for name, value in found.items() if value["says"] == word] for word in ("better", "worse"))
    lines = [
        f"better than stratified: {', '.join(better)}" if better else "no method beats stratified",
        f"worse: {', '.join(worse)}" if worse else "none is worse",
    ]
    for word in ("undecided", UNTESTED):
        left = [name for name, value in found.items() if value["says"] == word]
        lines += [f"{word}: {', '.join(left)}"] if left else []
    return "; ".join(lines)


# ------------------------------------------------------------------------------------------------------------ to be read


def nats(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3f}"


def signed(value: Mapping) -> str:
    if value["interval"] is None:
        return f"{value['mean']:+.4f}, one seed"
    low, high = value["interval"]
    return f"{value['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def markdown(cases: Mapping[str, Mapping]) -> str:
    lines = []
    for name, found in cases.items():
        tokens = next(iter(found["methods"].values()))["tokens"]
        lines += [
            f"## {name}: {tokens:,} tokens",
            "",
            "| method | seeds | mean loss | less stratified (95%) | Holm p | sees | | less its control (95%) "
            "| PFLOP to train | held-out, excess | made first |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for method, row in found["methods"].items():
            base, control = found["against_stratified"].get(method), found["against_control"].get(method)
            flops = row["flops"]
            cells = [
                method,
                str(len(row["seeds"])),
                f"{row['mean']:.4f}",
                signed(base) if base else "",
                _p(base),
                f"{base['sees']:.3f}" if base and base["sees"] is not None else "",
                base["says"] if base else "",
                signed(control) if control else "",
                f"{flops['training'] / 1e15:.4f}",
                f"{(flops['heldout'] + flops['excess']) / 1e15:.4f}",
                f"{flops['made_first'] / 1e15:.4f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += [
            "",
            f"- {found['verdict'][0].upper()}{found['verdict'][1:]}.",
            *_powers(found["against_stratified"]),
            f"- Claim 8: {found['claim8']['verdict']}.",
            f"- Claim 9: {found['claim9']['verdict']}.",
            *_fits(found.get("fits")),
            "",
            *_by_domain(found),
            "",
        ]
    return "\n".join(lines)


def _powers(found: Mapping[str, Mapping]) -> list[str]:
    """What the comparisons with stratified could see, the least and the most of them."""
    counted = [value for name, value in found.items() if value["sees"] is not None and name not in ADDED and value["says"] != UNTESTED]
    if not counted:
        return []
    differences = sorted(value["sees"] for value in counted)
    needed = sorted(value["seeds_for_worth"] or math.inf for value in counted if "seeds_for_worth" in value)
    more = (
        f" For one of {WORTH:g} nats it would take {needed[0]:,} to {needed[-1]:,} seeds (median {int(np.ceil(np.median(needed))):,})."
        if needed and needed[-1] < math.inf
        else ""
    )
    return [
        f"- Power: true differences of {differences[0]:.3f} to {differences[-1]:.3f} nats (median {float(np.median(differences)):.3f}) would have been called with "
        f"probability {POWER:g}, at the spread between seeds that was found.{more}"
    ]


def _fits(found: Mapping | None) -> list[str]:
    """How good the fitted targets were, by what the runs that they predict ended with."""
    if not found or not (found["predictions"] or found["refused_seeds"]):
        return []
    refused = f"Targets: the fit refused in {found['refused_seeds']} seeds" if found["refused_seeds"] else ""
    if not found["predictions"]:
        return [f"- {refused}."]
    fitted = (
        f"fitted ones are {found['mean_error']:+.3f} nats (mean absolute {found['mean_absolute_error']:.3f}) from where "
        f"the predicted runs ended; {found['inside']} of {found['predictions']} ends lie inside their 90% intervals"
    )
    return [f"- {refused}; {fitted}." if refused else f"- Targets: {fitted}."]


def _p(value: Mapping | None) -> str:
    return "" if value is None or value["p_adjusted"] is None else f"{value['p_adjusted']:.3f}"


def _by_domain(found: Mapping) -> list[str]:
    """Loss of each domain under stratified, and differences to it; * where the unadjusted interval leaves out zero."""
    domains = list(next(iter(found["methods"].values()))["test"])
    lines = ["| loss less stratified's | " + " | ".join(domains) + " |", "|---" * (len(domains) + 1) + "|"]
    if BASE in found["methods"]:
        losses = found["methods"][BASE]["test"]
        lines.append("| stratified: loss | " + " | ".join(f"{losses[domain]:.4f}" for domain in domains) + " |")
    for method, value in found["against_stratified"].items():
        cells = []
        for domain in domains:
            one = value["domains"][domain]
            apart = one["interval"] is not None and (one["interval"][0] > 0 or one["interval"][1] < 0)
            cells.append(f"{one['mean']:+.4f}{'*' * apart}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def draw_comparison(cases: Mapping[str, Mapping], path: str | Path) -> Path:
    """A row for each case: differences to stratified with their intervals, and the weights of the methods that move them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 3.9 * len(cases)), layout="constrained")
        parts = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
        for part, (name, found) in zip(parts, cases.items()):
            moving = [method for method, row in found["methods"].items() if _moves(row["weights"])][:PANELS]
            columns = 1 + max(1, -(-len(moving) // 2))
            grid = part.add_gridspec(2, columns, width_ratios=[1.9] + [1] * (columns - 1))
            _forest(part.add_subplot(grid[:, 0]), name, found)
            handles = []
            for index, method in enumerate(moving):
                axis = part.add_subplot(grid[index % 2, 1 + index // 2])
                handles = _weights(axis, method, found["methods"][method]["weights"])
            if handles:
                part.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
        return save(figure, Path(path))


def _forest(axis, name: str, found: Mapping) -> None:
    methods = list(found["against_stratified"])
    if not methods:  # of a study that was begun
        axis.set_axis_off()
        axis.set_title(f"{name}: nothing to compare with stratified yet", fontsize=9)
        return
    by_flops = found.get("by_flops", {}).get("against_stratified", {})
    for place, method in enumerate(methods):
        _interval(axis, place - (0.16 if by_flops else 0.0), found["against_stratified"][method], filled=True)
        if method in by_flops:
            _interval(axis, place + 0.16, by_flops[method], filled=False)
    if by_flops:
        marks = [axis.plot([], [], "o", color=CYCLE[8], markersize=5, markerfacecolor=face)[0] for face in (CYCLE[8], "white")]
        key = dict(frameon=False, fontsize=9, handletextpad=0.0, columnspacing=0.6, borderaxespad=0.1)
        axis.legend(marks, ["at equal tokens", "at equal FLOPs"], loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **key)
    axis.axvline(0, color="#374151", linewidth=1)
    axis.set_yticks(range(len(methods)), methods)
    axis.invert_yaxis()
    reaches = sorted(max(map(abs, value["interval"] or (value["mean"],))) for value in found["against_stratified"].values())
    if reaches[-1] > FAR * reaches[len(reaches) // 2]:  # one method far away must not hide the others
        near = max(NEAR * reaches[-1], 1e-9)
        axis.set_xscale("symlog", linthresh=near)
        marks = [digit * 10.0**exponent for exponent in range(-10, 10) for digit in (1, 2, 5)]  # powers of ten alone may be two
        marks = [mark for mark in marks if near / 4 <= mark <= reaches[-1]]
        axis.xaxis.set_major_locator(ticker.FixedLocator([*(-mark for mark in reversed(marks)), 0.0, *marks]))
    else:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.set(xlabel="test loss less stratified's (nats per token), 95%", title=name)
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))


def _interval(axis, place: float, value: Mapping, filled: bool) -> None:
    """By its verdict's colour."""
    low, high = value["interval"] or (value["mean"], value["mean"])
    colour = {"better": CYCLE[2], "worse": CYCLE[7], "undecided": CYCLE[8], UNTESTED: CYCLE[8]}[value["says"]]
    axis.plot([low, high], [place, place], color=colour, linewidth=1.6)
    axis.plot(value["mean"], place, marker="o", color=colour, markersize=5, markerfacecolor=colour if filled else "white")


def _moves(weights: Mapping[str, Sequence[float]]) -> bool:
    return any(max(values) - min(values) > 1e-3 for domain, values in weights.items() if domain != "tokens")


def _weights(axis, method: str, weights: Mapping[str, Sequence[float]]) -> list:
    domains = [domain for domain in weights if domain != "tokens"]
    handles = [
        axis.step(weights["tokens"], weights[domain], where="pre", color=CYCLE[index % len(CYCLE)], linewidth=1.4, label=domain)[0]
        for index, domain in enumerate(domains)
    ]
    axis.set_title(method, fontsize=8)
    axis.set(ylim=(0, None))
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    return handles
