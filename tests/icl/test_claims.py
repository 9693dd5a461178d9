"""The rules of benchmarks/icl_rules.py on made-up seeds of which the answer is known, and dry runs of benchmarks/icl.py."""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import (  # noqa: E402
    icl,
    icl_measure,
    icl_page,  # noqa: E402
    icl_rules,
)
from benchmarks.icl_page import markdown, picture  # noqa: E402

# Errors by number of examples where everyone does what is best: dense functions of 3 dimensions and one non-zero of three
DENSE, SPARSE, ZERO = [1, 0.7, 0.4, 0.0, 0.0], [1, 0.5, 0.0, 0.0, 0.0], [1.0] * 5
MIXED = [1, 0.68, 0.1, 0.0, 0.0]  # of the right sparse functions, by who does not know that they are
OFF = [1, 1.2, 0.9, 0.8, 0.6]  # of a specialist on the other class


def seed(number=0, **tests):
    """One made-up seed: small differences between seeds, none between halves."""
    spread = 0.002 * (number - 1)
    half = lambda errors: [float(value) + spread * (k > 0) for k, value in enumerate(errors)]  # noqa: E731
    return {
        test.replace("_", " "): {name: {"first": half(errors), "second": half(errors)} for name, errors in found.items()}
        for test, found in tests.items()
    }


def linear(number=0, gained=0.003):
    between = {"dense": [1, 0.7, 0.4, 0.0, 0.0], "sparse": [1, 0.9, 0.6, 0.5, 0.4], "mixture": [1, 0.72, 0.41, 0.0, 0.0]}
    tests = seed(
        number,
        dense={"dense": DENSE, "sparse": OFF, "mixture": DENSE, "least_squares": DENSE, "mixture_bayes": DENSE},
        sparse={"dense": DENSE, "sparse": SPARSE, "mixture": MIXED, "lasso": MIXED, "sparse_bayes": SPARSE, "mixture_bayes": SPARSE},
        nonzeros_1={"dense": DENSE, "sparse": SPARSE, "mixture": SPARSE},
        nonzeros_2=between,
        nonzeros_3={"dense": DENSE, "sparse": OFF, "mixture": DENSE},
        y_three_times={"dense": [1, 0.8, 0.5, 0.2, 0.15], "least_squares": DENSE},
        x_three_times={"dense": [1, 0.8, 0.5, 0.2, 0.02], "least_squares": DENSE},
    )
    tests["sparse"]["mixture"] = tests["sparse"]["sparse"]
    return {"seed": number, "nonzeros": 1, "tests": tests, "improved": dict.fromkeys(("mixture", "dense", "sparse"), gained)}


def number(which=0, gained=0.003):
    line, wave = [1, 0.0, 0.0, 0.0, 0.0], [1, 0.5, 0.0, 0.0, 0.0]
    unknown = [1, 0.2, 0.0, 0.0, 0.0]  # the best that can be done on lines after one example
    tests = seed(
        which,
        line={"line": line, "wave": OFF, "waves": unknown, "least_squares": line, "mixture_bayes": unknown},
        wave={"line": OFF, "wave": wave, "waves": wave, "basis_least_squares": wave, "mixture_bayes": wave},
        combined={"line": OFF, "wave": OFF, "waves": [1, 0.8, 0.6, 0.5, 0.5]},
        faster={"waves": [1, 1, 1, 1, 1.4], "basis_least_squares": wave},
    )
    return {"seed": which, "tests": tests, "improved": dict.fromkeys(("waves", "line", "wave"), gained)}


def three(make, **settings):
    return [make(index, **settings) for index in range(3)]


def replaced(seeds, test, name, errors):
    """The same seeds in which a predictor has other errors on one test, in every half."""
    changed = copy.deepcopy(seeds)
    for index, one in enumerate(changed):
        one["tests"][test][name] = seed(index, t={"n": errors})["t"]["n"]
    return changed


def verdicts(linear_seeds, number_seeds):
    return [found["verdict"] for found in icl_rules.judge(linear_seeds, number_seeds).values()]


def test_the_best_predictors_confirm_the_claims():
    assert verdicts(three(linear), three(number)) == ["confirmed"] * 4
    found = icl_rules.judge(three(linear), three(number))
    # after one example nobody can tell a line from a wave: that number of examples is not judged
    assert found["14"]["numbers"]["number"]["mixture"]["line"]["judged after"] == [0, 2, 3, 4]
    assert found["15"]["numbers"]["between"][2]["worse"] == "sparse"
    assert "power to confirm a difference of 0 1.00" in found["13"]["changes"]
    json.dumps(found)


@pytest.mark.parametrize("family", ["linear", "number"])
@pytest.mark.parametrize("model", [0, 1])
def test_an_undertrained_model_is_not_tested(family, model):
    """The demand is the same of the mixture and of the specialists; with the other family tested 13 and 14 speak of that alone."""
    seeds = {"linear": three(linear), "number": three(number)}
    name = (icl_rules.LINEAR if family == "linear" else icl_rules.NUMBER).models[model]
    for one in seeds[family]:
        one["improved"][name] = 0.012
    found = icl_rules.judge(seeds["linear"], seeds["number"])
    for claim in ("13", "14"):
        assert f'{family}: not tested, "{name}" has not converged: the last fifth of its training took 0.0120' in found[claim]["sentence"]
        assert found[claim]["verdict"] == "confirmed"
    assert found["16"]["verdict"] == "not tested"
    assert found["15"]["verdict"] == ("not tested" if family == "linear" else "confirmed")


def test_an_undertrained_mixture_that_is_far_off_is_not_refuted():
    bad = replaced(three(linear, gained=0.02), "dense", "mixture", ZERO)
    assert icl_rules.claim_13(icl_rules.LINEAR, bad)["verdict"] == "not tested"
    assert icl_rules.claim_14(icl_rules.LINEAR, bad)["verdict"] == "not tested"
    assert verdicts(bad, three(number, gained=0.02)) == ["not tested"] * 4
    none = three(linear)
    none[0]["improved"]["mixture"] = math.nan  # what is not a number is not below the limit
    assert icl_rules.claim_13(icl_rules.LINEAR, none)["verdict"] == "not tested"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_too_few_seeds_are_not_tested(seeds):
    found = icl_rules.judge(three(linear)[:seeds], three(number)[:seeds])
    assert [one["verdict"] for one in found.values()] == ["not tested"] * 4
    assert f"{seeds} of 3 seeds are finished" in found["13"]["sentence"]


def test_a_mixture_that_learned_nothing_refutes_them():
    changed = replaced(three(linear), "dense", "mixture", ZERO)
    changed = replaced(changed, "nonzeros 3", "mixture", ZERO)
    assert verdicts(changed, three(number)) == ["refuted"] * 3 + ["confirmed"]
    found = icl_rules.judge(changed, three(number))
    assert "linear: refuted" in found["13"]["sentence"] and "number: confirmed" in found["13"]["sentence"]
    assert "on dense after" in found["14"]["sentence"] and "+1.000" in found["14"]["sentence"]


def test_too_little_training_does_not_refute_the_tracking():
    """Both the mixture and the specialist are far from least squares: the mixture is not to blame."""
    changed = replaced(replaced(three(linear), "dense", "mixture", ZERO), "dense", "dense", ZERO)
    assert icl_rules.claim_14(icl_rules.LINEAR, changed)["verdict"] == "not decided"


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_a_specialist_that_learned_nothing_is_no_standard(name):
    changed = replaced(three(linear), name, name, ZERO)
    for found in (icl_rules.claim_13(icl_rules.LINEAR, changed), icl_rules.claim_15(changed)):
        assert found["verdict"] == "not tested" and f'"{name}" has not learned its class' in found["sentence"]


def test_nothing_to_select():
    changed = replaced(replaced(three(linear), "dense", "sparse", DENSE), "sparse", "dense", SPARSE)
    found = icl_rules.claim_13(icl_rules.LINEAR, changed)
    assert found["verdict"] == "not tested" and "nothing is selected" in found["sentence"]


def test_what_is_asked_twice_is_judged_at_half_the_level():
    seeds = three(number)
    for one, by in zip(seeds, (0.0535, 0.0545, 0.0555)):  # on sinusoids: the interval that refutes begins at 0.0509, or at 0.0494
        for half in ("first", "second"):
            one["tests"]["wave"]["waves"][half] = [value + by for value in one["tests"]["wave"]["wave"][half]]
    once, twice = (icl_rules.claim_13(icl_rules.NUMBER, seeds, looks) for looks in (1, 2))
    assert (once["verdict"], twice["verdict"]) == ("refuted", "not decided") and once["sentence"] == twice["sentence"]
    assert "each at the level divided by 2, as it is asked 2 times" in twice["changes"] and "level" not in once["changes"]
    n = icl_rules.bounds([0.01, 0.02, 0.03], places=4, looks=2)
    assert n["confirm_high"] == pytest.approx(0.02 + 4.30265 * 0.01 / math.sqrt(3), abs=1e-6)  # 2.5% in each tail, 2 degrees of freedom
    assert n["high"] == pytest.approx(0.02 + 2.91999 * 0.01 / math.sqrt(3), abs=1e-6)
    named = lambda preset: {"linear": three(linear), "number": seeds, "own": [], "configs": {"a": {"preset": preset}}}  # noqa: E731
    for preset, verdict in (("icl-claims-small", "refuted"), ("icl-claims-longer", "not decided")):
        assert icl_rules.verdicts_of(named(preset))["claims"]["13"]["verdict"] == verdict
    own = icl_rules.verdicts_of({**named("icl-claims-longer"), "own": three(linear)})["own scales"]
    assert ["divided by 2" in own[claim]["changes"] for claim in ("13", "14", "15")] == [False, True, False]  # by the linear family's looks


def test_what_is_confirmed_of_the_study_is_so_at_half_the_level(monkeypatch):
    """As docs/icl-claims.md says."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "icl-seeds.json").read_text("utf-8"))
    monkeypatch.setattr(icl_rules, "LEVEL", icl_rules.LEVEL / 2)
    found = icl_rules.claim_13(icl_rules.LINEAR, kept["linear"])
    assert found["numbers"]["mixture"]["sparse"]["confirm_high"] == pytest.approx(0.046, abs=5e-4)
    assert [
        each["verdict"] for each in (found, icl_rules.claim_15(kept["linear"]), icl_rules.claim_16(kept["linear"], kept["number"]))
    ] == ["confirmed"] * 3


def test_a_spread_as_large_as_the_margin_decides_nothing():
    seeds = three(linear)
    for one, by in zip(seeds, (-0.1, 0.0, 0.1)):
        for half in ("first", "second"):
            one["tests"]["dense"]["mixture"][half] = [value + by for value in one["tests"]["dense"]["dense"][half]]
    found = icl_rules.claim_13(icl_rules.LINEAR, seeds)
    assert found["verdict"] == "not decided" and "power to confirm a difference of 0 0.1" in found["changes"]


def test_the_worst_place_is_chosen_on_one_half_and_measured_on_the_other():
    seeds = three(linear)
    for one in seeds:  # by chance far off on the first half, not on the second
        one["tests"]["dense"]["mixture"]["first"] = [value + 0.4 * (k == 2) for k, value in enumerate(DENSE)]
    found = icl_rules.claim_14(icl_rules.LINEAR, seeds)
    assert found["numbers"]["mixture"]["dense"]["examples"] == 2 and found["verdict"] == "confirmed"


def test_between_the_classes():
    found = icl_rules.claim_15(replaced(three(linear), "nonzeros 2", "mixture", OFF))
    assert found["verdict"] == "refuted"  # worse than the worse specialist
    assert icl_rules.claim_15(replaced(three(linear), "nonzeros 2", "mixture", [1, 0.2, 0, 0, 0]))["verdict"] == "refuted"  # better
    apart = three(linear)
    for one, by in zip(apart, (-0.03, 0.0, 0.03)):  # of the mixture in between: the ends keep their power
        for half in ("first", "second"):
            one["tests"]["nonzeros 2"]["mixture"][half] = [value + by for value in one["tests"]["nonzeros 2"]["mixture"][half]]
    found = icl_rules.claim_15(apart)
    assert "power to confirm a difference of 0 1.00, to refute one of 0.1 1.00; in between" in found["changes"]
    least = [icl_rules.power(0.03, 3, quantile, 0.02) for quantile in (2.91999, 6.20535)]  # 5% and 5% / 4 in one tail
    assert found["changes"].endswith(f"power there to confirm a difference of 0 {least[0]:.2f}, to refute one of 0.04 {least[1]:.2f}")
    alike = replaced(three(linear), "nonzeros 2", "sparse", DENSE)
    assert icl_rules.claim_15(alike)["verdict"] == "not tested"
    assert icl_rules.claim_15(replaced(three(linear), "nonzeros 1", "mixture", OFF))["verdict"] == "refuted"


def test_outside_the_mixture():
    holds = three(linear)
    for test in ("y three times", "x three times"):
        holds = replaced(holds, test, "dense", DENSE)
    works = replaced(replaced(three(number), "combined", "waves", [1, 0.5, 0.1, 0, 0]), "faster", "waves", [1, 0.5, 0, 0, 0])
    assert icl_rules.claim_16(holds, works)["verdict"] == "refuted"
    assert icl_rules.claim_16(three(linear), works)["verdict"] == "not decided"
    assert icl_rules.claim_16(three(linear), replaced(three(number), "wave", "waves", ZERO))["verdict"] == "not tested"


def test_bounds_and_power_by_simulation():
    """low and high are Student's; the power is the share of made-up experiments that the rule decides."""
    n = icl_rules.bounds([0.01, 0.02, 0.03], places=4)
    assert n["high"] == pytest.approx(0.02 + 2.91999 * 0.01 / math.sqrt(3), abs=1e-6)
    assert n["refute_low"] == pytest.approx(0.02 - 6.20535 * 0.01 / math.sqrt(3), abs=1e-5)  # 1.25% in each tail, 2 degrees of freedom
    rng, spread = np.random.default_rng(0), 0.02
    drawn = rng.normal(0.0, spread, (40_000, 3))
    upper = drawn.mean(1) + 2.91999 * drawn.std(1, ddof=1) / math.sqrt(3)
    assert icl_rules.power(spread, 3, 2.91999, 0.05) == pytest.approx(float((upper <= 0.05).mean()), abs=0.01)
    assert icl_rules.power(0.0, 3, 2.91999, 0.05) == 1.0
    for places, quantile in ((1, 2.91999), (3, 5.33893)):  # 5%, and 5% divided by three, in one tail
        least = icl_rules.seen_above({"sd": spread, "seeds": 3}, places)
        lower = least + drawn.mean(1) - quantile * drawn.std(1, ddof=1) / math.sqrt(3)
        assert float((lower > 0).mean()) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name, steps", [("icl-seeds.json", 50_000), ("icl-seeds-25000.json", 25_000)])
def test_verdicts_of_a_results_file_are_those_of_its_seeds(name, steps):
    results = json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))
    assert results["runs"]["seed0/dense"]["steps"] == steps and results["runs"]["seed2/own-mixture"]["steps"] == 2 * steps
    assert json.loads(json.dumps(icl_rules.verdicts_of(results))) == {key: results[key] for key in ("claims", "own scales")}


# ---- the runs


def test_runs_of_a_family_differ_in_their_classes_alone():
    runs = {name: config.to_dict() for name, config in icl.runs_of("small").items()}
    apart = lambda name, other: {key for key, value in runs[name].items() if value != runs[other][key]}  # noqa: E731
    assert apart("seed0/dense", "seed0/sparse") == apart("seed0/line", "seed0/wave") == {"classes"}
    for mixture, one in (("mixture", "dense"), ("waves", "line")):
        assert apart(f"seed0/{mixture}", f"seed0/{one}") == {"classes", "steps", "warmup"}
        assert runs[f"seed0/{mixture}"]["steps"] == 2 * runs[f"seed0/{one}"]["steps"]
    assert apart("seed0/mixture", "seed1/mixture") == {"seed"} and apart("seed2/dense", "seed2/own-dense") == {"unit_variance"}
    assert runs["seed0/line"]["steps"] == 15_000 and list(runs)[18] == "seed0/own-mixture"
    assert len(runs) == 24 and "seed0/own-sparse" in icl.runs_of("garg") and "seed0/own-dense" not in icl.runs_of("garg", own=False)
    assert all(config.steps % (icl.KEPT * config.log) == 0 for scale in icl.SCALES for config in icl.runs_of(scale).values())
    with pytest.raises(SystemExit, match="--steps 1234: give a multiple of 12,500"):
        icl.runs_of("small", steps=1234)


def stopped(monkeypatch, out, *more):
    options = ["--scale", "tiny", "--device", "cpu", "--prompts", "8", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["icl.py", *options, *more])
    icl.main()


def test_dry_run_in_pieces(tmp_path, monkeypatch, capsys):
    """Stopped after every run's first steps and started again, it ends with the same measures as in one piece; too few seeds are said."""
    stopped(monkeypatch, tmp_path / "whole", "--seeds", "1")
    for _ in range(60):
        try:
            stopped(monkeypatch, tmp_path / "cut", "--seeds", "1", "--minutes", "0")
            break
        except SystemExit as said:
            assert "the same command goes on" in str(said)
    whole, cut = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut"))
    for family in ("linear", "number", "own"):
        assert whole[family] == cut[family] and len(whole[family]) == 1
    assert all(found["verdict"] == "not tested" and "1 of 3 seeds" in found["sentence"] for found in whole["claims"].values())
    assert (tmp_path / "whole" / "results.md").read_text() in capsys.readouterr().out
    tests = whole["linear"][0]["tests"]
    assert set(tests["sparse"]) == {
        "mixture",
        "dense",
        "sparse",
        *("least_squares", "lasso", "sparse_bayes", "mixture_bayes", "mixture_bayes_noise"),
    }
    assert tests["dense"]["least_squares"]["first"][3] < 1e-3 and whole["posterior moved by noise"] < 1e-3
    assert set(whole["number"][0]["tests"]["wave"]) >= {"waves", "basis_least_squares", "mixture_bayes"}
    assert whole["runs"]["seed0/mixture"]["unit_variance"] and not whole["runs"]["seed0/own-dense"]["unit_variance"]
    # what is there is not taken for runs of other settings, and is said in its own arithmetic
    for options, message in (
        (["--steps", "20"], "seed0/mixture was begun with steps 20, not 40"),
        (["--scale", "small"], "begun with .* not "),
    ):
        with pytest.raises(SystemExit, match=message):
            stopped(monkeypatch, tmp_path / "whole", "--seeds", "1", "--evaluate", *options)
    (tmp_path / "whole" / "seed0" / "wave" / "summary.json").unlink()  # a family that is not finished
    stopped(monkeypatch, tmp_path / "whole", "--seeds", "1", "--evaluate", "--dtype", "bf16")
    part = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert part["linear"] == whole["linear"] and part["number"] == [] and part["configs"]["seed0/mixture"]["dtype"] == "fp32"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--evaluate"], "no seed is finished yet"),
        (["--steps", "0"], "--steps 0: give at least 1"),
        (["--minutes", "nan"], "--minutes nan: give at least 0"),
        (["--minutes", "-1"], "--minutes -1.0: give at least 0"),
    ],
)
def test_what_can_not_be_used_is_one_line(tmp_path, monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        stopped(monkeypatch, tmp_path / "out", *options)
    assert message in f"{end.value.code} {capsys.readouterr().err}" and not (tmp_path / "out").exists()


def test_three_seeds_are_judged_and_drawn(tmp_path, monkeypatch):
    configs = icl.runs_of("tiny", device="cpu")
    icl.train_all(configs, tmp_path)
    results = icl.results_of(configs, tmp_path, 8)
    assert [len(results[family]) for family in ("linear", "number", "own")] == [3, 3, 3]
    assert "of 3 seeds" not in json.dumps(results["claims"]) and set(results["own scales"]) == {"13", "14", "15"}
    icl.write_results(tmp_path, results)
    assert [len(row.axes) for row in picture(results).subfigs] == [3, 3] and (tmp_path / "claims.png").exists()
    page = markdown(results)
    assert "| 13: a mixture does as well as the right specialist |" in page and "| 13, own scales |" in page
    assert "| seed2/waves | dense-linear, sinusoid" in page
    keep_as_page(tmp_path, results)


def keep_as_page(root, results):
    """The page's part is made of the results and held to them."""
    for name in (icl_page.RESULTS, icl_page.PAGE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    page = root / icl_page.PAGE
    page.write_text(f"# Claims\n\n{icl_page.BEGIN}{icl_page.NOT_YET}{icl_page.END}\nmore\n")
    assert icl_page.stale(root) == []
    page.write_text(page.read_text().replace("Not measured", "Nicely measured"))
    assert icl_page.stale(root)  # without results the part says so and nothing else
    icl_page.main([str(root / "results.json")], root)
    text = page.read_text()
    assert icl_page.stale(root) == [] and text.startswith("# Claims\n\n<!-- icl_page.py -->\nResults: `") and text.endswith("-->\n\nmore\n")
    assert results["claims"]["13"]["sentence"] in text and (root / icl_page.PICTURE).exists()
    page.write_text(text.replace("| 13: a mixture does", "| 13: a mixture always does"))
    assert icl_page.stale(root)


def test_halves_are_those_of_the_prompts():
    from dynadapt.experiments.icl import DenseLinear, zero

    found = icl_measure.means({"zero": zero}, DenseLinear(2), 3, 5, 4000)["zero"]
    assert np.mean(found["first"]) == pytest.approx(1.0, abs=0.1) and found["first"] != found["second"]
