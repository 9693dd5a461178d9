"""The rules of benchmarks/icl.py on predictors of which the answer is known, and its settings."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from dynadapt.experiments.icl import DenseLinear, Mixture, SparseLinear, least_squares, linear_mixture, make_function_class, zero
from dynadapt.experiments.icl.study import Settings, Subject

SPEC = importlib.util.spec_from_file_location("icl_claims", Path(__file__).parents[2] / "benchmarks" / "icl.py")
claims = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(claims)
SETTINGS = Settings(prompts=150, draws=100)
DENSE, SPARSE = DenseLinear(4), SparseLinear(4, nonzeros=1)


def quiet(text):
    pass


@pytest.fixture(scope="module")
def lines():
    """Results where the three models do what is best for them."""
    bayes = lambda *counts: partial(linear_mixture, nonzeros=counts)  # noqa: E731
    trained = [("dense", least_squares, DENSE), ("sparse", bayes(1), SPARSE), ("mixture", bayes(4, 1), Mixture([DENSE, SPARSE]))]
    return claims.evaluate_lines([Subject(name, answer, 4, 9, kind) for name, answer, kind in trained], SETTINGS, quiet)


def shift(curve, plus, minus):
    """The curve of a difference after one of the two curves has become another: its band keeps its width."""
    ends = ("mean", "low", "high")
    moved = {key: [v + p - m for v, p, m in zip(curve[key], plus["mean"], minus["mean"])] for key in ends}
    by = plus["overall"]["mean"] - minus["overall"]["mean"]
    return {**moved, "overall": {key: curve["overall"][key] + by for key in ends}}


def verdicts(lines):
    return [claim(lines)["verdict"] for claim in (claims.claim_13, claims.claim_14, claims.claim_15)]


def with_model(lines, name, like):
    """Results in which model `name` is predictor `like` of the same results."""
    changed = json.loads(json.dumps(lines))
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


def test_the_best_predictors_confirm_the_claims(lines):
    assert verdicts(lines) == ["confirmed"] * 3
    found = claims.claim_15(lines)
    assert list(found["numbers"]["between"]) == [2, 3] and found["numbers"]["between"][2]["worse"] == "sparse"
    assert "between the specialists at 2, 3 non-zeros" in found["sentence"]
    assert claims.claim_13(lines)["numbers"]["other specialist"]["linear"]["mean"] > 0.1


def test_a_mixture_that_learned_nothing_refutes_them(lines):
    changed = with_model(lines, "mixture", "zero")
    assert verdicts(changed) == ["refuted"] * 3
    assert "+1.0" in claims.claim_14(changed)["sentence"] or "+0.9" in claims.claim_14(changed)["sentence"]


def test_too_little_training_does_not_refute_the_tracking(lines):
    """Both the mixture and the specialist far from least squares: neither tracks, and the mixture is not to blame."""
    changed = with_model(with_model(lines, "mixture", "zero"), "dense", "zero")
    changed["classes"] = {"linear": changed["classes"]["linear"]}
    assert claims.claim_14(changed)["verdict"] == "not decided"


def test_a_mixture_that_is_one_specialist_refutes_them(lines):
    changed = with_model(lines, "mixture", "sparse")
    assert verdicts(changed) == ["refuted"] * 3


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_a_specialist_that_learned_nothing_decides_nothing(lines, name):
    changed = with_model(lines, name, "zero")
    for claim in (claims.claim_13, claims.claim_15):
        assert claim(changed)["verdict"] == "not decided" and "has not learned its class" in claim(changed)["sentence"]


def waves(answer):
    kinds = [DenseLinear(1), make_function_class("sinusoid", 1, amplitude=(0.5, 2.0), frequency=(2.0, 2.0))]
    return claims.evaluate_waves(Subject("waves", answer, 1, 10, Mixture(kinds)), SETTINGS, quiet)


def sines(x, frequencies=(2.0,)):
    return torch.cat([part for f in frequencies for part in (torch.sin(f * x), torch.cos(f * x))], dim=2)


def either(x, y):
    """A line or a wave, whichever the examples are; nothing else."""
    line, wave = least_squares(x, y), least_squares(sines(x), y)
    is_line = ((y / x[:, :, 0])[:, :9].std(1, keepdim=True) < 1e-3)
    return torch.where(is_line, line, wave)


def test_outside_the_mixture(lines):
    found = claims.claim_16(lines, waves(either))
    assert found["verdict"] == "confirmed" and found["numbers"]["combinations"][0.5]["mean"] > 0.1
    assert abs(found["numbers"]["extremes"]["dense, y three times as large"]["mean"]) < 1e-6
    everything = claims.claim_16(lines, waves(lambda x, y: least_squares(torch.cat([x, sines(x, (2.0, 4.0))], dim=2), y)))
    assert everything["verdict"] == "refuted"
    assert claims.claim_16(lines, waves(zero))["verdict"] == "not decided"


def test_runs_differ_in_their_classes_alone():
    runs = claims.runs_of("small", steps=4000)
    dense = runs["dense"].to_dict()
    assert {name: [key for key, value in config.to_dict().items() if value != dense[key]] for name, config in runs.items()} == {
        "dense": [], "sparse": ["classes"], "mixture": ["classes"], "waves": ["classes", "dims", "steps"]}
    assert (dense["steps"], runs["waves"].steps) == (4000, 2000)
    assert claims.runs_of("garg")["sparse"].classes == ("sparse-linear:2",)
    assert set(claims.runs_of("garg")) == set(claims.RUNS)


def test_table_and_picture(lines):
    found = waves(either)
    assert len(claims.picture({"lines": lines, "waves": found}).axes) == 4
    results = {"claims": {"13": claims.claim_13(lines)}, "lines": lines, "waves": found,
               "runs": {"dense": {"classes": ["dense-linear"], "step": 5, "steps": 10, "parameters": 1000, "seconds": 2.0}}}
    kept = claims.shortened(results)
    assert kept["claims"] == results["claims"] and list(kept["combinations"]) == ["0", "0.25", "0.5", "0.75", "1"]
    mean = lines["classes"]["linear"]["curves"]["dense"]["mean"]
    assert kept["classes"]["linear"]["dense"][:2] == pytest.approx(mean[:2], rel=1e-4)
    table = claims.markdown(results)
    assert "| dense | dense-linear | 5 of 10 | 1,000 | 2 |" in table
    assert "| 13: a mixture does as well as the right specialist | confirmed |" in table and "| least_squares | " in table


def test_dry_run(tmp_path, monkeypatch, capsys):
    """Trained in two calls, evaluated, judged. (That figures can be drawn is tested in test_study.py.)"""
    monkeypatch.setattr(claims, "draw_figures", lambda results, out: [])
    arguments = ["icl.py", "--scale", "tiny", "--device", "cpu", "--prompts", "8", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--minutes", "0"])
    with pytest.raises(SystemExit, match="the same command goes on"):
        claims.main()
    assert not (tmp_path / "mixture" / "summary.json").exists()
    monkeypatch.setattr("sys.argv", [*arguments, "--runs", "mixture", "sparse"])
    claims.main()
    assert (tmp_path / "mixture" / "summary.json").exists() and not (tmp_path / "results.json").exists()
    monkeypatch.setattr("sys.argv", arguments)
    claims.main()
    assert json.loads((tmp_path / "results.json").read_text())["runs"]["mixture"]["step"] == 4
    monkeypatch.setattr("sys.argv", [*arguments, "--unfinished"])
    claims.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [results["claims"][claim]["verdict"] for claim in ("13", "15", "16")] == ["not decided"] * 3
    assert results["runs"]["sparse"]["classes"] == ["sparse-linear:1"] and (tmp_path / "claims.png").exists()
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
