"""In-context learning: what models trained on one function class, or on a mixture, do inside it and outside.

    python benchmarks/icl.py --out runs/icl          # goes on where it was stopped; results.json, results.md and figures
    python benchmarks/icl.py --out runs/icl-garg --scale garg --device cuda --dtype bf16 --minutes 9

Tests four claims (Yadlowsky et al., arXiv 2311.00871, in the setting of Garg et al., arXiv 2208.01066) by rules that were
written before the runs. "dense", "sparse" and "mixture" are models trained on dense linear functions, on sparse ones, and on
half of each; "waves" is trained on lines and sinusoids of one number, half of each. Errors are squared errors divided by the
class's variance. Differences are paired, on 1,280 prompts that all predictors see; bands hold 90% of 1,000 bootstrap means
over prompts. MARGIN is 0.05.

  13. The mixture does as well on each class as the model trained on that class alone.
      The mean error over the prompt of "mixture" less the specialist's. Confirmed when the upper end of its band is at most
      MARGIN on both classes, refuted when the lower end is above MARGIN on either.
  14. The mixture tracks the best baseline of each class along the whole curve: least squares (dense), Lasso (sparse).
      Confirmed when after every number of examples the upper end of "mixture" less the baseline is at most MARGIN, on both
      classes; refuted when a lower end is above MARGIN after a number of examples where the specialist is not: where it is, too
      little training is as good a reason as the mixture.
  15. Between the classes it predicts in between; at the ends it matches the specialists.
      Mean errors over the prompt, by number of non-zeros. An end matches when the upper end of "mixture" less the specialist
      is at most MARGIN. In between it is outside the specialists when the band of its difference to the worse one lies above
      SLACK (0.02), or to the better one below -SLACK. Confirmed when both ends match and no number in between is outside;
      refuted when one is outside or the lower end of the difference at an end is above MARGIN. Not decided when the
      specialists differ by less than SLACK at every number in between.
  16. Outside the mixture it fails: combinations of a line and a sinusoid are not predicted, extremes of seen classes degrade.
      Error after the last example. Combinations fail when at weight 0.5 the lower end is above 0.1 and above three
      times the upper ends at weights 0 and 1, and work when the upper end at 0.5 is at most the larger upper end at 0 and 1,
      plus MARGIN. Extremes: y and x three times as large for "dense" (errors divided by nine), waves of twice the frequency
      for "waves"; one degrades when the lower end of the model less the best baseline is above MARGIN. Confirmed when
      combinations fail and an extreme degrades, refuted when combinations work and none does.

A specialist that has not learned its own class is no standard: 13 and 15 are not decided unless each specialist's mean error
over the prompt is within MARGIN of the best baseline of its class (upper end), nor 16 unless "waves" has a mean error of at
most 0.1 after the last example on both of its own classes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from dynadapt.environment import environment
from dynadapt.experiments.dyneval import Interrupted
from dynadapt.experiments.icl.config import TrainConfig, from_preset
from dynadapt.experiments.icl.eval_command import class_of, evaluate, load_subject
from dynadapt.experiments.icl.figures import class_title, draw_curves, draw_figures, draw_selection, legend, looks_of
from dynadapt.experiments.icl.progress import progress_for
from dynadapt.experiments.icl.study import Settings, Study, Subject, label
from dynadapt.experiments.icl.train import TrainOptions, train
from dynadapt.experiments.plot import STYLE
from dynadapt.experiments.rundir import write_json

MARGIN, SLACK, FAILS, LEARNED = 0.05, 0.02, 0.1, 0.1
WAVES, FASTER = "sinusoid:amplitude=[0.5;2],frequency=[2;2]", "sinusoid:amplitude=[0.5;2],frequency=[4;4]"
RUNS = ("mixture", "dense", "sparse", "waves")
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not decided"

SMALL = TrainConfig(dims=4, points=10, layers=4, hidden=64, heads=2, positions=20, batch=64, steps=20_000, lr=2e-3,
                    schedule="cosine", warmup=1000, clip=1.0)
TINY = TrainConfig(dims=3, points=4, layers=1, hidden=16, heads=2, positions=7, batch=4, steps=4, log=2, lr=1e-3)
# settings, and non-zeros of the sparse class; tiny is for dry runs
SCALES = {"small": (SMALL, 1), "garg": (from_preset("garg-standard"), 2), "tiny": (TINY, 1)}


def runs_of(scale: str, steps: int | None = None, device: str = "auto", dtype: str | None = None) -> dict[str, TrainConfig]:
    """The four training runs of a scale; they differ in their classes, and "waves" has one dimension and half of the steps."""
    base, nonzeros = SCALES[scale]
    steps = steps or base.steps
    base = replace(base, preset=f"icl-claims-{scale}", steps=steps, warmup=min(base.warmup, steps), device=device,
                   dtype=dtype or base.dtype)
    sparse = f"sparse-linear:{nonzeros}"
    half = max(1, steps // 2)
    waves = replace(base, dims=1, dims_start=0, steps=half, warmup=min(base.warmup, half), classes=("dense-linear", WAVES))
    return {"mixture": replace(base, classes=("dense-linear", sparse)), "dense": replace(base, classes=("dense-linear",)),
            "sparse": replace(base, classes=(sparse,)), "waves": waves}


# ------------------------------------------------------------------------------------------------------------ evaluation

def evaluate_lines(subjects: list[Subject], settings: Settings, announce) -> dict:
    """"dense", "sparse" and "mixture" on the same prompts."""
    return evaluate(subjects, settings, ood=[], nonzeros=[], gradient=True, announce=announce)


def evaluate_waves(subject: Subject, settings: Settings, announce) -> dict:
    """"waves" on its classes, on their convex combinations, and on waves of twice the frequency."""
    line, wave = (class_of(text, 1) for text in ("dense-linear", WAVES))
    found = evaluate([subject], settings, pairs=[(line, wave)], announce=announce)
    study = Study([subject], settings, announce)
    found["classes"] |= study.classes([class_of(FASTER, 1)])
    return found


# ------------------------------------------------------------------------------------------------------------ the claims

def claim_13(lines: dict) -> dict:
    """lines: the results of evaluate_lines; the keys of the classes are the first two of `classes`."""
    numbers = {case: whole(lines["classes"][case]["excess"]["mixture"][name]) for case, name in own(lines).items()}
    wrong = {case: whole(lines["classes"][case]["excess"][other(name)][name]) for case, name in own(lines).items()}
    if (untrained := not_learned(lines)):
        return judged(OPEN, untrained, numbers)
    if all(n["high"] <= MARGIN for n in numbers.values()):
        verdict = CONFIRMED
    else:
        verdict = REFUTED if any(n["low"] > MARGIN for n in numbers.values()) else OPEN
    said = " and ".join(f"{n['mean']:+.3f} on {case} (the other specialist: {wrong[case]['mean']:+.3f})"
                        for case, n in numbers.items())
    return judged(verdict, f"mean error of the mixture less the specialist's: {said}",
                  {"mixture": numbers, "other specialist": wrong})


def claim_14(lines: dict) -> dict:
    numbers, said, off = {}, [], False
    for case, name in own(lines).items():
        best = "least_squares" if name == "dense" else "lasso"
        curve, alone = (lines["classes"][case]["excess"][model][best] for model in ("mixture", name))
        numbers[case] = {**{key: curve[key] for key in ("mean", "low", "high")}, "specialist": alone["mean"]}
        k = max(range(len(curve["mean"])), key=lambda k: curve["mean"][k])
        said.append(f"{curve['mean'][k]:+.3f} on {case} after {k} examples (the specialist there: {alone['mean'][k]:+.3f})")
        off = off or any(low > MARGIN >= other for low, other in zip(curve["low"], alone["mean"]))
    tracks = all(max(n["high"]) <= MARGIN for n in numbers.values())
    verdict, said = CONFIRMED if tracks else REFUTED if off else OPEN, " and ".join(said)
    return judged(verdict, f"where the mixture is farthest above the best baseline: {said}", numbers)


def claim_15(lines: dict) -> dict:
    counts = [int(count) for count in lines["nonzeros"]]
    entry = lambda count: lines["nonzeros"][str(count)]["excess"]  # noqa: E731
    ends = {trained_count(lines): whole(entry(trained_count(lines))["mixture"]["sparse"]),
            counts[-1]: whole(entry(counts[-1])["mixture"]["dense"])}
    between, numbers = {}, {}
    for count in counts:
        if not trained_count(lines) < count < counts[-1]:
            continue
        apart = whole(entry(count)["sparse"]["dense"])
        worse, better = ("sparse", "dense") if apart["mean"] > 0 else ("dense", "sparse")
        above, below = (whole(entry(count)["mixture"][name]) for name in (worse, better))
        numbers[count] = {"specialists apart": apart, "worse": worse, "to the worse": above, "to the better": below}
        between[count] = not (above["low"] > SLACK or below["high"] < -SLACK)
    numbers = {"ends": ends, "between": numbers}
    if (untrained := not_learned(lines)):
        return judged(OPEN, untrained, numbers)
    told_apart = any(abs(n["specialists apart"]["mean"]) >= SLACK for n in numbers["between"].values())
    match = all(n["high"] <= MARGIN for n in ends.values())
    outside = [count for count, inside in between.items() if not inside]
    if not between or not told_apart:
        verdict, said = OPEN, "the specialists do not differ in between"
    elif outside or any(n["low"] > MARGIN for n in ends.values()):
        verdict = REFUTED
        said = f"outside the specialists at {', '.join(map(str, outside)) or 'no number of'} non-zeros"
    else:
        verdict, said = CONFIRMED if match else OPEN, f"between the specialists at {', '.join(map(str, between))} non-zeros"
    ended = ", ".join(f"{n['mean']:+.3f} at {count}" for count, n in ends.items())
    return judged(verdict, f"{said}; less the specialist at the ends: {ended}", numbers)


def claim_16(lines: dict, waves: dict) -> dict:
    mixed = {entry["weight"]: last(entry["curves"]["waves"]) for entry in waves["combinations"][0]["weights"]}
    extremes = {f"dense, {name.replace('scale_', '').replace('=3', ' three times as large')}":
                {key: value / 9 for key, value in last(lines["ood"][name]["excess"]["dense"]["least_squares"]).items()}
                for name in ("scale_y=3", "scale_x=3")}
    faster = waves["classes"][label(class_of(FASTER, 1))]["excess"]["waves"]["basis_least_squares"]
    extremes["waves, twice the frequency"] = last(faster)
    numbers = {"combinations": mixed, "extremes": extremes}
    ends, middle = [mixed[0.0], mixed[1.0]], mixed[0.5]
    if any(end["mean"] > LEARNED for end in ends):
        errors = ", ".join(f"{end['mean']:.3f}" for end in ends)
        return judged(OPEN, f"the model has not learned its own classes: {errors}", numbers)
    fails = middle["low"] > max(FAILS, 3 * max(end["high"] for end in ends))
    works = middle["high"] <= max(end["high"] for end in ends) + MARGIN
    degraded = [name for name, n in extremes.items() if n["low"] > MARGIN]
    verdict = CONFIRMED if fails and degraded else REFUTED if works and not degraded else OPEN
    said = ", ".join(f"{n['mean']:.3f} at weight {weight:g}" for weight, n in mixed.items())
    worse = ", ".join(f"{name} {n['mean']:+.3f}" for name, n in extremes.items())
    return judged(verdict, f"error of waves after the last example: {said}; above the best baseline: {worse}", numbers)


def judged(verdict: str, sentence: str, numbers: dict) -> dict:
    return {"verdict": verdict, "sentence": sentence, "numbers": numbers}


def own(lines: dict) -> dict[str, str]:
    """The two classes, and the specialist of each."""
    return {case: "dense" if entry["class"]["name"] == "linear" else "sparse" for case, entry in lines["classes"].items()}


def other(specialist: str) -> str:
    return "sparse" if specialist == "dense" else "dense"


def trained_count(lines: dict) -> int:
    return next(entry["class"]["nonzeros"] for entry in lines["classes"].values() if "nonzeros" in entry["class"])


def not_learned(lines: dict) -> str | None:
    """What is wrong with a specialist that is no standard."""
    for case, name in own(lines).items():
        excess = lines["classes"][case]["excess"][name]
        best = whole(excess["sparse_bayes" if name == "sparse" else "least_squares"])
        if best["high"] > MARGIN:
            return f"the model trained on {case} alone has not learned its class: {best['mean']:+.3f} above the best in the mean"
    return None


def whole(curve: dict) -> dict:
    return {key: curve["overall"][key] for key in ("mean", "low", "high")}


def last(curve: dict) -> dict:
    return {key: curve[key][-1] for key in ("mean", "low", "high")}


def shortened(results: dict) -> dict:
    """What is worth keeping: means instead of whole curves; lines.json and waves.json have everything."""
    means = lambda entries: {case: {name: rounded(curve["mean"]) for name, curve in entry["curves"].items()}  # noqa: E731
                             for case, entry in entries.items()}
    lines, waves = results["lines"], results["waves"]
    pair = {f"{entry['weight']:g}": entry for entry in waves["combinations"][0]["weights"]}
    kept = {key: value for key, value in results.items() if key not in ("lines", "waves")}
    return {**kept, "settings": lines["settings"], "classes": means(lines["classes"]), "ood": means(lines["ood"]),
            "nonzeros": means(lines["nonzeros"]), "waves": means(waves["classes"]), "combinations": means(pair),
            "gradient": lines["gradient"]["cosine"]}


def rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


CLAIMS = {"13": "a mixture does as well as the right specialist", "14": "it tracks the best baseline along the whole curve",
          "15": "between the classes it predicts in between", "16": "outside the mixture it fails"}


def markdown(results: dict) -> str:
    lines = ["| claim | verdict | |", "|---|---|---|"]
    lines += [f"| {number}: {CLAIMS[number]} | {found['verdict']} | {found['sentence']} |"
              for number, found in results["claims"].items()]
    lines += ["", "| run | classes | steps | parameters | seconds |", "|---|---|---|---|---|"]
    for name, run in results["runs"].items():
        classes = ", ".join(run["classes"])
        steps = f"{run['step']:,}" + f" of {run['steps']:,}" * (run["step"] < run["steps"])
        lines.append(f"| {name} | {classes} | {steps} | {run['parameters']:,} | {run['seconds']:,.0f} |")
    for section in ("lines", "waves"):
        for case, entry in results[section]["classes"].items():
            lines += ["", f"**{case}**, squared error after k examples", "", *_table(entry)]
    return "\n".join(lines) + "\n"


def _table(entry: dict) -> list[str]:
    points = entry["points"]
    shown = range(points) if points <= 12 else sorted({*range(0, points, 4), points - 1})
    rows = [["k", *map(str, shown)], ["---"] * (len(shown) + 1)]
    rows += [[name, *(f"{curve['mean'][k]:.3f}" for k in shown)] for name, curve in entry["curves"].items()]
    return [f"| {' | '.join(row)} |" for row in rows]


def picture(results: dict) -> Figure:
    """A panel for each claim; 13 and 14 share theirs, one for each class."""
    lines, waves = results["lines"], results["waves"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 4.3), layout="constrained")
        axes, looks = figure.subplots(1, 4), looks_of(lines)
        for axis, (case, entry) in zip(axes, lines["classes"].items()):
            kept = {name: curve for name, curve in entry["curves"].items() if name not in ("averaging", "nearest_neighbours")}
            draw_curves(axis, {**entry, "curves": kept}, looks)
            axis.set_title(f"13, 14: {class_title(entry['class'])}", fontsize=10)
            axis.set_xlabel("in-context examples")
        draw_selection(axes[2], lines["nonzeros"], looks)
        axes[2].set_title("15: mean over the prompt", fontsize=10)
        _weights_panel(axes[3], waves["combinations"][0]["weights"])
        axes[0].set_ylabel("squared error, normalised")
        legend(figure, axes, 5)
    return figure


def _weights_panel(axis, entries: list[dict]) -> None:
    weights = [entry["weight"] for entry in entries]
    for name, colour, label in (("waves", "#7c3aed", "waves"), ("zero", "#9ca3af", "zero"),
                                ("basis_least_squares", "#4d7c0f", "least squares on line, sine and cosine")):
        curves = [last(entry["curves"][name]) for entry in entries]
        axis.plot(weights, [curve["mean"] for curve in curves], color=colour, marker="o", markersize=4, label=label,
                  linestyle="-" if name == "waves" else ":")
        if name == "waves":
            low, high = ([curve[key] for curve in curves] for key in ("low", "high"))
            axis.fill_between(weights, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.set_title("16: sinusoids and lines, after the last example", fontsize=10)
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
    lines = evaluate_lines([subjects[name] for name in ("dense", "sparse", "mixture")], settings, announce)
    waves = evaluate_waves(subjects["waves"], settings, announce)
    claims = {"13": claim_13(lines), "14": claim_14(lines), "15": claim_15(lines), "16": claim_16(lines, waves)}
    runs = {name: described(config, out / name, subjects[name].about) for name, config in configs.items()}
    return {"environment": environment(), "config": configs["mixture"].to_dict(), "runs": runs, "claims": claims,
            "lines": lines, "waves": waves}


def described(config: TrainConfig, run: Path, about: dict) -> dict:
    """step: that of the weights which were evaluated, seconds: until the last line of metrics before; steps: of the whole run."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = max((line["total_seconds"] for line in metrics if line["step"] <= about["step"]), default=0.0)
    return {"classes": list(config.classes), "step": about["step"], "steps": config.steps, "parameters": about["parameters"],
            "seconds": seconds, "dtype": config.dtype}


def write_results(out: Path, results: dict) -> None:
    write_json(out / "results.json", shortened(results))
    (out / "results.md").write_text(markdown(results))
    for section in ("lines", "waves"):
        write_json(out / f"{section}.json", results[section])
    draw_figures([out / "lines.json", out / "waves.json"], out / "figures")
    picture(results).savefig(out / "claims.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/icl"))
    parser.add_argument("--scale", choices=list(SCALES), default="small",
                        help="small: 4 dimensions, minutes on a CPU; garg: 20 dimensions, 500,000 steps; tiny: a dry run")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS,
                        help="train only these; results are written by the command without --runs")
    parser.add_argument("--steps", type=int, help="of every run (default: those of the scale)")
    parser.add_argument("--prompts", type=int, default=Settings.prompts, help="of every test (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="(default: that of the scale)")
    parser.add_argument("--unfinished", action="store_true", help="train no more: evaluate all runs at their last checkpoints")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes of training, with a checkpoint")
    arguments = parser.parse_args()
    configs = runs_of(arguments.scale, arguments.steps, arguments.device, arguments.dtype)
    if not arguments.unfinished:
        try:
            train_all({name: configs[name] for name in arguments.runs}, arguments.out, arguments.minutes)
        except Interrupted as stopped:
            raise SystemExit(f"{stopped}; the same command goes on in {arguments.out}") from None
    if len(arguments.runs) == len(configs):
        results = results_of(configs, arguments.out, Settings(prompts=arguments.prompts))
        write_results(arguments.out, results)
        print(markdown(results))


if __name__ == "__main__":
    main()
