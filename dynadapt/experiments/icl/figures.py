"""The figures of an evaluation, drawn from its results file alone: errors by number of examples and out-of-distribution tests
(Garg et al., arXiv 2208.01066), model selection by number of non-zeros and convex combinations (Yadlowsky et al., arXiv
2311.00871)."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from dynadapt.runs.drawing import CYCLE, STYLE, legend_below, panels, save
from dynadapt.runs.rundir import RunError, read_json

from .applicable_baselines import TITLES

BASELINE_LOOKS = {
    "zero": ("#9ca3af", ":"),
    "averaging": ("#a16207", ":"),
    "nearest_neighbours": ("#6b7280", "-."),
    "least_squares": ("#111827", "--"),
    "ridge": ("#0891b2", "--"),
    "lasso": ("#dc2626", "--"),
    "network_gradient_descent": ("#65a30d", "--"),
    "discrete_posterior": ("#0e7490", "-."),
    "sparse_bayes": ("#0891b2", "--"),
    "mixture_bayes": ("#9d174d", "-."),
    "basis_least_squares": ("#4d7c0f", "--"),
}
SUBJECTS = [CYCLE[0], CYCLE[1], CYCLE[2], CYCLE[4], CYCLE[3], *CYCLE[5:]]
HIGHEST = 2.0  # times the error of predicting zero: the top of a picture
# classes whose names are not words
NAMES = {
    "linear": "dense linear",
    "sparse_linear": "sparse linear",
    "noisy_linear": "noisy linear",
    "relu_network": "ReLU network",
    "decision_tree": "decision tree",
    "fourier_series": "Fourier series",
}
TESTS = {
    "random_quadrants": "prompt in one orthant",
    "orthogonal": "query orthogonal to the examples",
    "overlapping": "query among the examples",
    "half_subspace": "x in half the space",
    "skewed": "skewed spectrum",
    "noisy": "noisy labels",
}


def draw_figures(results: list[Path], out: Path) -> list[Path]:
    """Every figure that the results hold; those of several files in a directory each."""
    taken: list[tuple[Path, dict]] = []
    for path in results:
        path = path / "eval.json" if path.is_dir() else path
        content = read_json(path)
        if content.get("kind") != "icl-eval":
            raise RunError(f"{path}: not the results of dynadapt icl eval")
        taken.append((path, content))
    written = []
    for path, content in taken:
        folder = out if len(taken) == 1 else out / (path.parent.name if path.name == "eval.json" else path.stem)
        for name, figure in figures_of(content):
            written.append(save(figure, folder / f"{name}.png", dpi=130))
    if len(set(written)) < len(written):
        raise RunError(f"{out}: two results files have one name: draw them one by one")
    return written


def figures_of(results: dict):
    """(name, Figure) of everything that the results hold."""
    with matplotlib.rc_context(STYLE):
        looks = looks_of(results)
        for case, entry in results.get("classes", {}).items():
            yield f"class-{case.replace(':', '-')}", curve_figure(entry, looks)
        if len(results.get("classes", {})) > 1:
            titles = {case: class_title(entry["class"]) for case, entry in results["classes"].items()}
            yield "classes", grid_figure(results["classes"], looks, titles)
        if results.get("ood"):
            titles = {case: TESTS.get(case, case.replace("scale_", "").replace("=", " scaled by ")) for case in results["ood"]}
            yield "ood", grid_figure(results["ood"], looks, titles)
        if results.get("nonzeros"):
            yield "selection", selection_figure(results["nonzeros"], looks)
        for pair in results.get("combinations", []):
            yield f"combination-{pair['first']['name']}-{pair['second']['name']}", combination_figure(pair, looks)
        if results.get("gradient"):
            yield "gradient", gradient_figure(results["gradient"], looks)
        if any(subject.get("training") for subject in results["subjects"].values()):
            yield "training", training_figure(results["subjects"], looks)


def class_title(described: dict) -> str:
    """A class in words, from its settings."""
    if described["name"] == "unit_variance":
        return f"{class_title(described['of'])}, of unit variance"
    name = NAMES.get(described["name"], described["name"])
    said = {
        "sparse_linear": "{nonzeros} of {dims} non-zero",
        "linear": "d = {dims}",
        "relu_network": "{hidden} units",
        "decision_tree": "depth {depth}",
        "noisy_linear": "noise {noise:g}",
        "sinusoid": "frequency {frequency[0]:g}",
        "fourier_series": "up to frequency {max_frequency}",
    }
    detail = said.get(described["name"], "").format(**described)
    return f"{name}, {detail}" if detail else name


def looks_of(results: dict) -> dict[str, dict]:
    found = {
        name: {"color": SUBJECTS[i % len(SUBJECTS)], "linestyle": "-", "linewidth": 2.2, "label": name, "zorder": 4}
        for i, name in enumerate(results["subjects"])
    }
    for name, (colour, dashes) in BASELINE_LOOKS.items():
        found.setdefault(name, {"color": colour, "linestyle": dashes, "linewidth": 1.4, "label": TITLES[name], "zorder": 3})
    return found


def draw_curves(axis, entry: dict, looks: dict) -> None:
    """Every predictor's error by number of examples, with the band of the trained models."""
    for name, curve in entry["curves"].items():
        k = np.arange(len(curve["mean"]))
        axis.plot(k, curve["mean"], **looks[name])
        if name in entry["excess"]:
            axis.fill_between(k, curve["low"], curve["high"], color=looks[name]["color"], alpha=0.18, linewidth=0, zorder=2)
    axis.set_ylim(0, _top(entry))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.margins(x=0.02)


def _top(entry: dict) -> float:
    """High enough for zero and for the trained models up to HIGHEST times zero; what shoots above it leaves the picture."""
    models = [value for name in entry["excess"] for value in entry["curves"][name]["mean"]]
    zero = max(entry["curves"]["zero"]["mean"]) if "zero" in entry["curves"] else max(models)
    return 1.15 * max(zero, min(max(models), HIGHEST * zero))


def legend(figure: Figure, axes, columns: int) -> None:
    handles = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
    legend_below(figure, list(handles.values()), list(handles), columns, 9)


def curve_figure(entry: dict, looks: dict) -> Figure:
    figure, axis = panels(6.4, 4.6)
    draw_curves(axis, entry, looks)
    axis.set(xlabel="in-context examples", ylabel="squared error, normalised", title=class_title(entry["class"]))
    legend(figure, [axis], 2)
    return figure


def grid_figure(entries: dict[str, dict], looks: dict, titles: dict[str, str]) -> Figure:
    """A panel for each case."""
    columns = min(len(entries), 3 if len(entries) < 7 else 4)
    rows = -(-len(entries) // columns)
    figure, axes = panels(3.7 * columns, 2.9 * rows + 0.7, rows, columns, squeeze=False)
    axes = axes.ravel()
    for axis, (case, entry) in zip(axes, entries.items()):
        draw_curves(axis, entry, looks)
        axis.set_title(titles[case], fontsize=10)
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    for i in range(len(entries)):
        axes[i].set_xlabel("in-context examples" if i + columns >= len(entries) else "")
        axes[i].set_ylabel("squared error, normalised" if i % columns == 0 else "")
    legend(figure, axes[: len(entries)], 4)
    return figure


def selection_figure(entries: dict[str, dict], looks: dict) -> Figure:
    """Error against the number of non-zeros: averaged over the prompt, and after a few numbers of examples."""
    points = min(entry["points"] for entry in entries.values())
    chosen = sorted({max(1, round(share * (points - 1))) for share in (0.2, 0.4, 0.7)})
    figure, axes = panels(3.6 * (1 + len(chosen)), 4.0, columns=1 + len(chosen))
    for axis, k in zip(axes, (None, *chosen)):
        draw_selection(axis, entries, looks, k)
        axis.set_title("mean over the prompt" if k is None else f"after {k} example{'s' * (k > 1)}")
    axes[0].set_ylabel("squared error, normalised")
    legend(figure, axes, 4)
    return figure


def draw_selection(axis, entries: dict[str, dict], looks: dict, k: int | None = None) -> None:
    """Error against the number of non-zeros after k examples; None: averaged over the prompt."""
    counts = [int(count) for count in entries]
    first = entries[str(counts[0])]
    at = lambda curve, key: curve["overall"][key] if k is None else curve[key][k]  # noqa: E731
    for name in looks:
        if name in ("zero", "averaging", "nearest_neighbours") or name not in first["curves"]:
            continue
        known = [count for count in counts if name in entries[str(count)]["curves"]]
        curves = [entries[str(count)]["curves"][name] for count in known]
        values, low, high = ([at(curve, key) for curve in curves] for key in ("mean", "low", "high"))
        is_model = name in first["excess"]
        axis.plot(known, values, **looks[name], marker="o" if is_model else None, markersize=4)
        if is_model:
            axis.fill_between(known, low, high, color=looks[name]["color"], alpha=0.18, linewidth=0)
    axis.set_xlabel("non-zero weights")
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)


def combination_figure(pair: dict, looks: dict) -> Figure:
    """Errors above, predictions along a line for one prompt below; a column for each weight."""
    entries = pair["weights"]
    names = [NAMES.get(pair[key]["name"], pair[key]["name"]) for key in ("first", "second")]
    figure, axes = panels(3.3 * len(entries), 6.2, 2, len(entries), squeeze=False)
    for column, entry in enumerate(entries):
        above, below = axes[:, column]
        draw_curves(above, entry, looks)
        weight = entry["weight"]
        title = names[0] if weight == 1 else names[1] if weight == 0 else f"{weight:g} {names[0]}\n+ {1 - weight:g} {names[1]}"
        above.set_title(title, fontsize=10)
        above.set_xlabel("in-context examples")
        _line(below, entry["line"], looks)
    axes[0, 0].set_ylabel("squared error, normalised")
    axes[1, 0].set_ylabel("y")
    legend(figure, axes.ravel(), 4)
    return figure


def _line(axis, line: dict, looks: dict) -> None:
    axis.plot(line["x"], line["truth"], color="#d1d5db", linewidth=5, label="the function", zorder=1, solid_capstyle="round")
    for name, values in line["predictions"].items():
        axis.plot(line["x"], values, **looks[name])
    axis.plot(line["shown_x"], line["shown_y"], "o", color="#111827", markersize=4.5, zorder=5, label="examples shown")
    axis.set_xlabel("x")
    axis.set_title(f"one prompt, {line['examples']} examples", fontsize=10)


def gradient_figure(gradient: dict, looks: dict) -> Figure:
    figure, axis = panels(7.6, 4.6)
    for name, found in gradient["cosine"].items():
        k = np.arange(len(found["w"]))
        look = looks[name]
        axis.plot(k[1:], found["w"][1:], **{**look, "label": f"{look['label']}, with w"})
        if name not in BASELINE_LOOKS:
            projected = {**look, "label": f"{look['label']}, with w in the examples' span", "linestyle": ":"}
            axis.plot(k[1:], found["projection"][1:], **projected)
    axis.set(
        xlabel="in-context examples",
        ylabel="mean cosine",
        ylim=(0, 1.05),
        title="Does the prediction's gradient in the query point along w?",
    )
    axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, [axis], 2)
    return figure


def training_figure(subjects: dict[str, dict], looks: dict) -> Figure:
    figure, axis = panels(6.4, 4.2)
    for name, subject in subjects.items():
        if subject.get("training"):
            steps, loss = subject["training"]["step"], subject["training"]["loss"]
            axis.plot(steps, loss, **{**looks[name], **({"marker": "o"} if len(steps) == 1 else {})})
    axis.set(xlabel="training steps", ylabel="loss: mean squared error over the prompt", title="Training", yscale="log")
    for which in ("major", "minor"):  # plain numbers: names of runs may hold a $, so mathematics is off
        getattr(axis.yaxis, f"set_{which}_formatter")(ticker.FuncFormatter(_few_ticks if which == "minor" else _plain))
    legend(figure, [axis], 2)
    return figure


def _plain(value: float, position=None) -> str:
    return f"{value:g}"


def _few_ticks(value: float, position=None) -> str:
    """2 and 5 of each decade."""
    return _plain(value) if f"{value:.0e}"[0] in "25" else ""
