"""In-context learning: what models trained on one function class, or on a mixture, do inside it and outside.

    python benchmarks/icl.py --out runs/icl          # goes on where it was stopped; results.json, results.md and figures
    python benchmarks/icl.py --out runs/icl-garg --scale garg --device cuda --dtype bf16 --minutes 9

Trains six models, evaluates them on 1,280 prompts of each test, and judges four claims by the rules of icl_rules.py: that a
mixture does as well as the right specialist, tracks the best baseline, predicts in between where it was trained on neither class,
and fails outside.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a source tree needs no installation

from benchmarks import script  # noqa: E402
from benchmarks.icl_rules import CLAIMS, judge, last  # noqa: E402
from dynadapt.experiments.icl import figures  # noqa: E402
from dynadapt.experiments.icl.config import TrainConfig  # noqa: E402
from dynadapt.experiments.icl.eval_command import class_of, evaluate, load_subject  # noqa: E402
from dynadapt.experiments.icl.presets import from_preset  # noqa: E402
from dynadapt.experiments.icl.progress import progress_for  # noqa: E402
from dynadapt.experiments.icl.study import Settings, Study, Subject  # noqa: E402
from dynadapt.experiments.icl.train import TrainOptions, train  # noqa: E402
from dynadapt.experiments.plot import STYLE  # noqa: E402
from dynadapt.runs.rundir import write_json  # noqa: E402

WAVES, FASTER = "sinusoid:amplitude=[0.5;2],frequency=[2;2]", "sinusoid:amplitude=[0.5;2],frequency=[4;4]"
RUNS = ("mixture", "dense", "sparse", "waves", "line", "wave")

SMALL = TrainConfig(
    dims=4, points=10, layers=4, hidden=64, heads=2, positions=20, batch=64, steps=20_000, lr=2e-3, schedule="cosine", warmup=1000, clip=1.0
)
TINY = TrainConfig(dims=3, points=4, layers=1, hidden=16, heads=2, positions=7, batch=4, steps=4, log=2, lr=1e-3)
# settings, non-zeros of the sparse class, and what is different for functions of one number; tiny is for dry runs
SCALES = {
    "small": (SMALL, 1, {"share": 0.6, "points": 7, "layers": 3}),
    "garg": (from_preset("garg-standard"), 2, {"share": 0.4}),
    "tiny": (TINY, 1, {"share": 0.5}),
}


def runs_of(scale: str, steps: int | None = None, device: str = "auto", dtype: str | None = None) -> dict[str, TrainConfig]:
    """The six training runs of a scale: three on linear functions, three on functions of one number. Those of a family differ in
    their classes alone. steps: of the first family."""
    base, nonzeros, one = SCALES[scale]
    one = dict(one)
    steps = steps or base.steps
    base = replace(
        base, preset=f"icl-claims-{scale}", steps=steps, warmup=min(base.warmup, steps), device=device, dtype=dtype or base.dtype
    )
    sparse = f"sparse-linear:{nonzeros}"
    few = max(1, round(steps * one.pop("share")))
    number = replace(base, dims=1, dims_start=0, steps=few, warmup=min(base.warmup, few), **one)
    return {
        "mixture": replace(base, classes=("dense-linear", sparse)),
        "dense": replace(base, classes=("dense-linear",)),
        "sparse": replace(base, classes=(sparse,)),
        "waves": replace(number, classes=("dense-linear", WAVES)),
        "line": replace(number, classes=("dense-linear",)),
        "wave": replace(number, classes=(WAVES,)),
    }


# ------------------------------------------------------------------------------------------------------------ evaluation


def evaluate_linear(subjects: list[Subject], settings: Settings, announce) -> dict:
    """Models of linear functions: their classes, all numbers of non-zeros, outside the training distribution, the gradient."""
    return evaluate(subjects, settings, ood=[], nonzeros=[], gradient=True, announce=announce)


def evaluate_waves(subjects: list[Subject], settings: Settings, announce) -> tuple[dict, dict]:
    """Models of functions of one number: their classes and convex combinations; and waves of twice the frequency."""
    line, wave = (class_of(text, 1) for text in ("dense-linear", WAVES))
    found = evaluate(subjects, settings, pairs=[(line, wave)], announce=announce)
    return found, next(iter(Study(subjects, settings, announce).classes([class_of(FASTER, 1)]).values()))


# ------------------------------------------------------------------------------------------------------------ what is written


def shortened(results: dict) -> dict:
    """What is worth keeping: means instead of whole curves; linear.json and waves.json have everything."""
    means = lambda entries: {
        case: {name: rounded(curve["mean"]) for name, curve in entry["curves"].items()}  # noqa: E731
        for case, entry in entries.items()
    }
    linear, waves = results["linear"], results["waves"]
    pair = {f"{entry['weight']:g}": entry for entry in waves["combinations"][0]["weights"]}
    kept = {key: value for key, value in results.items() if key not in ("linear", "waves", "faster")}
    linear = {section: means(linear[section]) for section in ("classes", "nonzeros", "ood")} | {
        "gradient": {
            name: {along: rounded(values) for along, values in found.items()} for name, found in linear["gradient"]["cosine"].items()
        }
    }
    waves = {"classes": means(waves["classes"] | {"faster": results["faster"]}), "combinations": means(pair)}
    return {**kept, "linear": linear, "waves": waves}


def rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def markdown(results: dict) -> str:
    lines = ["| claim | verdict | |", "|---|---|---|"]
    lines += [f"| {number}: {CLAIMS[number]} | {found['verdict']} | {found['sentence']} |" for number, found in results["claims"].items()]
    lines += ["", "| run | classes | steps | parameters |", "|---|---|---|---|"]
    for name, run in results["runs"].items():
        classes = ", ".join(run["classes"])
        steps = f"{run['step']:,}" + f" of {run['steps']:,}" * (run["step"] < run["steps"])
        lines.append(f"| {name} | {classes} | {steps} | {run['parameters']:,} |")
    for section in ("linear", "waves"):
        for case, entry in results[section]["classes"].items():
            lines += ["", f"**{case}** (d = {entry['class']['dims']}), squared error after k examples", "", *_table(entry)]
    return "\n".join(lines) + "\n"


def _table(entry: dict) -> list[str]:
    points = entry["points"]
    shown = range(points) if points <= 12 else sorted({*range(0, points, 4), points - 1})
    rows = [["k", *map(str, shown)], ["---"] * (len(shown) + 1)]
    rows += [[name, *(f"{curve['mean'][k]:.3f}" for k in shown)] for name, curve in entry["curves"].items()]
    return [f"| {' | '.join(row)} |" for row in rows]


def picture(results: dict) -> Figure:
    """A row for each family: claims 13 and 14 on each class, then 15 above and 16 below."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 8.4), layout="constrained")
        rows = figure.subfigures(2, 1)
        for row, family in zip(rows, ("linear", "waves")):
            found = results[family]
            axes, looks = row.subplots(1, 3), figures.looks_of(found)
            for axis, (_case, entry) in zip(axes, found["classes"].items()):
                kept = {name: curve for name, curve in entry["curves"].items() if name not in ("averaging", "nearest_neighbours")}
                figures.draw_curves(axis, {**entry, "curves": kept}, looks)
                axis.set_title(f"13, 14: {figures.class_title(entry['class'])}", fontsize=10)
                axis.set_xlabel("in-context examples")
            if family == "linear":
                figures.draw_selection(axes[2], found["nonzeros"], looks)
                axes[2].set_title("15: mean over the prompt", fontsize=10)
            else:
                _weights_panel(axes[2], found["combinations"][0]["weights"], looks)
            axes[0].set_ylabel("squared error, normalised")
            figures.legend(row, axes, 5)
    return figure


def _weights_panel(axis, entries: list[dict], looks: dict) -> None:
    weights = [entry["weight"] for entry in entries]
    for name in entries[0]["curves"]:
        if name in ("least_squares", "nearest_neighbours"):
            continue
        curves = [last(entry["curves"][name]) for entry in entries]
        axis.plot(weights, [curve["mean"] for curve in curves], marker="o", markersize=4, **looks[name])
        if name in entries[0]["excess"]:
            low, high = ([curve[key] for curve in curves] for key in ("low", "high"))
            axis.fill_between(weights, low, high, color=looks[name]["color"], alpha=0.18, linewidth=0)
    axis.set_title("16: combined, after the last example", fontsize=10)
    axis.set_xlabel("weight of the line")
    axis.set_ylim(bottom=0)


# ------------------------------------------------------------------------------------------------------------ running


def train_all(configs: dict[str, TrainConfig], out: Path, minutes: float | None = None) -> dict[str, dict]:
    """The summaries of these runs, trained now or before. Interrupted when the time is over; the same call goes on from there."""
    began, summaries = time.monotonic(), {}
    for name, config in configs.items():
        print(f"{name}: {', '.join(config.classes)}", flush=True)
        left = None if minutes is None else minutes - (time.monotonic() - began) / 60
        options = TrainOptions(resume=True, checkpoint=max(1, config.steps // 10), minutes=left)
        with progress_for(config.steps, every=30.0) as progress:
            summaries[name] = train(config, out / name, options, progress)
    return summaries


def results_of(configs: dict[str, TrainConfig], out: Path, settings: Settings = Settings()) -> dict:
    """Evaluation and verdicts of runs, finished or not, at their last checkpoints."""
    announce = lambda text: print(f"    {text}", flush=True)  # noqa: E731
    subjects = {name: load_subject(out / name, device=config.device) for name, config in configs.items()}
    linear = evaluate_linear([subjects[name] for name in ("dense", "sparse", "mixture")], settings, announce)
    waves, faster = evaluate_waves([subjects[name] for name in ("line", "wave", "waves")], settings, announce)
    runs = {name: described(config, subjects[name].about) for name, config in configs.items()}
    return {
        "configs": {name: configs[name].to_dict() for name in ("mixture", "waves")},
        "settings": asdict(settings),
        "runs": runs,
        "claims": judge(linear, waves, faster),
        "linear": linear,
        "waves": waves,
        "faster": faster,
    }


def described(config: TrainConfig, about: dict) -> dict:
    """step: that of the weights which were evaluated; steps: of the whole run."""
    return {
        "classes": list(config.classes),
        "step": about["step"],
        "steps": config.steps,
        "parameters": about["parameters"],
        "dtype": config.dtype,
    }


def write_results(out: Path, results: dict) -> None:
    script.write_results(out, shortened(results), markdown(results))
    for family in ("linear", "waves"):
        write_json(out / f"{family}.json", results[family])
    figures.draw_figures([out / "linear.json", out / "waves.json"], out / "figures")
    picture(results).savefig(out / "claims.png", dpi=100)


def main() -> None:
    parser = script.parser_of(__doc__, "runs/icl")
    parser.add_argument(
        "--scale",
        choices=list(SCALES),
        default="small",
        help="small: 4 dimensions, minutes on a CPU; garg: 20 dimensions, 500,000 steps; tiny: a dry run",
    )
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=RUNS, help="train only these; results are written by the command without --runs"
    )
    parser.add_argument("--steps", type=int, help="of every run (default: those of the scale)")
    parser.add_argument("--prompts", type=int, default=Settings.prompts, help="of every test (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="(default: that of the scale)")
    parser.add_argument("--unfinished", action="store_true", help="train no more: evaluate all runs at their last checkpoints")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes of training, with a checkpoint")
    arguments = parser.parse_args()
    configs = runs_of(arguments.scale, arguments.steps, arguments.device, arguments.dtype)
    if not arguments.unfinished:
        with script.going_on(arguments.out):
            train_all({name: configs[name] for name in arguments.runs}, arguments.out, arguments.minutes)
    if len(arguments.runs) == len(configs):
        results = results_of(configs, arguments.out, Settings(prompts=arguments.prompts))
        write_results(arguments.out, results)
        print(markdown(results))


if __name__ == "__main__":
    main()
