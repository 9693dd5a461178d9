"""The second judgement of `benchmarks/reweighting.py` for a results file whose runs are no longer there.

Stratified sampling is trained for as long as the FLOPs that the file counts for each method last, seed by seed, from the texts and with the settings that the file's
runs had, and what it reaches at those steps goes into the file as the other side of each method's comparison. The file says which machine made these runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.reweighting_begun import OWN
from benchmarks.reweighting_data import rounded, tokens_per_byte
from benchmarks.reweighting_study import Case, Study, spent_by
from dynadapt.common.environment import environment
from dynadapt.experiments.reweight import ReweightConfig
from dynadapt.experiments.reweight.compare import BASE
from dynadapt.experiments.reweight.compare_flops import judged_by_flops, stratified_steps
from dynadapt.experiments.reweight.setup import load_model
from dynadapt.runs.rundir import read_json, write_json

ROUNDING = 1e-6  # results keep six decimals


def matching_steps(case: Mapping, settings: Mapping) -> dict[str, int]:
    """By method of a results file's case, and the settings of its runs: the step of a stratified run that has spent what the method needed.

    FLOPs are means over seeds there: those of training depend on no seed, those of a search's fits by a billionth.
    """
    runs, a_step = case["methods"], settings["rows"] * settings["segment"]
    step = runs[BASE]["flops"]["training"] / (runs[BASE]["tokens"] / a_step)
    return {name: stratified_steps(spent_by(name, run["flops"]), step) for name, run in runs.items() if name != BASE}


def check_settings(path: Path, settings: Mapping, rows: list[dict], config: ReweightConfig) -> None:
    """SystemExit where the file's runs had other settings, naming the first, or another number of tokens."""
    now = config.to_dict()
    for name, value in settings.items():
        if name not in OWN and name in now and now[name] != value:
            raise SystemExit(f"{path} was made with {name} {value!r}, not {now[name]!r}: give the --size and options of its runs")
    tokens = config.steps * config.rows * config.segment
    if rows[0]["tokens"] != tokens:
        raise SystemExit(f"{path} has {rows[0]['tokens']} tokens a run, not {tokens}: give the --size and options of its runs")


def check_texts(path: Path, rows: list[dict], config: ReweightConfig) -> None:
    """SystemExit where the file's test texts, or the tokens they make, are others than those of now."""
    if not rows[0].get("tokens_per_byte"):
        raise SystemExit(f"{path} has no tokens a byte of its texts, as files of before there were these: they can't be told from others")
    now = tokens_per_byte(config, load_model(config))
    for domain, value in rows[0]["tokens_per_byte"].items():
        if abs(now.get(domain, 0.0) - value) > ROUNDING:
            raise SystemExit(
                f"{path} has {value} tokens a byte of {domain}'s test text, not {now.get(domain, 0.0):.6f}: give the --corpus of its runs"
            )


def match(path: Path, name: str, case: Case, out: Path, seeds: range) -> None:
    """Trains and judges the stratified runs of these seeds, as far as they are not there.

    Raises:
        SystemExit: the file has no such case, none of these seeds, or was made with other settings or of other texts.
    """
    results = read_results(path, name)
    rows = results["runs"][name]
    check_settings(path, results["settings"][name], rows, case.config)
    check_texts(path, rows, case.config)
    known = sorted({row["seed"] for row in rows})
    if not set(seeds) & set(known):
        raise SystemExit(f"{path} has seeds {', '.join(map(str, known))}: none of {', '.join(map(str, seeds))}")
    steps = matching_steps(results["cases"][name], results["settings"][name])
    for seed in (seed for seed in seeds if seed in known):
        print(f"{name}, seed {seed}: stratified sampling for {max(steps.values())} steps", flush=True)
        Study(case, out / name / f"seed-{seed}", seed).stratified_at(set(steps.values()))


def put_in(path: Path, name: str, out: Path) -> dict:
    """The results with what the stratified runs under `out` reached, of all seeds that are there, and the comparisons made of it; kept in the file."""
    results = read_results(path, name)
    steps = matching_steps(results["cases"][name], results["settings"][name])
    for row in results["runs"][name]:
        points = out / name / f"seed-{row['seed']}" / "equal-flops" / "points.json"
        if row["method"] != BASE and points.exists() and (point := read_json(points).get(str(steps[row["method"]]))):
            row["equal_flops"] = point
    results["cases"][name]["by_flops"] = judged_by_flops(results["runs"][name], results["settings"][name]["rows"])
    results["equal_flops_made_on"] = environment()
    results.setdefault("stratified_again", {})[name] = trained_again(results["runs"][name])
    write_json(path, rounded(results))
    return results["cases"]


def trained_again(rows: list[dict]) -> dict[str, float]:
    """By seed: the later stratified run, where it has had the tokens of the file's own, less that one: the same run but for the machine, in nats."""
    first = {row["seed"]: row for row in rows if row["method"] == BASE}
    pairs = ((row["equal_flops"], first[row["seed"]]) for row in rows if row.get("equal_flops"))
    return {str(one["seed"]): again["mean"] - one["mean"] for again, one in pairs if again["tokens"] == one["tokens"]}


def read_results(path: Path, name: str) -> dict:
    results = read_json(path)
    if not isinstance(results, dict) or not {"cases", "runs", "settings"} <= results.keys() or name not in results["cases"]:
        raise SystemExit(f"--equal-flops-of {path}: no results of this script for the case {name!r}")
    if BASE not in results["cases"][name]["methods"]:
        raise SystemExit(f"--equal-flops-of {path}: no {BASE} run, whose FLOPs a step are to be known")
    return results
