"""The training benchmark on a tiny model: it checks before it times, and what it writes adds up."""

import json

import pytest

from dynadapt.bench import compare
from dynadapt.experiments.icl import bench


def test_a_step_is_checked_then_timed():
    config = bench.bench_config("garg-small", layers=1, hidden=32, heads=2, batch=4, points=5, device="cpu", dims=3)
    assert config.dims_start == config.points_start == 0  # the size that the curriculum ends with
    result = bench.run_icl(config, ["gpt2-eager"], rounds=2, steps=3, say=lambda text: None)
    json.dumps(result)
    ours, theirs = result["providers"]["dynadapt"], result["providers"]["gpt2-eager"]
    for row in (ours, theirs):
        assert row["seconds"]["runs"] in (6, 9, 12, 15, 18) and 0 < row["seconds"]["best"] <= row["seconds"]["median"]
        assert row["error"]["errors"] < 1e-4 and row["error"]["gradient"] < 1e-4 and row["peak_memory_bytes"] > 5e7
    assert theirs["speedup_of_dynadapt"] == pytest.approx(theirs["seconds"]["median"] / ours["seconds"]["median"])
    assert result["flops_per_step"] > 0 and result["ceiling"]["gflops"] > 0


def test_nothing_is_timed_when_the_step_is_wrong():
    with pytest.raises(RuntimeError, match="provider dynadapt: gradient differ"):
        row = {"provider": "dynadapt", "dtype": "fp32", "error": {"errors": 1e-6, "gradient": 0.1}}
        compare.check({"dynadapt": row}, {"fp32": {"errors": 1e-6, "gradient": 1e-6}}, bench.FLOOR)


def test_in_bf16_peers_under_autocast_have_a_residual_in_float32():
    row = {"provider": "dynadapt", "dtype": "bf16", "error": {"errors": 1.8e-3, "gradient": 1e-3}}
    yardstick = {"bf16": {"errors": 0.9e-3, "gradient": 1e-3}}
    compare.check({"dynadapt": row}, yardstick, bench.FLOOR, ours=2.0)
    with pytest.raises(RuntimeError, match="errors differs from float64 by 0.0018, more than 0.001"):
        compare.check({"dynadapt": row}, yardstick, bench.FLOOR)


def test_what_does_not_fit_is_named(monkeypatch):
    from dynadapt.cli import build_parser

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for options, message in (
        (["--against", "jax"], "--against jax: give some of"),
        (["--rounds", "0"], "--rounds 0"),
        (["gpt"], "preset 'gpt'"),
        (["--dtype", "bf16", "--device", "cuda"], "device='cuda': torch .* sees no GPU"),
        (["--device", "gpu"], "device='gpu'|device is 'gpu'"),
    ):
        arguments = build_parser().parse_args(["bench", "icl", *options])
        with pytest.raises(ValueError, match=message):
            arguments.function(arguments)
