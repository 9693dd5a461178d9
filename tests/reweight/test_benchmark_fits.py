"""Fits of target losses on the curves of `benchmarks/reweighting.py`, one by one (benchmarks/reweighting_fits.py), and when its runs part (reweighting_apart.py)."""

import json

import numpy as np
import pytest

from benchmarks.reweighting_apart import PARTS, training_apart
from benchmarks.reweighting_fits import fits, fits_markdown, foreseen, summed

TOKENS = [1000 * i for i in range(1, 11)]


def power(tokens, noise=0.0, seed=0):
    draws = np.random.default_rng(seed).normal(size=len(tokens)) * noise
    return [2.0 + 3.0 * (n / 1000) ** -0.5 + d for n, d in zip(tokens, draws)]


def test_a_curve_of_the_law_is_foreseen_and_a_bent_one_is_refused():
    ended = power([20_000])[0]
    found = foreseen(TOKENS, power(TOKENS, 1e-3), 20_000, ended)
    assert found["foreseen"] == pytest.approx(ended, abs=0.02) and found["inside"] and "refused" not in found
    assert not foreseen(TOKENS, power(TOKENS, 1e-3), 20_000, ended - 0.5)["inside"]
    straight = foreseen(TOKENS, [5 - np.log(n) / 4 for n in TOKENS], 20_000, 2.5)
    assert "doesn't level off" in straight["refused"] and "foreseen" not in straight and straight["ended"] == 2.5


def test_counts_and_errors_are_of_curves_that_are_not_refused():
    taken = [{"foreseen": 3.0, "ended": 2.5, "inside": False}, {"foreseen": 2.0, "ended": 2.1, "inside": True}]
    found = summed([*taken, {"refused": "bends", "ended": 9.0}])
    assert (found["curves"], found["refused"], found["inside"]) == (3, 1, 1)
    assert found["mean_error"] == pytest.approx(0.2) and found["mean_absolute_error"] == pytest.approx(0.3)
    assert summed([{"refused": "bends", "ended": 9.0}])["mean_error"] is None


def study(folder, seed, curves, ended, targets=None):
    seed = folder / f"seed-{seed}"
    for name in ("sample", "proportional"):
        (seed / name).mkdir(parents=True)
        (seed / name / "config.json").write_text(json.dumps({"kind": "reweight"}))
        (seed / name / "summary.json").write_text(json.dumps({"heldout": ended, "tokens": 20_000}))
    rows = [{"kind": "evaluation", "total_tokens": 0, "heldout": dict.fromkeys(curves, 9.0)}]
    rows += [
        {"kind": "evaluation", "total_tokens": n, "heldout": {name: losses[i] for name, losses in curves.items()}}
        for i, n in enumerate(TOKENS)
    ]
    (seed / "sample" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if targets:
        (seed / "sample" / "targets.json").write_text(json.dumps(targets))
    else:
        (seed / "sample" / "refused.txt").write_text("bends\n")


def test_a_seed_that_is_refused_still_tells_of_each_of_its_curves(tmp_path):
    line = [5 - np.log(n) / 4 for n in TOKENS]
    target = power([20_000])[0]
    study(tmp_path, 0, {"a": power(TOKENS, 1e-3), "b": line}, {"a": target, "b": 2.5})
    given = {"target": {"a": target + 0.25, "b": target}, "interval": {"a": [0, 9], "b": [0, 1]}}
    study(tmp_path, 1, {"a": power(TOKENS, 1e-3, 1), "b": power(TOKENS, 1e-3, 2)}, {"a": target, "b": target}, given)
    (tmp_path / "seed-2" / "sample").mkdir(parents=True)  # only begun
    found = fits(tmp_path)
    assert (found["predictions"], found["inside"], found["refused_seeds"]) == (2, 1, 1) and found["mean_error"] == pytest.approx(0.125)
    assert [(c["seed"], c["domain"], "refused" in c) for c in found["curves"]] == [
        (0, "a", False),
        (0, "b", True),
        (1, "a", False),
        (1, "b", False),
    ]
    assert found["curves"][1]["losses"] == pytest.approx(line) and found["curves"][1]["tokens"] == TOKENS
    every = found["curve_by_curve"]
    assert (every["curves"], every["refused"]) == (4, 1) and every["mean_absolute_error"] < 0.02
    (said, _) = fits_markdown(found)
    assert "refused 1 of 4" in said and f"of the other 3, {every['inside']} ended inside" in said
    assert fits_markdown({"predictions": 45}) == [] and fits_markdown(None) == []


def test_a_run_and_its_control_part_where_their_training_losses_do(tmp_path):
    losses = {"velocitune": [3.0] * 32, "velocitune-average": [3.0] * 16 + [2.5] * 16}
    for seed, methods in ((0, losses), (1, {"velocitune-average": [1.0] * 32}), (2, {"odm": [1.0] * 32})):
        for method, found in methods.items():
            run = tmp_path / f"seed-{seed}" / method
            run.mkdir(parents=True)
            (run / "judged.json").write_text("{}")
            rows = [{"kind": "evaluation", "loss": 9.0}, *({"kind": "step", "loss": loss} for loss in found)]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [0.0] * (PARTS // 2) + [0.5] * (PARTS // 2)
    assert training_apart(tmp_path) == {"velocitune": {"less": "velocitune-average", "steps": 2, "seeds": {"0": expected}}}
    for name in losses:  # of fewer steps than parts
        (tmp_path / "seed-0" / name / "metrics.jsonl").write_text(json.dumps({"kind": "step", "loss": 2.0}) + "\n")
    assert training_apart(tmp_path)["velocitune"]["seeds"] == {"0": [0.0]}
