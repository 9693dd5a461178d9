"""The second judgement: every method against stratified sampling that has had its FLOPs."""

import math

import pytest

from dynadapt.experiments.reweight.compare import paired
from dynadapt.experiments.reweight.compare_flops import bits_per_byte, flops_markdown, judged_by_flops, searches_markdown, stratified_steps


def row(method: str, seed: int, mean: float, base: float | None) -> dict:
    noise = 0.001 * (-1) ** seed * (1 + seed)
    test = {"code": mean + noise - 0.1, "prose": mean + noise + 0.1}
    found = {
        "method": method,
        "seed": seed,
        "test": test,
        "mean": mean + noise,
        "tokens": 100,
        "tokens_per_byte": {"code": 0.5, "prose": 0.25},
    }
    if base is not None:
        found["equal_flops"] = {"steps": 30, "tokens": 300, "flops": 9, "test": {"code": base - 0.1, "prose": base + 0.1}, "mean": base}
    return found


def test_equal_tokens_can_win_where_equal_flops_lose():
    rows = [row("stratified", seed, 3.0, None) for seed in range(4)]
    rows += [row("op-mix", seed, 2.9, 2.8) for seed in range(4)] + [row("odm", seed, 2.9, 3.0) for seed in range(4)]
    found = judged_by_flops(rows)
    assert found["verdict"] == "better: odm; worse: op-mix" and set(found["against_stratified"]) == {"op-mix", "odm"}
    one = found["against_stratified"]["op-mix"]
    assert one["mean"] == pytest.approx(0.1, abs=0.003) and one["times_the_tokens"] == 3.0 and one["sees"] > 0
    assert 1 >= one["p_adjusted"] >= one["p"]
    assert one["p"] == paired([row("op-mix", seed, 2.9, 2.8)["mean"] - 2.8 for seed in range(4)])["p"]
    bits = bits_per_byte(rows)
    assert bits["stratified"]["prose"] == pytest.approx(3.1 * 0.25 / math.log(2), abs=0.01)
    text = "\n".join(flops_markdown({"by_flops": found, "bits_per_byte": bits}))
    assert "| op-mix | 4 | 3.00 times the tokens | +0.09" in text and "| bits per byte | code | prose |" in text
    assert judged_by_flops([row("stratified", 0, 3.0, None)])["against_stratified"] == {} and flops_markdown({}) == []


def test_small_batches_leave_doremi_untested():
    rows = [row("doremi", seed, 4.0, 3.0) for seed in range(4)]
    assert judged_by_flops(rows, batch=1)["verdict"] == "better: none; worse: none; not tested: doremi"
    assert judged_by_flops(rows, batch=2)["verdict"] == "better: none; worse: doremi"


def test_stratified_has_no_less():
    assert [stratified_steps(whole, 10.0) for whole in (1, 10, 11, 95)] == [1, 1, 2, 10]


def test_searches_are_told():
    good = {"error": {"a": 0.1, "b": 0.2}, "error_of_mean": {"a": 0.2, "b": 0.2}, "held": ["b"]}
    lines = searches_markdown({"op-mix": [good, {"refused": "why"}]})
    assert "take away 0.38" in lines[0] and "1 foresaw no better" in lines[0] and "refused in 1 seeds" in lines[1]
