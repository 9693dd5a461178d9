"""The rules of benchmarks/icl_rules.py on predictors of which the answer is known, and a dry run of benchmarks/icl.py."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import icl, icl_rules  # noqa: E402
from dynadapt.experiments.icl import DenseLinear, Mixture, SparseLinear, least_squares, linear_mixture, make_function_class, zero
from dynadapt.experiments.icl.study import Settings, Subject  # noqa: E402

SETTINGS = Settings(prompts=150, draws=100)
DENSE, SPARSE = DenseLinear(4), SparseLinear(4, nonzeros=1)
LINE, WAVE = DenseLinear(1), make_function_class("sinusoid", 1, amplitude=(0.5, 2.0), frequency=(2.0, 2.0))


def quiet(text):
    pass


@pytest.fixture(scope="module")
def linear():
    """Results where the three models do what is best for them."""
    bayes = lambda *counts: partial(linear_mixture, nonzeros=counts)  # noqa: E731
    trained = [("dense", least_squares, DENSE), ("sparse", bayes(1), SPARSE), ("mixture", bayes(4, 1), Mixture([DENSE, SPARSE]))]
    return icl.evaluate_linear([Subject(name, answer, 4, 9, kind) for name, answer, kind in trained], SETTINGS, quiet)


def sines(x, frequencies=(2.0,)):
    return torch.cat([part for f in frequencies for part in (torch.sin(f * x), torch.cos(f * x))], dim=2)


def wave(x, y):
    return least_squares(sines(x), y)


def either(x, y):
    """A line or a wave, whichever the examples are; nothing else."""
    is_line = (y / x[:, :, 0])[:, :9].std(1, keepdim=True) < 1e-3
    return torch.where(is_line, least_squares(x, y), wave(x, y))


def waves_of(mixture, line=least_squares, sinusoid=wave):
    trained = [("line", line, LINE), ("wave", sinusoid, WAVE), ("waves", mixture, Mixture([LINE, WAVE]))]
    return icl.evaluate_waves([Subject(name, answer, 1, 10, kind) for name, answer, kind in trained], SETTINGS, quiet)


@pytest.fixture(scope="module")
def waves():
    return waves_of(either)


def shift(curve, plus, minus):
    """The curve of a difference after one of the two curves has become another: its band keeps its width."""
    ends = ("mean", "low", "high")
    moved = {key: [v + p - m for v, p, m in zip(curve[key], plus["mean"], minus["mean"])] for key in ends}
    by = plus["overall"]["mean"] - minus["overall"]["mean"]
    return {**moved, "overall": {key: curve["overall"][key] + by for key in ends}}


def with_model(results, name, like):
    """Results in which model `name` is predictor `like` of the same results."""
    changed = json.loads(json.dumps(results))
    for section in ("classes", "nonzeros", "ood"):
        for entry in changed[section].values():
            curves, excess = entry["curves"], entry["excess"]
            old = curves[name]
            curves[name] = curves[like]
            for subject, others in excess.items():
                for other in others:
                    if subject == name:
                        others[other] = shift(others[other], curves[like], old)
                    elif other == name:
                        others[other] = shift(others[other], old, curves[like])
    return changed


def claim_13(results):
    return icl_rules.claim_13(icl_rules.LINEAR, results)


def claim_14(results):
    return icl_rules.claim_14(icl_rules.LINEAR, results)


def verdicts(results):
    return [claim(results)["verdict"] for claim in (claim_13, claim_14, icl_rules.claim_15)]


def test_the_best_predictors_confirm_the_claims(linear, waves):
    assert verdicts(linear) == ["confirmed"] * 3
    found = icl_rules.claim_15(linear)
    assert list(found["numbers"]["between"]) == [2, 3] and found["numbers"]["between"][2]["worse"] == "sparse"
    assert "between the specialists at 2, 3 non-zeros" in found["sentence"]
    assert claim_13(linear)["numbers"]["other specialist"]["linear"]["mean"] > 0.1
    assert {claim: found["verdict"] for claim, found in icl_rules.judge(linear, *waves).items()} == dict.fromkeys(
        ("13", "14", "15", "16"), "confirmed"
    )


def test_a_mixture_that_learned_nothing_refutes_them(linear, waves):
    changed = with_model(linear, "mixture", "zero")
    assert verdicts(changed) == ["refuted"] * 3
    assert "+1.0" in claim_14(changed)["sentence"] or "+0.9" in claim_14(changed)["sentence"]
    found = icl_rules.judge(changed, *waves)
    assert [found[claim]["verdict"] for claim in ("13", "14", "15", "16")] == ["refuted"] * 3 + ["confirmed"]
    assert "linear: refuted" in found["13"]["sentence"] and "waves: confirmed" in found["13"]["sentence"]


def test_too_little_training_does_not_refute_the_tracking(linear):
    """Both the mixture and the specialist far from least squares: neither tracks, and the mixture is not to blame."""
    changed = with_model(with_model(linear, "mixture", "zero"), "dense", "zero")
    changed["classes"] = {"linear": changed["classes"]["linear"]}
    assert claim_14(changed)["verdict"] == "not decided"


def test_a_mixture_that_is_one_specialist_refutes_them(linear):
    assert verdicts(with_model(linear, "mixture", "sparse")) == ["refuted"] * 3


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_a_specialist_that_learned_nothing_decides_nothing(linear, name):
    changed = with_model(linear, name, "zero")
    for claim in (claim_13, icl_rules.claim_15):
        assert claim(changed)["verdict"] == "not decided" and "has not learned its class" in claim(changed)["sentence"]


def test_nothing_to_select():
    """Specialists that do one and the same: whatever the mixture does, it selects nothing."""
    everything = lambda x, y: least_squares(torch.cat([x, sines(x)], dim=2), y)  # noqa: E731
    results, _ = waves_of(everything, everything, everything)
    for case in results["classes"].values():  # that they learn a little late is not the point
        for name in ("line", "wave"):
            for best in ("least_squares", "basis_least_squares"):
                if best in case["excess"][name]:
                    case["excess"][name][best]["overall"]["high"] = 0.0
    found = icl_rules.claim_13(icl_rules.NUMBER, results)
    assert found["verdict"] == "not decided" and "nothing is selected" in found["sentence"]


def test_outside_the_mixture(linear, waves):
    found = icl_rules.claim_16(linear, *waves)
    assert found["verdict"] == "confirmed" and found["numbers"]["combinations"][0.5]["mean"] > 0.1
    assert abs(found["numbers"]["extremes"]["dense, y three times as large"]["mean"]) < 1e-6
    everything = waves_of(lambda x, y: least_squares(torch.cat([x, sines(x, (2.0, 4.0))], dim=2), y))
    assert icl_rules.claim_16(linear, *everything)["verdict"] == "refuted"
    assert icl_rules.claim_16(linear, *waves_of(zero))["verdict"] == "not decided"


def test_runs_of_a_family_differ_in_their_classes_alone():
    runs = {name: config.to_dict() for name, config in icl.runs_of("small", steps=4000).items()}
    apart = lambda name, other: [key for key, value in runs[name].items() if value != runs[other][key]]  # noqa: E731
    assert apart("mixture", "dense") == apart("sparse", "dense") == apart("waves", "line") == apart("wave", "line") == ["classes"]
    assert runs["dense"]["steps"] == 4000 and tuple(runs) == icl.RUNS == tuple(icl.runs_of("garg"))
    assert icl.runs_of("garg")["sparse"].classes == ("sparse-linear:2",)


def test_table_and_picture(linear, waves):
    run = {"classes": ["dense-linear"], "step": 5, "steps": 10, "parameters": 1000}
    results = {"linear": linear, "waves": waves[0], "faster": waves[1], "runs": {"dense": run}, "claims": icl_rules.judge(linear, *waves)}
    assert [len(row.axes) for row in icl.picture(results).subfigs] == [3, 3]
    kept = icl.shortened(results)
    assert kept["claims"] == results["claims"] and list(kept["waves"]["combinations"]) == ["0", "0.25", "0.5", "0.75", "1"]
    mean = linear["classes"]["linear"]["curves"]["dense"]["mean"]
    assert kept["linear"]["classes"]["linear"]["dense"][:2] == pytest.approx(mean[:2], rel=1e-4)
    table = icl.markdown(results)
    assert "| dense | dense-linear | 5 of 10 | 1,000 |" in table
    assert "| 13: a mixture does as well as the right specialist | confirmed |" in table and "| least_squares | " in table


def test_dry_run(tmp_path, monkeypatch, capsys):
    """Trained in two calls, evaluated, judged. (That figures can be drawn is tested in test_study.py.)"""
    monkeypatch.setattr(icl, "figures", SimpleNamespace(draw_figures=lambda results, out: []))
    monkeypatch.setattr(icl, "picture", lambda results: SimpleNamespace(savefig=lambda path, dpi: None))

    def run(*more):
        options = ["--scale", "tiny", "--device", "cpu", "--prompts", "8", "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["icl.py", *options, *more])
        icl.main()

    with pytest.raises(SystemExit, match="the same command goes on"):
        run("--minutes", "0")
    assert not (tmp_path / "mixture" / "summary.json").exists()
    run("--runs", "mixture", "sparse")
    assert (tmp_path / "mixture" / "summary.json").exists() and not (tmp_path / "results.json").exists()
    for more in ((), ("--unfinished",)):
        run(*more)
        results = json.loads((tmp_path / "results.json").read_text())
        assert [results["claims"][claim]["verdict"] for claim in ("13", "15", "16")] == ["not decided"] * 3
        assert results["runs"]["sparse"]["classes"] == ["sparse-linear:1"] and results["runs"]["mixture"]["step"] == 4
        assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
