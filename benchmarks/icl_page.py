"""The tables and the picture of benchmarks/icl.py, from its results alone, and the part of docs/icl-claims.md that is made of them.

python benchmarks/icl_page.py runs/icl/results.json    # judges them anew, keeps them under benchmarks/results and makes page and picture
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a source tree needs no installation

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from benchmarks.icl_rules import CLAIMS, LINEAR, NUMBER, Family, apart, bounds, curve, shown, verdicts_of  # noqa: E402
from dynadapt.runs.drawing import CYCLE, STYLE  # noqa: E402
from dynadapt.runs.rundir import write_json  # noqa: E402

SHOWN = ("least_squares", "lasso", "sparse_bayes", "basis_least_squares", "mixture_bayes")
COLOURS = dict(zip(SHOWN, CYCLE[3:])) | dict(zip(LINEAR.models, CYCLE)) | dict(zip(NUMBER.models, CYCLE))
HIGHEST = 1.6  # of a picture: predicting zero has error 1, and a wrong class's least squares has thousands


RESULTS, PAGE, PICTURE = "benchmarks/results/icl-seeds.json", "docs/icl-claims.md", "docs/icl-seeds.png"
BEGIN, END = "<!-- icl_page.py -->\n", "<!-- end -->\n"
NOT_YET = "Not measured yet: none of the four claims has a verdict by these rules.\n"


def markdown(results: dict, runs: bool = True) -> str:
    """All tables; runs: with that of the single runs."""
    lines = ["| claim | verdict | why | what would change it |", "|---|---|---|---|"]
    rows = [(f"{number}: {CLAIMS[number]}", found) for number, found in results["claims"].items()]
    rows += [(f"{number}, own scales", found) for number, found in results["own scales"].items()]
    lines += [f"| {what} | {found['verdict']} | {found['sentence']} | {found['changes']} |" for what, found in rows]
    if runs:
        lines += ["", "| run | classes | unit variance | steps | parameters |", "|---|---|---|---|---|"]
        for name, run in results["runs"].items():
            said = "yes" if run["unit_variance"] else "no"
            lines.append(f"| {name} | {', '.join(run['classes'])} | {said} | {run['steps']:,} | {run['parameters']:,} |")
    for family, section in ((LINEAR, "linear"), (NUMBER, "number"), (LINEAR, "own")):
        if seeds := results[section]:
            lines += [
                "",
                f"**{section}**, {len(seeds)} seeds: what the last fifth of training took from the error on validation prompts",
                "",
            ]
            lines += ["| " + " | ".join(family.models) + " |", "|" + "---|" * len(family.models)]
            gained = [np.mean([seed["improved"][model] for seed in seeds]) for model in family.models]
            lines.append("| " + " | ".join(f"{value:.4f}" for value in gained) + " |")
            lines += [
                "",
                f"**{section}**: mean error over the prompt less another's, and its 90% interval over seeds",
                "",
                *gaps(family, seeds),
            ]
            for test in seeds[0]["tests"]:
                lines += [
                    "",
                    f"**{section}, {test}**: squared error after k examples, mean over seeds; sd of the mean over seeds",
                    "",
                    *table(seeds, test),
                ]
    moved = results["posterior moved by noise"]
    lines += [
        "",
        f"Mean errors of the linear mixture's posterior in closed form are within {moved:.1e} of those computed with a noise of 1e-6.",
    ]
    return "\n".join(lines) + "\n"


def gaps(family: Family, seeds: list[dict]) -> list[str]:
    """On each class: how far the mixture is above the specialist and above its own exact posterior, and that posterior above the specialist; of one seed no intervals."""
    lines = ["| on | mixture less specialist | mixture less its exact posterior | that posterior less specialist |", "|---|---|---|---|"]
    for own in family.specialists:
        pairs = ((family.mixture, own.name), (family.mixture, "mixture_bayes"), ("mixture_bayes", own.name))
        found = [apart(seeds, own.name, *pair) for pair in pairs]
        lines.append(f"| {own.name} | " + " | ".join(shown(bounds(v)) if len(v) > 1 else f"{v[0]:+.3f}" for v in found) + " |")
    return lines


def table(seeds: list[dict], test: str) -> list[str]:
    points = len(next(iter(seeds[0]["tests"][test].values()))["first"])
    columns = range(points) if points <= 12 else sorted({*range(0, points, 4), points - 1})
    rows = [["k", *map(str, columns), "mean", "sd"], ["---"] * (len(columns) + 3)]
    for name in seeds[0]["tests"][test]:
        if name.endswith("_noise"):
            continue
        curves = np.stack([curve(seed, test, name) for seed in seeds])
        spread = f"{curves.mean(1).std(ddof=1):.4f}" if len(seeds) > 1 else "-"
        rows.append([name, *(f"{curves[:, k].mean():.3f}" for k in columns), f"{curves.mean():.3f}", spread])
    return [f"| {' | '.join(row)} |" for row in rows]


def picture(results: dict) -> Figure:
    """A row for each family: the errors on its two classes, every seed a thin line; then by non-zeros above, combined below."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 8.0), layout="constrained")
        rows = figure.subfigures(2, 1)
        for row, family, section in zip(rows, (LINEAR, NUMBER), ("linear", "number")):
            axes, seeds = row.subplots(1, 3), results[section]
            for axis, specialist in zip(axes, family.specialists):
                _curves(axis, seeds, specialist.name, family.models)
                axis.set_title(f"13, 14: on {specialist.name}", fontsize=10)
                axis.set_xlabel("in-context examples")
            axes[0].set_ylabel("squared error, normalised")
            (_by_nonzeros if family is LINEAR else _outside)(axes[2], seeds)
            handles, labels = _legend(axes)
            row.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _legend(axes) -> tuple[list, list]:
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _curves(axis, seeds: list[dict], test: str, models: list[str]) -> None:
    there = seeds[0]["tests"][test]
    for name in [*models, *(name for name in SHOWN if name in there)]:
        look = {"color": COLOURS[name], "linestyle": "-" if name in models else "--"}
        curves = np.stack([curve(seed, test, name) for seed in seeds])
        axis.plot(curves.mean(0), linewidth=1.8, label=name.replace("_", " "), **look)
        for values in curves if name in models else ():
            axis.plot(values, linewidth=0.5, alpha=0.6, **look)
    axis.set_ylim(0, min(HIGHEST, axis.get_ylim()[1]))


def _by_nonzeros(axis, seeds: list[dict]) -> None:
    tests = sorted((test for test in seeds[0]["tests"] if test.startswith("nonzeros ")), key=lambda test: int(test.split()[1]))
    counts = [int(test.split()[1]) for test in tests]
    for index, name in enumerate([*LINEAR.models, "mixture_bayes"]):
        look = {"color": COLOURS[name], "marker": "o", "markersize": 4, "linestyle": "-" if index < 3 else "--"}
        means = [[curve(seed, test, name).mean() for seed in seeds] for test in tests]
        axis.plot(counts, np.mean(means, axis=1), label=name.replace("_", " "), **look)
    axis.set(title="15: mean over the prompt", xlabel="non-zero weights", xticks=counts)
    axis.set_ylim(bottom=0)


def _outside(axis, seeds: list[dict]) -> None:
    tests = ("wave", "combined", "line")
    for name in NUMBER.models:
        ends = [[float(curve(seed, test, name)[-1]) for seed in seeds] for test in tests]
        color = COLOURS[name]
        axis.plot((0, 0.5, 1), np.mean(ends, axis=1), marker="o", markersize=4, color=color, label=name)
        if len(seeds) > 1 and np.mean(ends, axis=1).max() <= HIGHEST:  # else the band fills the picture
            found = [bounds(values) for values in ends]
            axis.fill_between((0, 0.5, 1), [n["low"] for n in found], [n["high"] for n in found], color=color, alpha=0.15, linewidth=0)
    axis.set(title="16: combined, after the last example", xlabel="weight of the line", xticks=(0, 0.5, 1))
    axis.set_ylim(0, min(HIGHEST, axis.get_ylim()[1]))


# ------------------------------------------------------------------------------------------------------------ the page


def section(results: dict | None) -> str:
    """What stands between the page's marks: without results, that there are none."""
    if results is None:
        return NOT_YET
    seeds = {family: len(results[family]) for family in ("linear", "number", "own")}
    said = ", ".join(f"{count} of {family}" for family, count in seeds.items())
    picture = f"![Errors by number of examples]({Path(PICTURE).name})\n\n" if seeds["linear"] and seeds["number"] else ""
    said = f"Results: `{RESULTS}`; {results['prompts']:,} prompts of every test; finished seeds: {said}."
    return f"{said}\n\n{picture}{markdown(results, runs=False)}"


def stale(root: Path = ROOT) -> list[str]:
    """What is wrong with the page's part: it has to be what its results make of it."""
    kept = root / RESULTS
    made = section(json.loads(kept.read_text("utf-8")) if kept.exists() else None)
    text = (root / PAGE).read_text("utf-8")
    there = text.partition(BEGIN)[2].partition(END)[0]
    return [] if there == made else [f"{PAGE}: the part between the marks of icl_page.py is not what {RESULTS} makes of it"]


def main(argv: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of benchmarks/icl.py")
    results = json.loads(parser.parse_args(argv).results.read_text("utf-8"))
    results |= json.loads(json.dumps(verdicts_of(results)))  # by the rules as they are now
    write_json(root / RESULTS, results)
    before, _, behind = (root / PAGE).read_text("utf-8").partition(BEGIN)
    (root / PAGE).write_text(before + BEGIN + section(results) + END + behind.partition(END)[2], "utf-8")
    if results["linear"] and results["number"]:
        picture(results).savefig(root / PICTURE, dpi=100)
    print("\n".join([f"{PAGE} is made anew", *stale(root)]))


if __name__ == "__main__":
    main()
