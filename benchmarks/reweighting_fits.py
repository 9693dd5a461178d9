"""How the fits of target losses fare on the curves of `benchmarks/reweighting.py`: what they refuse, and how far off what they foresee is.

Each seed's `sample` is a run at the data's proportions over half of the tokens; its curve of each domain is fitted and extrapolated to all of them,
and the `proportional` run of that seed says what the loss there is. The curves stay in the results, so that another law can be tried on them.
"""

from __future__ import annotations

from pathlib import Path

from dynadapt.experiments.scaling_fit import ScalingError, fit_curve
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import read_json


def fits(folder: Path) -> dict:
    """Of a case's folder: targets of seeds in which every domain was fitted, as its methods had them, and every curve by itself."""
    ran, refused, curves = [], 0, []
    for seed in sorted(folder.glob("seed-*")):
        refused += (seed / "sample" / "refused.txt").exists()
        whole, fitted = seed / "proportional" / "summary.json", seed / "sample" / "targets.json"
        if not whole.exists() or not (seed / "sample" / "summary.json").exists():
            continue
        summary = read_json(whole)
        ended, tokens = summary["heldout"], summary["tokens"]
        if fitted.exists():
            found = read_json(fitted)
            ran += [(found["target"][domain] - loss, _inside(found["interval"][domain], loss)) for domain, loss in ended.items()]
        number = int(seed.name.removeprefix("seed-"))
        curves += [
            {"seed": number, "domain": domain, **foreseen(*curve, tokens, ended[domain])} for domain, curve in _curves(seed / "sample")
        ]
    return {
        "predictions": len(ran),
        "inside": sum(inside for _, inside in ran),
        "refused_seeds": refused,
        **_errors([error for error, _ in ran]),
        "curves": curves,
        "curve_by_curve": summed(curves),
    }


def _curves(sample: Path) -> list[tuple[str, tuple[list[int], list[float]]]]:
    lines = [line for line in read_run(sample).metrics if line["kind"] == "evaluation" and line["total_tokens"]]
    tokens = [line["total_tokens"] for line in lines]
    return [(domain, (tokens, [line["heldout"][domain] for line in lines])) for domain in (lines[0]["heldout"] if lines else ())]


def foreseen(tokens: list[int], losses: list[float], whole: int, ended: float) -> dict:
    """One curve: its points, what is foreseen at ``whole`` tokens with its 90% interval or why nothing is, and the loss that the run there ended with."""
    points = {"tokens": tokens, "losses": losses, "whole": whole, "ended": ended}
    try:
        fit = fit_curve(tokens, losses)
        foreseen = fit.extrapolate(whole)
    except ScalingError as error:
        return {**points, "refused": str(error)}
    inside = _inside((foreseen.low, foreseen.high), ended)
    return {
        **points,
        "form": fit.form,
        "backtest": fit.backtest,
        "foreseen": foreseen.loss,
        "interval": [foreseen.low, foreseen.high],
        "inside": inside,
    }


def summed(curves: list[dict]) -> dict:
    """Counts of curves and refusals, and the errors of those that are not refused."""
    taken = [curve for curve in curves if "foreseen" in curve]
    return {
        "curves": len(curves),
        "refused": len(curves) - len(taken),
        "inside": sum(curve["inside"] for curve in taken),
        **_errors([curve["foreseen"] - curve["ended"] for curve in taken]),
    }


def _inside(interval, loss: float) -> bool:
    return bool(interval[0] <= loss <= interval[1])


def _errors(errors: list[float]) -> dict:
    return {
        "mean_error": sum(errors) / len(errors) if errors else None,
        "mean_absolute_error": sum(map(abs, errors)) / len(errors) if errors else None,
    }


def fits_markdown(found: dict | None) -> list[str]:
    """A line on the curves one by one; none for results of before they were kept."""
    every = (found or {}).get("curve_by_curve")
    if not every or not every["curves"]:
        return []
    taken = every["curves"] - every["refused"]
    line = f"- Curves, domain by domain and seed by seed: the fit refused {every['refused']} of {every['curves']}"
    if taken:
        line += (
            f"; of the other {taken}, {every['inside']} ended inside their 90% intervals, and what was foreseen is {every['mean_error']:+.3f} nats "
            f"(mean absolute {every['mean_absolute_error']:.3f}) from where they ended"
        )
    return [line + ".", ""]
