"""benchmarks/harness.py: every case agrees with float64 in every provider, rows say what they should, output files are whole."""

import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import harness  # noqa: E402
from opbench import worker  # noqa: E402

TINY = {"config": asdict(harness.config_of("tiny")), "rows": 16, "memory": 8, "dtype": "fp32", "threads": 1}
CEILING = {"gflops": 100.0, "provider": "native", "shape": [1, 1, 1], "gb_per_s": 10.0}


def test_a_row_has_its_floor_and_its_best_peer():
    row = {
        "op": "x",
        "label": "",
        "bytes": 10_000_000,
        "flops": 2_000_000_000,
        "note": "",
        "calls": {
            "dynadapt": {"seconds": {"median": 0.04}},
            "dynadapt@old": {"seconds": {"median": 0.01}},
            "a": {"seconds": {"median": 0.08}},
            "b": {"seconds": {"median": 0.06}},
            "c": {"absent": "not installed"},
        },
    }
    found = harness.finish_row(row, CEILING)
    assert found["floor_seconds"] == pytest.approx(0.02) and found["bound"] == "FLOPs"
    assert found["best_peer"] == "b" and found["speedup"] == pytest.approx(1.5)
    assert found["calls"]["dynadapt"]["share_of_floor"] == pytest.approx(0.5) and "gflops" not in found["calls"]["c"]


def test_ops_against_torch(tmp_path, capsys):
    """Two cases at tiny sizes through the real processes, compiled torch among them."""
    sizes = "--model tiny --rows 16 --memory 8 --rounds 2 --dtype fp32 --only activation --threads 1"
    settings = harness.parse([*sizes.split(), "--json", str(tmp_path / "o.json")])
    result = harness.run(settings)
    assert [row["op"] for row in result["rows"]] == ["activation_forward", "activation_backward"]
    for row in result["rows"]:
        assert set(row["calls"]) == {"dynadapt", "torch eager", "torch.compile"}
        for call in row["calls"].values():
            assert call["error"] < 1e-5 and call["seconds"]["median"] > 0 and call["threads"] == 1
    harness.print_table(result)
    assert "activation_forward" in capsys.readouterr().out
    harness.write_csv(result, tmp_path / "o.csv")
    lines = list(csv.DictReader(open(tmp_path / "o.csv")))
    assert len(lines) == 6 and {line["provider"] for line in lines} == {"dynadapt", "torch eager", "torch.compile"}
    assert json.dumps(result)


def test_every_case_is_right_in_eager_torch_and_ours():
    """All cases at tiny sizes; torch.compile is left out here, it takes minutes."""
    options = {**TINY, "only": ""}
    for provider in ("dynadapt", "torch"):
        made = worker.Provider({**options, "provider": provider})
        if provider == "torch":
            skip = ("torch.compile", "FlexAttention", "cut-cross")
            keep = lambda build: lambda case: {n: b for n, b in build(case).items() if not any(s in n for s in skip)}  # noqa: E731
            made.make_calls = keep(worker.torch_calls)
        for index, (op, _) in enumerate(made.cases):
            found = made.make(index)
            assert op in worker.peers.PEERS or op == "embedding_forward"
            for name, call in found["calls"].items():
                assert "absent" not in call, (op, name, call)
                assert call["error"] is None or call["error"] < 1e-4, (op, name, call)


def test_a_wrong_result_is_not_timed(monkeypatch):
    made = worker.Provider({**TINY, "provider": "dynadapt", "only": "activation_forward"})
    monkeypatch.setattr(made, "make_calls", lambda case: {"dynadapt": lambda: lambda: {"y": case["y"].nan_to_num(0.0)}})
    assert made.make(0)["calls"]["dynadapt"]["fatal"] and not made.calls


@pytest.mark.parametrize("arguments, named", [(["--rows", "0"], "rows 0"), (["--dtype", "fp64"], "fp64")])
def test_bad_input(arguments, named, capsys):
    with pytest.raises(SystemExit):
        harness.parse(arguments)
    assert named in capsys.readouterr().err


def test_an_unknown_op_and_an_unknown_revision_are_refused():
    with pytest.raises(SystemExit, match="--only nothing"):
        harness.run(harness.parse(["--model", "tiny", "--only", "nothing", "--no-peers", "--threads", "1"]))
    with pytest.raises(SystemExit, match="no-such-revision"):
        harness.run(harness.parse(["--model", "tiny", "--base", "no-such-revision"]))
