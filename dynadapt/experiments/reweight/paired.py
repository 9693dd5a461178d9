"""Reweighting runs side by side: paired differences of held-out losses, domain by domain (`dynadapt reweight compare`).

Runs that differ in nothing but their seed are one method. The first run's method is what the others are held against. What is paired, and
what the interval speaks of, depends on what there is:
  seeds   at least two seeds in common: a difference a seed, Student's 95% interval over them. It speaks of other seeds.
  rows    one seed in common: a difference a held-out row, Student's 95% interval over rows as if they were independent (rows of one
          document are not quite). It speaks of other text of this kind, and nothing says what another seed would give.
  none    one seed, and runs that kept no losses of rows: differences without an interval.
A seed decides which rows are held out too, so that runs of other seeds have no rows in common and are not compared. Held-out rows are those
that some mixers read; benchmarks/reweighting.py judges on others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from dynadapt.runs.differ import flat
from dynadapt.runs.drawing import CYCLE, STYLE, fitted, legend_below, panels, save
from dynadapt.runs.metrics import Run, read_run
from dynadapt.runs.rundir import RunError

from .compare import LEVEL, holm, paired, said, sees, with_interval

SAME = ("segment", "heldout", "heldout_rows")  # settings that say which rows are scored
NOT_A_METHOD = ("seed", "device")
OVER = {
    "seeds": "over {n} seeds",
    "rows": "over {n} held-out rows of seed {seed}; other seeds may differ",
    "none": "no interval: one seed, no losses of rows",
}
MEAN = "mean"


def compare_runs(paths: Sequence[str | Path]) -> dict:
    """Everything that the table and the picture show, ready for JSON. RunError, naming the run, for runs that can't be compared."""
    if len(paths) < 2:
        raise RunError(f"{', '.join(map(str, paths)) or 'no run'}: give at least two runs of `dynadapt reweight train` on the same domains")
    runs = [read_run(path) for path in dict.fromkeys(Path(path) for path in paths)]
    for run in runs:
        _check(run)
    for run in runs[1:]:
        _same_text(runs[0], run)
    methods = _methods(runs)
    if len(methods) < 2:
        raise RunError(f"{', '.join(str(run.path) for run in runs)} differ in their seeds alone: there is no method to compare with")
    base, *others = methods
    pairs = [_pair(methods[base], methods[name], base, name) for name in others]
    for pair, p in zip(pairs, holm([pair["mean"]["p"] for pair in pairs])):
        pair["mean"]["p_adjusted"], pair["says"] = p, said(pair["mean"]["difference"], p)
        over_seeds = {"mean": pair["mean"]["difference"], "interval": pair["mean"]["interval"], "seeds": pair["n"]}
        pair["sees"] = sees(over_seeds, (1 - LEVEL) / len(pairs)) if pair["kind"] == "seeds" else None  # rows know nothing of other seeds
    return {
        "base": base,
        "domains": list(_evaluations(runs[0])[0]["heldout"]),
        "level": LEVEL,
        "notes": _notes(runs, pairs),
        "methods": {name: {str(seed): str(run.path) for seed, run in by_seed.items()} for name, by_seed in methods.items()},
        "pairs": pairs,
    }


def _evaluations(run: Run) -> list[dict]:
    return [line for line in run.metrics if line.get("kind") == "evaluation"]


def _check(run: Run) -> None:
    if run.kind != "reweight":
        raise RunError(
            f"{run.path} is a run of dynadapt {run.kind}; compare takes runs of dynadapt reweight train"
            + ("; runs of eval have dynadapt compare" if run.kind == "eval" else "")
        )
    if not any(line["total_tokens"] for line in _evaluations(run)):
        raise RunError(f"{run.path} has no held-out losses after its start yet")


def _same_text(first: Run, other: Run) -> None:
    """RunError where held-out losses are not of the same tokens."""
    mine, theirs = (list(_evaluations(run)[0]["heldout"]) for run in (first, other))
    if set(mine) != set(theirs):
        raise RunError(f"{other.path} has the domains {', '.join(theirs)}, {first.path} has {', '.join(mine)}")
    for name in SAME:
        if first.config.get(name) != other.config.get(name):
            raise RunError(
                f"{other.path} has {name} {other.config.get(name)!r}, {first.path} has {first.config.get(name)!r}: "
                "they did not score the same held-out text"
            )
    mine, theirs = first.inputs(), other.inputs()
    for name in ("the tokenizer", *(f"the text of domain {domain!r}" for domain in _evaluations(first)[0]["heldout"])):
        if None not in (mine.get(name), theirs.get(name)) and mine[name] != theirs[name]:
            raise RunError(
                f"{other.path} has another version of {name.removeprefix('the ')} than {first.path}: losses are not of the same tokens"
            )


def _methods(runs: list[Run]) -> dict[str, dict[int, Run]]:
    """{method's name: {seed: run}}, in the order in which they were given. Equal settings and seed twice: two methods, by directory."""
    found: list[tuple[str, dict[int, Run]]] = []
    for run in runs:
        key = json.dumps({name: value for name, value in run.config.items() if name not in NOT_A_METHOD}, sort_keys=True)
        seed = run.config.get("seed")
        group = next((group for known, group in found if known == key and seed not in group), None)
        if group is None:
            group = {}
            found.append((key, group))
        group[seed] = run
    settings = [flat(next(iter(group.values())).config) for _, group in found]
    varied = [
        name
        for name in {key: None for each in settings for key in each}
        if name not in (*NOT_A_METHOD, "mixer") and any(each.get(name) != settings[0].get(name) for each in settings)
    ]
    names = []
    for each, (_, group) in zip(settings, found):
        more = [f"{name.removeprefix('settings.')} {_short(each[name])}" for name in varied if each.get(name) not in (None, {}, [])]
        names.append(", ".join([str(each["mixer"]), *more]))
    # Two that settings with long values do not tell apart, or that were given twice, go by their directories.
    names = [name if names.count(name) == 1 else f"{name} ({next(iter(group.values())).path})" for name, (_, group) in zip(names, found)]
    return dict(zip(names, (group for _, group in found)))


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else Path(str(value)).name


def _pair(ones: dict[int, Run], others: dict[int, Run], base: str, name: str) -> dict:
    """The differences of one method to the base."""
    seeds = sorted(set(ones) & set(others))
    if not seeds:
        raise RunError(
            f"{name} has seeds {_listed(others)}, {base} has {_listed(ones)}: other seeds hold out other rows; "
            "run both with the same --seed"
        )
    lines = [_last_common(ones[seed], others[seed]) for seed in seeds]
    domains = list(lines[0][0]["heldout"])
    losses = {domain: ([a["heldout"][domain] for a, _ in lines], [b["heldout"][domain] for _, b in lines]) for domain in domains}
    losses[MEAN] = (
        [float(np.mean(list(a["heldout"].values()))) for a, _ in lines],
        [float(np.mean(list(b["heldout"].values()))) for _, b in lines],
    )
    if len(seeds) > 1:
        kind, n, found = "seeds", len(seeds), {key: paired(np.subtract(b, a)) for key, (a, b) in losses.items()}
    elif all(line.get("heldout_rows") for line in lines[0]):
        kind, (n, found) = "rows", _over_rows(*lines[0], domains)
    else:
        kind, n, found = "none", 1, {key: paired(np.subtract(b, a)) for key, (a, b) in losses.items()}
    of = lambda key: {
        "base": float(np.mean(losses[key][0])),
        "loss": float(np.mean(losses[key][1])),
        "difference": found[key]["mean"],  # noqa: E731
        "interval": found[key]["interval"],
        "p": found[key]["p"],
    }
    return {
        "of": name,
        "against": base,
        "seeds": seeds,
        "tokens": [line["total_tokens"] for line, _ in lines],
        "kind": kind,
        "n": n,
        "mean": of(MEAN),
        "domains": {domain: of(domain) for domain in domains},
    }


def _listed(seeds) -> str:
    return ", ".join(map(str, seeds))


def _last_common(one: Run, other: Run) -> tuple[dict, dict]:
    """The evaluations of two runs after the most training tokens that both were evaluated at."""
    mine, theirs = ({line["total_tokens"]: line for line in _evaluations(run) if line["total_tokens"]} for run in (one, other))
    common = set(mine) & set(theirs)
    if not common:
        raise RunError(
            f"{one.path} and {other.path} were never evaluated after the same number of training tokens (they have "
            f"{', '.join(f'{n:,}' for n in sorted(mine)[-3:])} and {', '.join(f'{n:,}' for n in sorted(theirs)[-3:])})"
        )
    return mine[max(common)], theirs[max(common)]


def _over_rows(one: dict, other: dict, domains: list[str]) -> tuple[int, dict[str, dict]]:
    """(rows, {domain or MEAN: mean, interval, p}). The mean over domains gives each the same weight, whatever its rows; its interval has
    Welch's degrees of freedom."""
    found, count, errors = {}, 0, []
    for domain in domains:
        mine, theirs = np.array(one["heldout_rows"][domain]), np.array(other["heldout_rows"][domain])
        if mine.shape != theirs.shape:
            raise RunError(f"domain {domain!r}: {len(mine)} held-out rows and {len(theirs)}; they were not held out alike")
        found[domain] = paired(theirs - mine)
        found[domain]["mean"] = other["heldout"][domain] - one["heldout"][domain]  # the rows are rounded
        count += len(mine)
        errors.append((np.var(theirs - mine, ddof=1) / len(mine) / len(domains) ** 2, len(mine) - 1) if len(mine) > 1 else None)
    mean = float(np.mean([found[domain]["mean"] for domain in domains]))
    if not all(errors):
        found[MEAN] = {"mean": mean, "interval": None, "p": None}
    else:
        total = sum(error for error, _ in errors)
        freedom = total**2 / sum(error**2 / n for error, n in errors) if total else 1
        found[MEAN] = with_interval(mean, math.sqrt(total), freedom)
    return count, found


def _notes(runs: list[Run], pairs: list[dict]) -> list[str]:
    notes = [f"{run.path} is not finished" for run in runs if run.summary is None]
    for run in runs:
        ends = {tokens for pair in pairs for seed, tokens in zip(pair["seeds"], pair["tokens"]) if seed == run.config.get("seed")}
        last = _evaluations(run)[-1]["total_tokens"]
        if ends and max(ends) < last:
            notes.append(f"{run.path} went on to {last:,} tokens; it is compared after {max(ends):,}, where the other was evaluated too")
    models = {run.config.get("model") for run in runs}
    if len(models) > 1:
        notes.append(f"models differ: {', '.join(sorted(map(str, models)))}")
    return notes


def over(pair: dict) -> str:
    """What the intervals of a pair are over."""
    return OVER[pair["kind"]].format(n=pair["n"], seed=pair["seeds"][0])


def draw_pairs(found: dict, path: str | Path) -> Path:
    """Differences by domain and of their mean, with intervals; a colour a method."""
    rows = [*found["domains"], MEAN]
    pairs = found["pairs"]
    with matplotlib.rc_context(STYLE):
        figure, axis = panels(8.4, 1.5 + 0.13 * len(rows) * (1.5 + len(pairs)))
        handles = []
        for index, pair in enumerate(pairs):
            colour, marker = CYCLE[index % len(CYCLE)], "os^Dv"[index // len(CYCLE) % 5]
            for place, row in enumerate(rows):
                value = pair["mean"] if row == MEAN and place == len(rows) - 1 else pair["domains"][row]
                y = place + 0.8 * ((index + 0.5) / len(pairs) - 0.5)
                if value["interval"]:
                    axis.plot(value["interval"], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
                axis.plot(value["difference"], y, marker=marker, color=colour, markersize=5, linestyle="")
            handles.append(matplotlib.lines.Line2D([], [], color=colour, marker=marker, linewidth=1.6))
        axis.axvline(0, color="#374151", linewidth=1)
        axis.axhline(len(rows) - 1.5, color="#9ca3af", linewidth=0.8)
        axis.set_yticks(range(len(rows)), [fitted(row, 2.0) for row in found["domains"]] + ["mean of domains"])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
        axis.set_title(fitted(f"Held-out loss less that of {found['base']}", 5.8, 11, "bold"))
        axis.set_xlabel(
            "nats per token; left of 0 is better; 95% intervals"
            if any(pair["kind"] != "none" for pair in pairs)
            else "nats per token; left of 0 is better; no intervals"
        )
        legend_below(figure, handles, [f"{pair['of']} ({over(pair).partition(';')[0]})" for pair in pairs], most_columns=3)
        return save(figure, Path(path))
