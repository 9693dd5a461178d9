"""The comparison of mixers: paired intervals, Holm's adjustment, the rule for a verdict, and the benchmark, tiny."""

import importlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import write_manifest
from scipy import stats
from tiny import english

from dynadapt.experiments.reweight.compare import CompareError, difference, draw_comparison, holm, judged, markdown, paired, report
from dynadapt.experiments.reweight.power import power, seeds_for, seen

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = ("code", "prose")


def rows(shifts: dict[str, float], seeds: int = 4, noise: float = 0.001, jitter: float = 0.5) -> list[dict]:
    """Runs whose loss is 3 + the seed's own level + the method's shift + noise."""
    random, found = np.random.default_rng(0), []
    level = jitter * random.standard_normal(seeds)
    for method, shift in shifts.items():
        for seed in range(seeds):
            test = {domain: 3 + i + level[seed] + shift + noise * random.standard_normal() for i, domain in enumerate(DOMAINS)}
            weights = {
                "tokens": [16, 32],
                **{domain: [0.5, 0.5 + (0.1 if i else -0.1) * (method == "velocitune")] for i, domain in enumerate(DOMAINS)},
            }
            found.append(
                {
                    "method": method,
                    "seed": seed,
                    "test": test,
                    "mean": float(np.mean(list(test.values()))),
                    "tokens": 32,
                    "epochs": dict.fromkeys(DOMAINS, 0.5),
                    "average_weights": dict.fromkeys(DOMAINS, 0.5),
                    "flops": {"training": 10, "heldout": 1, "excess": 0, "made_first": 5},
                    "targets_from": None,
                    "weights": weights,
                }
            )
    return found


def test_paired_is_students_test():
    one, two = np.array([3.1, 2.9, 3.4, 3.0]), np.array([3.0, 2.95, 3.1, 2.7])
    found, expected = paired(one - two), stats.ttest_rel(one, two)
    assert found["mean"] == pytest.approx(0.1625) and found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(list(expected.confidence_interval(0.95)))
    assert paired([0.2])["interval"] is None and paired([0.2, 0.2])["p"] == 0.0 and paired([0.0, 0.0])["p"] == 1.0
    for bad in ([], [float("nan")], [[1.0]]):
        with pytest.raises(CompareError, match="differences"):
            paired(bad)


def test_intervals_hold_the_truth():
    random = np.random.default_rng(1)
    inside = [low <= 0.3 <= high for low, high in (paired(random.normal(0.3, 1.0, 3))["interval"] for _ in range(2000))]
    assert 0.935 < np.mean(inside) < 0.965


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([None]) == [None]


def test_seeds_are_paired():
    """Levels of seeds are far apart; the difference is found all the same, and without the pairing it would not be."""
    found = rows({"stratified": 0.0, "odm": -0.02})
    assert report(found)["against_stratified"]["odm"]["says"] == "better"
    shuffled = [{**row, "seed": (row["seed"] + 1) % 4} if row["method"] == "odm" else row for row in found]
    assert report(shuffled)["against_stratified"]["odm"]["says"] == "undecided"
    assert difference(found, "odm", "ado") is None


def test_what_a_rule_sees_is_what_it_calls_four_times_of_five():
    """Simulated: the true difference that `seen` names, with the level of Holm's first of ten, is called with probability 0.8."""
    for seeds, level in ((3, 0.005), (5, 0.05), (5, 0.005)):
        error = 0.1 / np.sqrt(seeds)
        difference = seen(error, seeds - 1, level)
        values = difference + 0.1 * np.random.default_rng(seeds).standard_normal((20_000, seeds))
        called = np.mean(stats.ttest_1samp(values, 0, axis=1).pvalue < level)
        assert called == pytest.approx(0.8, abs=0.012)
    assert power(0.0, 1.0, 4, 0.05) == pytest.approx(0.05, abs=1e-3) and seen(0.0, 4, 0.05) == 0.0


@pytest.mark.parametrize("spread, level", [(0.06, 0.05), (0.06, 0.005), (0.003, 0.05), (0.4, 0.05)])
def test_the_seeds_for_a_difference_are_the_least_that_see_it(spread, level):
    seeds = seeds_for(0.05, spread, level)
    assert seeds >= 2 and seen(spread / math.sqrt(seeds), seeds - 1, level) <= 0.05
    assert seeds == 2 or seen(spread / math.sqrt(seeds - 1), seeds - 2, level) > 0.05
    assert seeds_for(0.05, 1e3 * spread, level) is None


@pytest.mark.parametrize(
    "given, named",
    [
        ((0.05, math.nan, 0.05), "spread nan"),
        ((0.05, -0.1, 0.05), "spread -0.1"),
        ((math.nan, 0.1, 0.05), "difference nan"),
        ((0.0, 0.1, 0.05), "difference 0.0"),
        ((0.05, 0.1, 0.0), "level 0.0"),
        ((0.05, 0.1, 0.9), "level 0.9"),
        ((0.05, 0.1, 0.05, 1.0), "wanted 1.0"),
        ((0.05, 0.1, 0.05, 0.8, 1), "most 1"),
    ],
)
def test_seeds_for_no_difference_or_no_spread_are_refused(given, named):
    with pytest.raises(ValueError, match=named):
        seeds_for(*given)


def test_seeds_at_the_ends():
    assert seeds_for(0.05, 0.0, 0.05) == 2 and seeds_for(0.05, math.inf, 0.05) is None and seeds_for(1e-12, 0.06, 0.05) is None
    assert seeds_for(math.inf, 0.06, 0.05) == 2 and seeds_for(0.05, 0.06, 1e-12) > seeds_for(0.05, 0.06, 1e-6) > seeds_for(0.05, 0.06, 0.79)


def test_a_comparison_says_how_many_seeds_it_wants():
    study = rows({"stratified": 0.0, "odm": 0.0}, seeds=5, noise=0.06)
    found = report(study)["against_stratified"]["odm"]
    one, two = ([row["mean"] for row in study if row["method"] == name] for name in ("odm", "stratified"))
    drawn = np.subtract(one, two)
    assert found["seeds_for_worth"] == seeds_for(0.05, float(drawn.std(ddof=1)), 0.05)
    assert f"it would take {found['seeds_for_worth']} to {found['seeds_for_worth']} seeds" in markdown({"scratch": report(study)})


def test_every_comparison_says_what_it_sees():
    """Ten methods leave a smaller level than one, so that one comparison alone sees more."""
    found = report(rows({"stratified": 0.0, "odm": 0.0, "velocitune": 0.0, **{f"m{i}": 0.0 for i in range(8)}}))
    alone = report(rows({"stratified": 0.0, "odm": 0.0}))
    assert 0 < alone["against_stratified"]["odm"]["sees"] < found["against_stratified"]["odm"]["sees"]
    text = markdown({"scratch": found})
    assert "- Power: true differences of" in text and "| sees |" in text
    claim = report(
        rows({"stratified": 0.0, "proportional": 0.0, "dynamic-batch-loading": 0.0, "velocitune": 0.0, "velocitune-average": 0.0})
    )
    assert claim["claim8"]["verdict"].count("sees 0.0") == 3 and "sees 0.0" in claim["claim9"]["verdict"]
    assert report(rows({"stratified": 0.0, "odm": 0.1}, seeds=1))["against_stratified"]["odm"]["sees"] is None


def test_doremi_in_batches_smaller_than_the_domains_is_not_tested():
    found = rows({"stratified": 0.0, "odm": 0.1, "doremi": 0.8, "doremi-average": 0.1})
    small, large = report(found, batch=1), report(found, batch=2)
    assert small["against_stratified"]["doremi"]["says"] == small["against_control"]["doremi"]["says"] == "not tested"
    assert small["verdict"] == "no method beats stratified; worse: odm; not tested: doremi, doremi-average"
    assert large["against_stratified"]["doremi"]["says"] == report(found)["against_stratified"]["doremi"]["says"] == "worse"
    assert small["against_stratified"]["odm"] == large["against_stratified"]["odm"]  # they stay in the family


def test_verdicts_of_the_results_file_are_those_of_its_runs(tmp_path):
    path = tmp_path / "results.json"
    shutil.copy(ROOT / "benchmarks" / "results" / "reweighting.json", path)
    benchmark = importlib.import_module("benchmarks.reweighting")
    text = markdown(benchmark.judge_again(path))
    assert path.read_text() == (ROOT / "benchmarks" / "results" / "reweighting.json").read_text()
    page = (ROOT / "docs" / "reweight.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| method", "| loss"))]
    assert len(tables) > 40 and [line for line in tables if line not in page] == []


def test_only_seeds_of_both():
    found = [row for row in rows({"stratified": 0.0, "odm": 0.1}) if row["method"] == "stratified" or row["seed"] < 2]
    assert report(found)["against_stratified"]["odm"]["seeds"] == 2


@pytest.mark.parametrize("shift,other,word", [(-0.05, 0.0, "confirmed"), (0.05, 0.0, "refuted"), (0.0, 0.05, "not decided")])
def test_claim_8(shift, other, word):
    """`other` is dynamic-batch-loading's shift: being better than that alone confirms nothing."""
    found = report(rows({"stratified": 0.0, "proportional": 0.0, "dynamic-batch-loading": other, "velocitune": shift}))
    assert found["claim8"]["verdict"].startswith(word), found["claim8"]


@pytest.mark.parametrize("shift,word", [(-0.05, "moving weights beat"), (0.05, "the average weights"), (0.0, "not decided")])
def test_claim_9(shift, word):
    found = report(rows({"stratified": 0.0, "velocitune": shift, "velocitune-average": 0.0}))
    assert found["claim9"]["verdict"].startswith(word)
    assert found["against_control"]["velocitune"]["mean"] == pytest.approx(shift, abs=0.003)
    assert found["claim8"]["verdict"].startswith("not tested")


def test_many_comparisons_are_adjusted():
    """Twenty methods that are no better than stratified: unadjusted, one often looks better or worse; adjusted, rarely."""
    plain, adjusted = 0, 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        found = rows({"stratified": 0.0, **{f"m{i}": 0.0 for i in range(20)}}, seeds=3)
        for row in found:
            row["mean"] = float(random.standard_normal())
        compared = report(found)["against_stratified"].values()
        plain += any(value["p"] < 0.05 for value in compared)
        adjusted += any(value["says"] != "undecided" for value in compared)
    assert plain > 20 and adjusted < 10


def test_what_was_added_later_changes_no_other_verdict():
    found = rows({"stratified": 0.0, "odm": -0.02, "velocitune-known": 0.0})
    without = [row for row in found if row["method"] != "velocitune-known"]
    assert report(found)["against_stratified"]["odm"] == report(without)["against_stratified"]["odm"]
    later = report(found)["against_stratified"]["velocitune-known"]
    assert later["p"] == later["p_adjusted"] and later["says"] == "undecided"


def test_null_result_is_said_plainly():
    found = report(rows({"stratified": 0.0, "odm": 0.0, "ado": 0.0}))
    assert found["verdict"] == "no method beats stratified; none is worse; undecided: ado, odm"


def test_report_is_readable(tmp_path):
    cases = {"scratch": report(rows({"stratified": 0.0, "velocitune": 0.05, "velocitune-average": 0.0}))}
    json.dumps(cases, allow_nan=False)
    text = markdown(cases)
    assert "| velocitune | " in text and "- Claim 9: the average weights" in text and "worse" in text
    assert text.count("*") >= 2  # both domains of velocitune, by their own intervals
    assert draw_comparison(cases, tmp_path / "all.png").stat().st_size > 10_000
    for begun in ({"stratified": 0.0}, {"velocitune": 0.0}):  # nothing stands beside stratified yet
        cases = {"scratch": report(rows(begun))}
        assert "not tested" in markdown(cases) and draw_comparison(cases, tmp_path / "begun.png").exists()


def test_runs_that_differ_are_refused():
    found = rows({"stratified": 0.0, "odm": 0.0})
    for row in (row for row in found if row["seed"] == 3):  # all of a seed: within it they agree
        row["tokens"] = 99
    for way in (report, judged):
        with pytest.raises(CompareError, match="stratified of seed 0 has 32 tokens of code, prose; stratified of seed 3 has 99 tokens"):
            way(found)
    found = rows({"stratified": 0.0, "odm": 0.0})
    del found[-1]["test"]["code"]
    with pytest.raises(CompareError, match="odm of seed 3 has 32 tokens of prose"):
        report(found)
    with pytest.raises(CompareError, match="no finished run"):
        report([])


def test_benchmark(tmp_path):
    """A whole study on a tiny corpus: made, reported, and not made again."""
    for name, base in (("one", 0), ("two", 50)):
        folder = tmp_path / "corpus" / name
        folder.mkdir(parents=True)
        for part, count in (("train", 30), ("heldout", 8)):
            lines = [json.dumps({"text": english(300, seed=base + i + 20 * (part == "heldout"))}) for i in range(count)]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(tmp_path / "corpus")
    out = tmp_path / "study"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "reweighting.py"),
        "--corpus",
        str(tmp_path / "corpus"),
        "--out",
        str(out),
        "--case",
        "scratch",
        "--seeds",
        "2",
        "--steps",
        "4",
        "--share",
        "1",
        "--scratch",
        "1x16",
        "--mixers",
        "stratified",
        "velocitune",
        "velocitune-known",
        "velocitune-average",
        "doremi",
        "ado",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((out / "results.json").read_text())["cases"]["scratch"]
    assert set(results["methods"]) == {"stratified", "proportional", "velocitune", "velocitune-average", "doremi"}
    assert "ado: left out; its rule needs 200 steps" in ran.stdout and "velocitune-known: left out" in ran.stdout
    assert results["methods"]["velocitune"]["targets_from"] == ["proportional run"]
    assert results["methods"]["velocitune"]["tokens"] == 4 * 1024
    cost = {name: row["flops"]["made_first"] for name, row in results["methods"].items()}
    assert cost["stratified"] == cost["proportional"] == 0
    assert cost["velocitune-average"] > cost["velocitune"] > cost["doremi"] > 0
    average = json.loads((out / "scratch/seed-0/velocitune/summary.json").read_text())["static_weights"]
    replayed = json.loads((out / "scratch/seed-0/velocitune-average/summary.json").read_text())["weights"]
    assert replayed == pytest.approx(average)
    test, held = ((out / "texts/one" / f"{part}.jsonl").read_text().splitlines() for part in ("test", "heldout"))
    assert len(test) == len(held) == 4 and not set(test) & set(held)
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and "mean " not in again.stdout.split("##")[0]


@pytest.mark.parametrize("far", [900.0, 5.0, 1.2, 0.9, -0.9, 0.3, 0.09, 0.02])
def test_a_picture_with_one_method_far_away_has_marks_to_read_it_by(far):
    from matplotlib.figure import Figure

    from dynadapt.experiments.reweight.compare import _forest

    axis = Figure().add_subplot()
    _forest(axis, "x", report(rows({"stratified": 0.0, "odm": 0.001, "velocitune": -0.002, "ado": 0.004, "doremi": far})))
    low, high = axis.get_xlim()
    assert axis.get_xscale() == "symlog" and 3 <= sum(low <= mark <= high for mark in axis.get_xticks()) <= 7
